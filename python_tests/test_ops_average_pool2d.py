"""Average pooling against the library's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import assert_compiles

from exml_fast.ops import average_pool2d, reference


@given(data=st.data())
def test_values_and_gradients_are_the_library_s(data: st.DataObject) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    size = (draw(st.integers(0, 3)), draw(st.integers(1, 20)), *(k + draw(st.integers(0, 9)) for k in kernel))
    form = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    x = torch.randn(size).to(dtype).contiguous(memory_format=form).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = average_pool2d(x, kernel), reference.average_pool2d(exact, kernel)
    assert y.dtype == dtype and (not y.numel() or y.is_contiguous(memory_format=form))
    g = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, g)
    (wanted,) = torch.autograd.grad(expected, exact, g.double())
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.compiled
def test_gradcheck_and_what_it_saves() -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: average_pool2d(x, (2, 3)), (x,))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        average_pool2d(x, (2, 3))
    assert not saved
    (grad,) = torch.autograd.grad(
        (average_pool2d(x, (2, 3)) * (g := torch.ones(2, 3, 2, 2, dtype=torch.float64, requires_grad=True))).sum(),
        x,
        create_graph=True,
    )
    with pytest.raises(NotImplementedError, match="average_pool2d: second derivatives"):
        torch.autograd.grad(grad.sum(), g)


def test_nan_stays_in_its_window() -> None:
    x = torch.ones(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 1, 0, 1] = float("nan")
    y = average_pool2d(x, (2, 2))
    assert y.isnan().sum() == 1 and y[0, 1, 0, 0].isnan()


@pytest.mark.compiled
def test_errors_name_the_argument() -> None:
    with pytest.raises(
        ValueError, match=r"x must have shape \(N, C, H, W\) with at least one channel, got \[3, 4, 4\]"
    ):
        average_pool2d(torch.randn(3, 4, 4), (2, 2))
    for layout in (torch.contiguous_format, torch.channels_last):
        with pytest.raises(ValueError, match="with at least one channel"):
            average_pool2d(torch.randn(0, 0, 4, 4).contiguous(memory_format=layout), (2, 2))
    with pytest.raises(ValueError, match="kernel must be from 1 to x's height and width"):
        average_pool2d(torch.randn(1, 3, 4, 4), (5, 2))
    with pytest.raises(ValueError, match="x must be float32, bfloat16 or float64"):
        average_pool2d(torch.ones(1, 3, 4, 4, dtype=torch.int64), (2, 2))


@pytest.mark.compiled
@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_opcheck_and_compiles(channels: int, form: torch.memory_format) -> None:
    x = torch.randn(2, channels, 7, 6).contiguous(memory_format=form)
    torch.library.opcheck(torch.ops.exml.average_pool2d, (x.clone().requires_grad_(), (2, 3)))
    torch.library.opcheck(torch.ops.exml._average_pool2d_forward, (x, (2, 3)))
    grad = torch.randn(2, channels, 3, 2)
    last = form == torch.channels_last
    torch.library.opcheck(torch.ops.exml._average_pool2d_backward, (grad, x.shape, (2, 3), last))
    assert_compiles(lambda x: average_pool2d(x, (2, 3)), x)
