from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from op_checks import (
    TOLERANCE,
    assert_compiles,
    assert_matches_reference,
    assert_second_derivative_raises,
    laid_out,
)

from exml_fast import ops
from exml_fast.ops import reference


def check(logits: torch.Tensor, target: torch.Tensor, temperature: float, reduction: str) -> None:
    exact = target.cpu() if target.dtype == torch.int64 else target.double().cpu()
    assert_matches_reference(
        lambda z: ops.soft_cross_entropy(z, target, temperature, reduction),
        lambda z: reference.soft_cross_entropy(z, exact, temperature, reduction),
        logits,
        # The gradient is p − y over the temperature, and its parts do not vanish where it does.
        least_gradient=0.05 / temperature / (len(logits) if reduction == "mean" else 1),
    )


def targets(kind: str, rows: int, classes: int, device: str = "cpu") -> torch.Tensor:
    if kind == "indices":
        return torch.randint(classes, (rows,), device=device)
    soft = torch.rand(rows, classes, device=device)
    return soft if kind == "unnormalised" else soft / soft.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["indices", "soft", "unnormalised"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (17, 10), (5, 16), (4, 33), (3, 1000), (2, 2048)])
def test_matches_reference(device: str, shape: tuple[int, int], reduction: str, kind: str, dtype: torch.dtype) -> None:
    if shape[1] == 1 and kind != "unnormalised":
        kind = "indices"
    logits = (torch.randn(shape, dtype=torch.float64, device=device) * 4).to(dtype)
    check(logits, targets(kind, *shape, device), 2.0, reduction)


@pytest.mark.parametrize("kind", ["indices", "soft"])
@pytest.mark.parametrize(("size", "temperature"), [(30.0, 0.05), (1000.0, 1.0), (1e5, 10.0)])
def test_large_logits_lose_nothing(device: str, kind: str, size: float, temperature: float) -> None:
    """The classes that matter are near each other, far from zero: their differences are exact."""
    near = torch.randn(64, 10, dtype=torch.float64, device=device) * temperature
    z = (near + torch.randn(64, 1, dtype=torch.float64, device=device) * size).float().requires_grad_()
    target, exact = targets(kind, 64, 10, device), z.detach().double().requires_grad_()
    loss = ops.soft_cross_entropy(z, target, temperature, "none")
    precise = target if kind == "indices" else target.double()
    expected = reference.soft_cross_entropy(exact, precise, temperature, "none")
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=2e-6)
    (found,), (wanted,) = torch.autograd.grad(loss.sum(), z), torch.autograd.grad(expected.sum(), exact)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-6


@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 70),
    layout=st.sampled_from(["contiguous", "strided", "channels_last"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    kind=st.sampled_from(["indices", "soft", "unnormalised"]),
    temperature=st.floats(0.1, 50),
    scale=st.floats(0.01, 30),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_any_shape_and_layout(rows, classes, layout, dtype, kind, temperature, scale, reduction) -> None:
    values = torch.randn(rows, classes, dtype=torch.float64) * scale
    logits = values.t().contiguous().t() if layout == "channels_last" else laid_out(values, layout)
    check(logits.to(dtype) if layout == "contiguous" else logits, targets(kind, rows, classes), temperature, reduction)


def test_is_torchs_cross_entropy() -> None:
    logits, index = torch.randn(8, 10), torch.randint(10, (8,))
    soft = torch.softmax(torch.randn(8, 10), 1)
    torch.testing.assert_close(ops.soft_cross_entropy(logits, index), F.cross_entropy(logits, index))
    torch.testing.assert_close(ops.soft_cross_entropy(logits, soft, 3.0), F.cross_entropy(logits / 3, soft))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(device: str, reduction: str) -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, device=device, requires_grad=True)
    for kind in ("indices", "unnormalised"):
        target = targets(kind, 4, 7, device)
        assert torch.autograd.gradcheck(lambda z, t=target: ops.soft_cross_entropy(z, t, 1.7, reduction), logits)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["indices", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(device: str, kind: str, reduction: str) -> None:
    logits, target = torch.randn(4, 7, device=device, requires_grad=True), targets(kind, 4, 7, device)
    torch.library.opcheck(torch.ops.exml.soft_cross_entropy, (logits, target, 2.0, reduction))
    z = logits.detach()
    torch.library.opcheck(torch.ops.exml._soft_cross_entropy_forward, (z, target, 2.0, reduction))
    loss, lse = torch.ops.exml._soft_cross_entropy_forward(z, target, 2.0, reduction)
    arguments = (torch.ones_like(loss), z, target, lse, 2.0, reduction)
    torch.library.opcheck(torch.ops.exml._soft_cross_entropy_backward, arguments)


@pytest.mark.parametrize("kind", ["indices", "soft"])
def test_compiles(device: str, kind: str) -> None:
    target = targets(kind, 6, 10, device)
    assert_compiles(lambda z: ops.soft_cross_entropy(z * 2, target, 4.0), torch.randn(6, 10, device=device))


def test_large_and_masked_logits(device: str) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, float("-inf"), 1.0]], device=device)
    loss = ops.soft_cross_entropy(logits, torch.tensor([1, 2], device=device), reduction="none")
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, 2], device=device), reduction="none"))


def test_nan_stays_nan(device: str) -> None:
    logits = torch.randn(3, 20, device=device)
    logits[1, 7] = float("nan")
    logits.requires_grad_()
    loss = ops.soft_cross_entropy(logits, torch.tensor([0, 1, 2], device=device), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, False]


def test_second_derivative_raises() -> None:
    target = torch.randint(5, (3,))
    assert_second_derivative_raises(lambda z: ops.soft_cross_entropy(z, target), torch.randn(3, 5))


def bad_calls() -> list[tuple[str, tuple, type[Exception], str]]:
    z, index, soft = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.full((4, 3), 1 / 3)
    return [
        ("rank 3", (z[None], index), ValueError, "logits must have shape"),
        ("empty batch", (z[:0], index[:0]), ValueError, "logits must have shape"),
        ("integer logits", (z.long(), index), ValueError, "logits must be float32, bfloat16 or float64"),
        ("soft target shape", (z, soft[:, :2]), ValueError, "soft target must have the logits' shape"),
        ("index target shape", (z, index[:3]), ValueError, "target indices must have shape"),
        ("int32 target", (z, index.int()), ValueError, "target must be int64"),
        ("target requires grad", (z, soft.clone().requires_grad_()), ValueError, "target is taken as a constant"),
        ("negative temperature", (z, index, -1.0), ValueError, "temperature must be positive and finite, got -1"),
        ("zero temperature", (z, index, 0.0), ValueError, "temperature must be positive"),
        ("nan temperature", (z, index, float("nan")), ValueError, "temperature must be positive"),
        ("reduction", (z, index, 1.0, "max"), ValueError, "reduction must be"),
        ("index too large", (z, index + 3), IndexError, r"target must be in \[0, 3\), got 3 at row 0"),
        ("negative index", (z, index - 1), IndexError, "got -1"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("args,error,message", [c[1:] for c in bad_calls()], ids=[c[0] for c in bad_calls()])
def test_bad_input_is_named(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.soft_cross_entropy(*args)


@pytest.mark.gpu
def test_index_out_of_range_is_nan_on_cuda() -> None:
    loss = ops.soft_cross_entropy(
        torch.randn(2, 3, device="cuda"), torch.tensor([3, 0], device="cuda"), reduction="none"
    )
    assert loss.isnan().tolist() == [True, False]
