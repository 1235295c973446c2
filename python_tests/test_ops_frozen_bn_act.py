from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import TOLERANCE, laid_out, relative_error
from torch import Tensor

from exml_fast import ops
from exml_fast.ops import reference
from exml_fast.ops._registration import kernels

ACTIVATIONS = [*reference.ACTIVATIONS, "leaky_relu"]
SHAPES = [(1, 1, 1, 1), (5, 3), (3, 70), (4, 5, 9), (2, 17, 5, 7), (3, 64, 8, 8), (2, 33, 3, 4, 5), (2, 3, 40, 40)]
LAYOUTS = ["contiguous", "channels_last", "strided"]


def constants(channels: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    scale = torch.rand(channels, dtype=torch.float64, device=device) + 0.5
    return scale, torch.randn(channels, dtype=torch.float64, device=device)


def exact(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().double().cpu().requires_grad_()


def channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def check(
    x: Tensor, residual: Tensor | None, activation: str, outputs: tuple[bool, bool, bool] = (True,) * 3, factor=1.0
) -> None:
    """Values and gradients agree with the reference in float64; `outputs` says which of y, mean, var have gradients."""
    scale, shift = (c.float().double() for c in constants(x.shape[1]))
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    args = (x,) if residual is None else (x, residual)
    wide = (exact(x), exact(residual))
    got = ops.frozen_bn_act(x, scale.to(x.device), shift.to(x.device), residual, activation, 0.1)
    expected = reference.frozen_bn_act(wide[0], scale, shift, wide[1], activation, 0.1)
    tolerance = TOLERANCE[x.dtype] * factor
    # Their values and slopes end in differences of numbers of the input's size and of size one.
    smooth = activation in ("gelu", "silu", "tanh")
    linear = channels(scale, x) * wide[0].detach() + (0 if wide[1] is None else wide[1].detach())
    least = 1e-4 * float(linear.norm()) if smooth else 0.0
    assert got[0].dtype == x.dtype and relative_error(got[0], expected[0], least) <= tolerance
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        assert ours.dtype == (x.dtype if x.dtype == torch.float64 else torch.float32)
        assert relative_error(ours, theirs) <= min(tolerance, 1e-4 * factor)
    weights = [
        torch.randn(t.shape, dtype=torch.float64).to(g.dtype).double() for t, g in zip(expected, got, strict=True)
    ]

    def loss(values: tuple[Tensor, ...]) -> Tensor:
        # Statistics weigh as much as y does, whose gradient is not divided by the number of values.
        terms = zip(values, weights, (1, 30, 30), outputs, strict=True)
        return sum(((v * w.to(v)).sum() * f).double() for v, w, f, used in terms if used)

    grads = torch.autograd.grad(loss(got), args, allow_unused=True)
    wanted = torch.autograd.grad(loss(expected), [t for t in wide if t is not None], allow_unused=True)
    for ours, theirs, leaf in zip(grads, wanted, args, strict=True):
        if theirs is None:
            assert ours is None
            continue
        assert ours.dtype == leaf.dtype and ours.shape == leaf.shape
        least = 0.01 * float((weights[0] * channels(scale, x)).norm()) if smooth and outputs[0] else 0.0
        assert relative_error(ours, theirs, least) <= tolerance


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    x, residual = (laid_out((torch.randn(shape) * 2 + 1).to(device, dtype), layout) for _ in range(2))
    for activation in ACTIVATIONS:
        check(x, None, activation)
        check(x, residual, activation)


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    layouts=st.tuples(*[st.sampled_from([*LAYOUTS, "expanded"])] * 2),
    dtype=st.sampled_from(list(TOLERANCE)),
    activation=st.sampled_from(ACTIVATIONS),
    with_residual=st.booleans(),
    outputs=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    offset=st.floats(-30, 30),
)
def test_any_shape_and_layout(shape, layouts, dtype, activation, with_residual, outputs, offset) -> None:
    x = laid_out((torch.randn(shape, dtype=torch.float64) + offset).to(dtype), layouts[0])
    residual = laid_out((torch.randn(shape, dtype=torch.float64) - offset).to(dtype), layouts[1])
    # Where a channel is nearly constant, its variance is what rounding left of it.
    check(x, residual if with_residual else None, activation, outputs, factor=2 + 3 * abs(offset))


@pytest.mark.parametrize("channels", [1, 3, 6, 16, 19, 24, 32, 33, 64, 96, 144, 515])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    """Rows that are no multiple of a vector, several tasks, and a last one that is smaller."""
    for layout in ("contiguous", "channels_last"):
        shape = (3, channels, 41, 67) if channels < 100 else (3, channels, 13, 7)
        check(*(laid_out(torch.randn(shape).to(dtype), layout) for _ in range(2)), "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(device: str, activation: str, layout: str) -> None:
    x, residual = (
        laid_out(torch.randn(3, 4, 3, 2, dtype=torch.float64, device=device), layout).requires_grad_() for _ in range(2)
    )
    scale, shift = constants(4, device)
    assert torch.autograd.gradcheck(lambda x, r: ops.frozen_bn_act(x, scale, shift, r, activation), (x, residual))
    assert torch.autograd.gradcheck(lambda x: ops.frozen_bn_act(x, scale, shift, None, activation), x)


@pytest.mark.compiled
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_activations_are_torchs(device: str, activation: str, dtype: torch.dtype) -> None:
    """At the kinks, at zeros of both signs, far out and close to zero."""
    values = [0.0, -0.0, 3.0, -3.0, 6.0, -6.0, 1e-30, -1e-30, 1e-4, -1e-4, 30.0, -30.0, 1e4, -1e4, 1e30]
    z = torch.cat([torch.tensor(values), torch.linspace(-12, 12, 4001)]).to(device, dtype)[:, None].requires_grad_()
    wide = exact(z)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    y = ops.frozen_bn_act(z, one, zero, None, activation)[0]
    expected = reference.frozen_bn_act(wide, one.double().cpu(), zero.double().cpu(), None, activation)[0]
    (grad,) = torch.autograd.grad(y.sum(), z)
    (expected_grad,) = torch.autograd.grad(expected.sum(), wide)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(
        y.double().cpu(), expected, rtol=2 * ulp if dtype == torch.bfloat16 else 8 * ulp, atol=8 * ulp
    )
    finite = expected_grad.isfinite()  # float64's own gelu_tanh has 0 times infinity at 1e30, and cancels before
    bound = (64 if dtype == torch.float64 else 8) * ulp
    torch.testing.assert_close(grad.double().cpu()[finite], expected_grad[finite], rtol=bound, atol=bound)
    assert grad.isfinite().all()


@pytest.mark.compiled
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_infinities_and_nan(device: str, activation: str, dtype: torch.dtype) -> None:
    z = torch.tensor([float("inf"), float("-inf"), float("nan")] * 30, device=device, dtype=dtype)[:, None]
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    y = ops.frozen_bn_act(z, one, zero, None, activation)[0]
    # In float64, since F.gelu makes NaN of infinity in float32.
    expected = reference.frozen_bn_act(z.double(), one.double(), zero.double(), None, activation)[0]
    torch.testing.assert_close(y, expected.to(dtype), equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_stays_in_its_channel(device: str, layout: str) -> None:
    values = torch.randn(4, 20, 9, 9, device=device)
    values[1, 3, 2, 2] = float("nan")
    y, mean, var = ops.frozen_bn_act(laid_out(values, layout), *constants(20, device), None, "relu")
    assert y.isnan().sum() == 1 and y[1, 3, 2, 2].isnan()
    for statistic in (mean, var):
        assert statistic.isnan().nonzero().tolist() == [[3]]


def test_nan_stays_at_its_pixel_where_statistics_are_unused(device: str) -> None:
    x = torch.randn(2, 4, 5, 5, device=device)
    x[1, 3, 2, 2] = float("nan")
    x.requires_grad_()
    y, mean, _ = ops.frozen_bn_act(x, torch.ones(4, device=device), torch.zeros(4, device=device), None, "silu")
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert gradient.isnan().nonzero().tolist() == [[1, 3, 2, 2]]
    (gradient,) = torch.autograd.grad(y.nansum() + mean.sum(), x)
    assert gradient[:, :3].isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_cancellation_far_from_zero(device: str, layout: str) -> None:
    """E[x²] − E[x]² in float32 would leave nothing of a variance of 1 at a mean of 10⁴."""
    x = laid_out((torch.randn(16, 32, 14, 14) + 1e4).to(device), layout)
    _, mean, var = ops.frozen_bn_act(x, *constants(32, device))
    expected = reference.channel_statistics(x.double())
    assert relative_error(mean, expected[0]) < 1e-6 and relative_error(var, expected[1]) < 1e-5


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(device: str, layout: str) -> None:
    x, residual, grad = (laid_out(torch.randn(3, 4, 5, 2, device=device), layout) for _ in range(3))
    scale, shift = (c.float() for c in constants(4, device))
    leaves = (x.clone().requires_grad_(), residual.clone().requires_grad_())
    torch.library.opcheck(torch.ops.exml.frozen_bn_act, (leaves[0], scale, shift, leaves[1], "silu"))
    torch.library.opcheck(torch.ops.exml._frozen_bn_act_forward, (x, scale, shift, residual, "silu", 0.0, False))
    torch.library.opcheck(torch.ops.exml._frozen_bn_act_forward, (x, scale, shift, residual, "relu", 0.0, True))
    mask = (x > 0).byte()
    for grads in ((grad, scale, shift), (None, scale, None), (grad, None, None)):
        for kept in ((residual, shift, None, "silu"), (None, shift, mask, "relu")):
            args = (*grads, x, scale, shift, *kept, 0.0, True)
            torch.library.opcheck(torch.ops.exml._frozen_bn_act_backward, args)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles(device: str, layout: str, activation: str) -> None:
    scale, shift = (c.float() for c in constants(6, device))
    x, residual = (laid_out(torch.randn(4, 6, 5, 5, device=device), layout).requires_grad_() for _ in range(2))

    def f(x: Tensor, residual: Tensor) -> Tensor:
        y, mean, var = ops.frozen_bn_act(x.sin(), scale, shift, residual, activation)
        return y.square().sum() + mean.square().sum() + var.sum()

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    results = [(v := g(x, residual), *torch.autograd.grad(v, (x, residual))) for g in (f, compiled)]
    torch.testing.assert_close(results[1], results[0])


def test_keeps_the_memory_format(device: str) -> None:
    x, residual = (laid_out(torch.randn(2, 8, 4, 4, device=device), "channels_last").requires_grad_() for _ in range(2))
    y = ops.frozen_bn_act(x, *constants(8, device), residual, "relu")[0]
    for t in (y, *torch.autograd.grad(y.sum(), (x, residual))):
        assert t.is_contiguous(memory_format=torch.channels_last)


def test_does_not_depend_on_threads() -> None:
    x, (scale, shift) = torch.randn(8, 24, 33, 31), constants(24)
    threads = torch.get_num_threads()
    results = []
    for layout in ("contiguous", "channels_last"):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.stack(ops.frozen_bn_act(laid_out(x, layout), scale, shift)[1:]))
        assert torch.equal(results[-1], results[-2]) and torch.equal(results[-1], results[-3])
    torch.set_num_threads(threads)


@pytest.mark.compiled
@pytest.mark.parametrize("activation,bytes_of_a_value", [("none", 4), ("relu", 5), ("silu", 8)])
def test_saves_nothing_more(activation: str, bytes_of_a_value: int) -> None:
    saved: list[Tensor] = []
    x, residual = (torch.randn(4, 16, 10, 10, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.frozen_bn_act(x, *constants(16), residual, activation)
    large = {t.data_ptr(): t.element_size() for t in saved if t.numel() > 16}
    assert x.data_ptr() in large and sum(large.values()) == bytes_of_a_value


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 4, 4), (2, 19, 13, 11), (2, 64, 9, 9)])
def test_mask_takes_the_place_of_the_residual(device: str, shape: tuple, dtype: torch.dtype, layout: str) -> None:
    x, residual, grad = (laid_out(torch.randn(shape).to(device, dtype), layout) for _ in range(3))
    x.flatten()[0] = float("nan")
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = (c.to(accumulator) for c in constants(shape[1], device))
    forward, backward = torch.ops.exml._frozen_bn_act_forward, torch.ops.exml._frozen_bn_act_backward
    y, mean, var, mask = forward(x, scale, shift, residual, "relu", 0.0, True)
    assert mask.dtype == torch.uint8 and torch.equal(mask.bool(), ~(y <= 0)) and mask.max() == 1
    given = (grad, mean, var, x, scale, shift)
    for ours, theirs in zip(
        backward(*given, None, mean, mask, "relu", 0.0, True),
        backward(*given, residual, mean, None, "relu", 0.0, True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.compiled
def test_bad_masks_are_named() -> None:
    x, c = torch.randn(2, 3, 4, 4), torch.ones(3)
    forward, backward = kernels._frozen_bn_act_forward, kernels._frozen_bn_act_backward
    mask = torch.ones_like(x, dtype=torch.uint8)
    with pytest.raises(ValueError, match="only activation 'relu' has a mask, got 'silu'"):
        forward(x, c, c, x, "silu", 0.0, True)
    for residual, wrong, message in (
        (None, mask.float(), "mask must be uint8 of x's shape"),
        (None, mask[:1], "mask must be uint8 of x's shape"),
        (x, mask, "mask takes the place of residual"),
    ):
        with pytest.raises(ValueError, match=message):
            backward(x, None, None, x, c, c, residual, c, wrong, "relu", 0.0, True)


@pytest.mark.compiled
@pytest.mark.parametrize("residual_needs_grad,planes", [(False, 1), (True, 2)])
def test_backward_allocates_only_the_gradients(residual_needs_grad: bool, planes: int) -> None:
    x, residual, grad = (torch.randn(4, 16, 32, 32) for _ in range(3))
    x.requires_grad_()
    residual.requires_grad_(residual_needs_grad)
    leaves = (x, residual) if residual_needs_grad else (x,)
    y = ops.frozen_bn_act(x, *constants(16), residual, "silu")[0]
    with torch.profiler.profile(profile_memory=True) as profile:
        grads = torch.autograd.grad(y, leaves, grad)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert planes * x.nbytes <= allocated <= planes * x.nbytes + 4096
    assert len(grads) == planes


def test_residual_alone_needs_a_gradient() -> None:
    x, residual = torch.randn(4, 3, 5), torch.randn(4, 3, 5, requires_grad=True)
    scale, shift = constants(3)
    for activation in ("none", "relu"):
        (grad,) = torch.autograd.grad(ops.frozen_bn_act(x, scale, shift, residual, activation)[0].sum(), residual)
        expected = reference.frozen_bn_act(x, scale, shift, residual, activation)[0].sum()
        torch.testing.assert_close(grad, torch.autograd.grad(expected, residual)[0].float())


@pytest.mark.compiled
def test_second_derivative_raises() -> None:
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.frozen_bn_act(x, *constants(3), None, "tanh")[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(grad.square().sum(), x)


def bad_calls() -> list[tuple[str, tuple, str]]:
    x, scale, shift = torch.randn(4, 3, 2, 2), torch.ones(3), torch.zeros(3)
    return [
        ("rank 1", (torch.randn(3), scale, shift), "x must have 2 to 5 dimensions"),
        ("rank 6", (torch.randn(1, 3, 1, 1, 1, 1), scale, shift), "x must have 2 to 5 dimensions"),
        ("empty batch", (torch.randn(0, 3, 2, 2), scale, shift), "x must not be empty"),
        ("integer x", (torch.ones(4, 3, dtype=torch.int64), scale, shift), "x must be float32, bfloat16 or float64"),
        ("channels of scale", (x, torch.ones(4), shift), "scale must have shape"),
        ("channels of shift", (x, scale, torch.ones(3, 1)), "shift must have shape"),
        ("integer scale", (x, torch.ones(3, dtype=torch.int64), shift), "scale must be floating point"),
        ("scale requires grad", (x, scale.clone().requires_grad_(), shift), "scale is taken as a constant"),
        ("shift requires grad", (x, scale, shift.clone().requires_grad_()), "shift is taken as a constant"),
        ("shape of residual", (x, scale, shift, x[:1]), "residual must have x's shape"),
        ("dtype of residual", (x, scale, shift, x.double()), "residual must have x's dtype"),
        ("activation", (x, scale, shift, None, "softsign"), "activation must be"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("args,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.frozen_bn_act(*args)


@pytest.mark.gpu
def test_mixed_cuda_and_cpu_are_named() -> None:
    with pytest.raises(ValueError, match="scale must be on x's device cuda:0"):
        ops.frozen_bn_act(torch.randn(2, 3, device="cuda"), torch.zeros(3), torch.ones(3))


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    scale, shift = (c.float() for c in constants(16, "cuda"))
    x, residual = (torch.randn(8, 16, 12, 12, device="cuda", requires_grad=True) for _ in range(2))

    def step() -> tuple[Tensor, ...]:
        y, mean, var = ops.frozen_bn_act(x, scale, shift, residual, "gelu")
        return torch.autograd.grad(y.square().sum() + mean.square().sum() + var.sum(), (x, residual))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(grads, step())


@pytest.mark.compiled
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for lesser processors give the same results as those chosen here."""
    code = (
        "import torch, exml_fast; from exml_fast import ops; from exml_fast.ops import reference as r\n"
        "print(exml_fast.build_info()['cpu_capability'])\n"
        "s, b = torch.rand(37) + .5, torch.randn(37)\n"
        "for dtype in (torch.float32, torch.bfloat16, torch.float64):\n"
        "  for f in (torch.contiguous_format, torch.channels_last):\n"
        "    for a in r.ACTIVATIONS:\n"
        "      x = torch.randn(4, 37, 9, 11).to(dtype).to(memory_format=f).requires_grad_()\n"
        "      w = x.detach().double().requires_grad_()\n"
        "      y, v = ops.frozen_bn_act(x, s, b, None, a), r.frozen_bn_act(w, s.double(), b.double(), None, a)\n"
        "      t = 1e-2 if dtype == torch.bfloat16 else 1e-5\n"
        "      for p, q in zip(y, v): torch.testing.assert_close(p.double(), q, rtol=t, atol=t)\n"
        "      g, h = torch.autograd.grad(y[0].sum(), x), torch.autograd.grad(v[0].sum(), w)\n"
        "      torch.testing.assert_close(g[0].double(), h[0], rtol=t, atol=t)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "EXML_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == capability
