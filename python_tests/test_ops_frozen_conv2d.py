"""The convolution with constant weights and Winograd's against the library's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import assert_compiles, relative_error, run_python

from exml_fast.ops import frozen_conv2d, reference, winograd_conv2d, winograd_weights

TAPS = {"packed": "oneDNN's", "windows": "3 dimensions", "winograd": "5 dimensions"}


def flipped(weight: torch.Tensor) -> torch.Tensor:
    """The weight of the convolution that is the adjoint of one of stride 1."""
    return weight.transpose(0, 1).flip(2, 3)


@given(data=st.data())
def test_values_and_gradients_are_those_of_its_twin(data: st.DataObject) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    groups = draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    x = torch.randn(draw(st.integers(0, 3)), 2 * groups, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64)
    bias = torch.randn(3 * groups, dtype=torch.float64) if draw(st.booleans()) else None
    y = frozen_conv2d(x, weight, bias, padding=padding, groups=groups)
    expected = reference.frozen_conv2d(x, weight, bias, padding=padding, groups=groups)
    g = torch.randn_like(expected)
    torch.testing.assert_close(y, expected)
    (wanted,) = torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], wanted)
    if groups == 1:
        y = frozen_conv2d(x, weight, bias, padding=padding, adjoint_weight=flipped(weight), adjoint="convolution")
        torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given_panels", [False, True])
def test_winograd_is_its_twin(dtype: torch.dtype, given_panels: bool) -> None:
    x = torch.randn(3, 18, 9, 7).to(dtype).requires_grad_()
    weight, bias = torch.randn(20, 18, 3, 3).to(dtype), torch.randn(20).to(dtype)
    panels = (winograd_weights(weight), winograd_weights(flipped(weight))) if given_panels else ()
    y = winograd_conv2d(x, weight, bias, (1, 2), *panels)
    exact = x.detach().double().requires_grad_()
    expected = reference.winograd_conv2d(exact, weight.double(), bias.double(), (1, 2))
    g = torch.randn_like(y)
    (grad,), (wanted,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, exact, g.double())
    assert y.dtype == grad.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative_error(y, expected) < tolerance and relative_error(grad, wanted) < tolerance


@pytest.mark.parametrize("outputs", [1, 32, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_transformed_weights_are_those_of_their_twin(outputs: int, dtype: torch.dtype) -> None:
    weight = torch.randn(outputs, 17, 3, 3).to(dtype)
    for kernels in (weight, weight.contiguous(memory_format=torch.channels_last)):
        panels = winograd_weights(kernels)
        assert panels.dtype == torch.float32 and panels.is_contiguous()
        assert torch.equal(panels, reference.winograd_weights(kernels))
    torch.library.opcheck(torch.ops.exml.winograd_weights, (weight,))


@pytest.mark.compiled
def test_opcheck_and_compiles() -> None:
    op, geometry = torch.ops.exml, ((1, 1), (1, 1), (1, 1), 1)
    weight = torch.randn(16, 16, 3, 3)
    panels = winograd_weights(weight)
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 16, 6, 5).contiguous(memory_format=form)
        grad, last = torch.randn_like(x), form == torch.channels_last
        leaf = x.clone().requires_grad_()
        torch.library.opcheck(op.frozen_conv2d, (leaf, weight, None, *geometry))
        for layout, lanes in (("plain", False), ("winograd", False), ("plain", True)):
            prepared = panels if layout == "winograd" else None
            torch.library.opcheck(op._frozen_conv2d_forward, (x, weight, None, *geometry, prepared, layout, lanes))
        for adjoint, layout, prepared in (
            ("library", "plain", None),
            ("convolution", "plain", flipped(weight).contiguous(memory_format=form)),
            ("convolution", "winograd", winograd_weights(flipped(weight))),
        ):
            given = (grad, weight, x.shape, last, *geometry, prepared, layout, adjoint)
            torch.library.opcheck(op._frozen_conv2d_backward, given)
    assert_compiles(lambda x: frozen_conv2d(x, weight, padding=(1, 1)), x)
    adjoint_panels = winograd_weights(flipped(weight))
    assert_compiles(lambda x: winograd_conv2d(x, weight, None, (1, 1), panels, adjoint_panels), x)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_winograd_by_every_instruction_set(capability: str) -> None:
    """The choice is made when the extension is loaded."""
    run_python(
        "import torch, torch.nn.functional as F\n"
        "from exml_fast._native import build_info\n"
        "from exml_fast.ops import winograd_conv2d, winograd_weights\n"
        f"if build_info()['cpu_capability'] != '{capability}': raise SystemExit(0)  # not this machine's\n"
        "for channels, outputs, size, padding in ((16, 40, 9, 1), (45, 16, 6, 0), (64, 33, 13, 2)):\n"
        "    x, w = torch.randn(11, channels, size, size), torch.randn(outputs, channels, 3, 3)\n"
        "    z = F.conv2d(x.double(), w.double(), padding=padding)\n"
        "    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):\n"
        "        y = winograd_conv2d(x.to(dtype), w.to(dtype), None, (padding, padding), winograd_weights(w))\n"
        "        assert (y.double() - z).abs().max() <= limit * z.abs().max(), (dtype, channels)\n",
        EXML_CPU_CAPABILITY=capability,
    )


@pytest.mark.compiled
def test_winograd_takes_no_images_and_names_what_it_does_not_take() -> None:
    x, weight = torch.zeros(1, 16, 8, 8), torch.randn(20, 16, 3, 3)
    assert winograd_conv2d(x[:0], weight, None, (1, 1)).shape == (0, 20, 8, 8)
    with pytest.raises(ValueError, match="larger than the padded images"):
        winograd_conv2d(x[:, :, :0], weight, None, (1, 1))
    with pytest.raises(ValueError, match="Winograd's weights must be contiguous float32"):
        winograd_conv2d(x, weight, None, (1, 1), torch.zeros(1, 6, 6, 20, 32))
    with pytest.raises(ValueError, match="frozen_conv2d: all tensors must be on one device, got cpu, meta"):
        winograd_conv2d(x.to("meta"), weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(20,\), got \[21\]"):
        winograd_conv2d(x, weight, torch.zeros(21))
    with pytest.raises(ValueError, match=r"stride 1, dilation 1 and one group, got .*\[2, 1\]"):
        frozen_conv2d(x, weight, None, (2, 1), forward_weight=winograd_weights(weight), forward_layout="winograd")
    with pytest.raises(ValueError, match=r"weight must have shape \(K, C, 3, 3\), got \[20, 16, 8\]"):
        winograd_weights(torch.zeros(20, 16, 8))
    with pytest.raises(ValueError, match="weight is taken as a constant"):
        winograd_weights(weight.requires_grad_())


@pytest.mark.compiled
def test_errors_name_the_argument() -> None:
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\) with C = 3"):
        frozen_conv2d(torch.randn(1, 2, 6, 6), weight)
    with pytest.raises(ValueError, match="weight must have x's dtype"):
        frozen_conv2d(x.double(), weight)
    with pytest.raises(ValueError, match="weight is taken as a constant"):
        frozen_conv2d(x, weight.clone().requires_grad_())
    with pytest.raises(ValueError, match="adjoint must be 'library'"):
        frozen_conv2d(x.clone().requires_grad_(), weight, adjoint="other").sum().backward()


@pytest.mark.compiled
def test_layouts_are_checked() -> None:
    x, weight = torch.randn(1, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match="forward_layout must be 'plain', 'packed', 'windows' or 'winograd', got 'p'"):
        frozen_conv2d(x, weight, forward_layout="p")
    with pytest.raises(ValueError, match="forward_layout must be 'plain', 'packed' or 'winograd', got 'windows'"):
        frozen_conv2d(x, weight, forward_layout="windows", forward_weight=weight)
    with pytest.raises(ValueError, match="forward_layout must be 'plain' where lanes is True, got 'packed'"):
        frozen_conv2d(x, weight, forward_layout="packed", forward_weight=weight, lanes=True)
    with pytest.raises(ValueError, match="forward_weight must be given"):
        frozen_conv2d(x, weight, forward_layout="packed")
    with pytest.raises(ValueError, match="adjoint_weight must be given"):
        frozen_conv2d(x, weight, adjoint="convolution").sum().backward()
    for layout, expected in TAPS.items():
        if layout != "windows":
            with pytest.raises(ValueError, match=f"forward_weight must .*{expected}"):
                frozen_conv2d(x, weight, forward_layout=layout, forward_weight=weight)
        y = frozen_conv2d(x, weight, adjoint="convolution", adjoint_weight=weight, adjoint_layout=layout)
        with pytest.raises(ValueError, match=f"adjoint_weight must .*{expected}"):
            y.sum().backward()
    with pytest.raises(ValueError, match="adjoint_weight must have 4 dimensions and x's dtype"):
        frozen_conv2d(x, weight, adjoint="convolution", adjoint_weight=weight.double()).sum().backward()
    windows = torch.zeros(3, 3, 16)
    y = frozen_conv2d(x, weight, adjoint="zero_stuffed", adjoint_weight=windows, adjoint_layout="windows")
    with pytest.raises(ValueError, match="adjoint_layout must be 'plain' or 'packed' for adjoint 'zero_stuffed'"):
        y.sum().backward()


@pytest.mark.compiled
def test_phases_of_a_pixel_are_counted() -> None:
    x, weight = torch.randn(1, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    y = frozen_conv2d(x, weight, stride=2, adjoint="subpixel", adjoint_weight=torch.randn(11, 4, 2, 2))
    with pytest.raises(ValueError, match=r"adjoint_weight must have stride\^2 \* C = 12 output channels .*, got 11"):
        y.sum().backward()
