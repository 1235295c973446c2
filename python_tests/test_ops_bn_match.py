from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import (
    TOLERANCE,
    assert_compiles,
    assert_matches_reference,
    assert_second_derivative_raises,
    laid_out,
    relative_error,
)

from exml_fast import ops
from exml_fast.ops import reference

DISTANCES = ["l2", "squared", "gaussian_kl"]
MOMENTS = ["var", "std"]
SHAPES = [(1, 1, 1, 1), (5, 3), (3, 70), (4, 5, 9), (2, 17, 5, 7), (3, 64, 8, 8), (2, 33, 3, 4, 5), (2, 3, 40, 40)]


def statistics(channels: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(channels, dtype=torch.float64, device=device), torch.rand(
        channels, dtype=torch.float64, device=device
    ) + 0.5


def check(x: torch.Tensor, distance: str, moment: str, factor: float = 1.0) -> None:
    mean, var = statistics(x.shape[1])
    assert_matches_reference(
        lambda x: ops.bn_match(x, mean.to(x.device), var.to(x.device), distance, moment),
        lambda x: reference.bn_match(x, mean, var, distance, moment),
        x,
        factor,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    values = torch.randn(shape, dtype=torch.float64, device=device) * 3 + 5
    x = laid_out(values.to(dtype), layout)
    for distance, moment in itertools.product(DISTANCES, MOMENTS):
        if distance == "gaussian_kl" and values.numel() // shape[1] == 1:
            continue  # one value has no variance: infinite by definition, tested below
        check(x, distance, moment)


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    distance=st.sampled_from(["l2", "squared"]),
    moment=st.sampled_from(MOMENTS),
    offset=st.floats(-100, 100),
)
def test_any_shape_and_layout(shape, layout, dtype, distance, moment, offset) -> None:
    x = laid_out((torch.randn(shape, dtype=torch.float64) + offset).to(dtype), layout)
    # Where a channel is nearly constant, its variance is what rounding left of it.
    check(x, distance, moment, factor=1 + abs(offset))


def test_formulas_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # means 2 and 4, biased variances 1 and 4
    mean, var = torch.tensor([2.0, 1.0]), torch.tensor([4.0, 4.0])
    assert ops.bn_match(x, mean, var).item() == pytest.approx(3 + 3)
    assert ops.bn_match(x, mean, var, "squared").item() == pytest.approx(9 + 9)
    assert ops.bn_match(x, mean, var, "squared", "std").item() == pytest.approx(9 + 1)
    kl = 0.5 * (0.25 - 1 - torch.tensor(0.25).log()) + 0.5 * (9 / 4)
    assert ops.bn_match(x, mean, var, "gaussian_kl").item() == pytest.approx(kl.item())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(device: str, distance: str, moment: str, layout: str) -> None:
    x = laid_out(torch.randn(3, 4, 3, 2, dtype=torch.float64, device=device), layout).requires_grad_()
    mean, var = statistics(4, device)
    assert torch.autograd.gradcheck(lambda x: ops.bn_match(x, mean, var, distance, moment), x)


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(device: str, layout: str) -> None:
    x = laid_out(torch.randn(3, 4, 5, 2, device=device), layout).requires_grad_()
    mean, var = (s.float() for s in statistics(4, device))
    torch.library.opcheck(torch.ops.exml.bn_match, (x, mean, var))
    torch.library.opcheck(torch.ops.exml._bn_match_forward, (x.detach(), mean, var, "l2", "var"))
    grad = torch.ones((), device=device)
    torch.library.opcheck(torch.ops.exml._bn_match_backward, (grad, x.detach(), torch.randn(3, 4, device=device)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles(device: str, layout: str) -> None:
    mean, var = (s.float() for s in statistics(6, device))
    x = laid_out(torch.randn(4, 6, 5, 5, device=device), layout)
    assert_compiles(lambda x: ops.bn_match(x.relu(), mean, var), x)


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    mean, var = (s.float() for s in statistics(6))
    x = torch.randn(4, 6, 5, 5)
    compiled = torch.compile(lambda x: ops.bn_match(x, mean, var), fullgraph=True)
    torch.testing.assert_close(compiled(x), ops.bn_match(x, mean, var))


def test_gradient_keeps_the_memory_format(device: str) -> None:
    mean, var = statistics(8, device)
    x = torch.randn(2, 8, 4, 4, device=device).to(memory_format=torch.channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(ops.bn_match(x, mean, var), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_gradient_at_a_perfect_match_is_zero(device: str) -> None:
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0]], device=device, requires_grad=True)  # a constant channel too
    mean, var = torch.tensor([2.0, 7.0], device=device), torch.tensor([1.0, 0.0], device=device)
    for distance, moment in itertools.product(["l2", "squared"], MOMENTS):
        loss = ops.bn_match(x, mean, var, distance, moment)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0 and (grad == 0).all()


def test_kl_to_a_constant_channel_is_infinite(device: str) -> None:
    x = torch.full((3, 2), 4.0, device=device)
    assert ops.bn_match(x, torch.zeros(2, device=device), torch.ones(2, device=device), "gaussian_kl").isinf()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_nan(device: str, layout: str, bad: float) -> None:
    values = torch.randn(4, 20, 9, 9, device=device)
    values[1, 3, 2, 2] = bad
    x = laid_out(values, layout).requires_grad_()
    loss = ops.bn_match(x, *statistics(20, device))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and grad[:, 3].isnan().any()


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_cancellation_far_from_zero(device: str, layout: str) -> None:
    """E[x²] − E[x]² in float32 would leave nothing of a variance of 1 at a mean of 10⁴."""
    x = laid_out((torch.randn(16, 32, 14, 14) + 1e4).to(device), layout)
    mean, zero = x.double().mean((0, 2, 3)).float(), torch.zeros(32, device=device)
    expected = reference.bn_match(x.double(), mean.double(), zero.double())
    assert relative_error(ops.bn_match(x, mean, zero), expected) < 1e-5


def test_does_not_depend_on_threads() -> None:
    x = torch.randn(8, 24, 33, 31)
    mean, var = statistics(24)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for layout in ("contiguous", "channels_last"):
            results.append((layout, ops.bn_match(laid_out(x, layout), mean, var).item()))
    torch.set_num_threads(threads)
    assert len(set(results)) == 2


@pytest.mark.compiled
def test_saves_no_copy_of_x() -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(4, 16, 10, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.bn_match(x, *statistics(16))
    own = [t for t in saved if t.data_ptr() != x.data_ptr()]
    assert len(saved) == 2 and sum(t.numel() for t in own) == 3 * 16


def test_second_derivative_raises() -> None:
    mean, var = statistics(3)
    assert_second_derivative_raises(lambda x: ops.bn_match(x, mean, var), torch.randn(4, 3, 2, 2))


def test_float16_statistics_and_mixed_dtypes() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
    mean, var = torch.randn(3).half(), torch.rand(3).bfloat16()
    torch.testing.assert_close(
        ops.bn_match(x, mean, var).double(), reference.bn_match(x.double(), mean.double(), var.double())
    )


def bad_calls() -> list[tuple[str, tuple, str]]:
    x, mean, var = torch.randn(4, 3, 2, 2), torch.zeros(3), torch.ones(3)
    return [
        ("rank 1", (torch.randn(3), mean, var), "x must have 2 to 5 dimensions"),
        ("rank 6", (torch.randn(1, 3, 1, 1, 1, 1), mean, var), "x must have 2 to 5 dimensions"),
        ("empty batch", (torch.randn(0, 3, 2, 2), mean, var), "x must not be empty"),
        ("integer pixels", (torch.ones(4, 3, dtype=torch.int64), mean, var), "x must be float32, bfloat16 or float64"),
        ("channels of mean", (x, torch.zeros(4), var), "mean must have shape"),
        ("channels of var", (x, mean, torch.ones(3, 1)), "var must have shape"),
        ("integer mean", (x, torch.zeros(3, dtype=torch.int64), var), "mean must be floating point"),
        ("mean requires grad", (x, mean.clone().requires_grad_(), var), "mean is taken as a constant"),
        ("distance", (x, mean, var, "l3"), "distance must be"),
        ("moment", (x, mean, var, "l2", "skew"), "moment must be"),
    ]


@pytest.mark.parametrize("args,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.bn_match(*args)


@pytest.mark.gpu
def test_mixed_cuda_and_cpu_are_named() -> None:
    with pytest.raises(ValueError, match="mean must be on x's device cuda:0"):
        ops.bn_match(torch.randn(2, 3, device="cuda"), torch.zeros(3), torch.ones(3))


@pytest.mark.compiled
@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for lesser processors give the same results as those chosen here."""
    code = (
        "import torch, exml_fast; from exml_fast import ops; from exml_fast.ops import reference as r\n"
        "print(exml_fast.build_info()['cpu_capability'])\n"
        "torch.manual_seed(0); x = torch.randn(4, 37, 9, 11); m, v = torch.randn(37), torch.rand(37) + .5\n"
        "for dtype in (torch.float32, torch.bfloat16, torch.float64):\n"
        "  for f in (torch.contiguous_format, torch.channels_last):\n"
        "    y = x.to(dtype).to(memory_format=f)\n"
        "    torch.testing.assert_close(ops.bn_match(y, m, v).double(), r.bn_match(y.double(), m.double(), v.double()),"
        " rtol=1e-5, atol=1e-5)\n"
        "    torch.testing.assert_close(torch.stack(ops.image_prior(y)).double(),"
        " torch.stack(r.image_prior(y.double())), rtol=1e-5, atol=1e-5)\n"
        "z = torch.randn(5, 37); t = torch.rand(5, 37)\n"
        "torch.testing.assert_close(ops.soft_cross_entropy(z, t), r.soft_cross_entropy(z, t))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "EXML_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == capability
