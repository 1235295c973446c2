from __future__ import annotations

import math
from collections.abc import Callable

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
)
from torch.utils._python_dispatch import TorchDispatchMode

from exml_fast import ops
from exml_fast.ops import reference


def check(logits: torch.Tensor, temperature: float, reduction: str, least_gradient: float = 0.0) -> None:
    """``logits`` (2, N, K): the teacher's and the student's."""
    assert_matches_reference(
        lambda z: ops.jensen_shannon(z[0], z[1], temperature, reduction),
        lambda z: reference.jensen_shannon(z[0], z[1], temperature, reduction),
        logits,
        least_gradient=least_gradient,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (17, 10), (5, 16), (4, 33), (3, 1000), (2, 2048)])
def test_matches_reference(device: str, shape: tuple[int, int], reduction: str, dtype: torch.dtype) -> None:
    check((torch.randn(2, *shape, dtype=torch.float64, device=device) * 4).to(dtype), 2.0, reduction)


@pytest.mark.parametrize(("size", "temperature"), [(30.0, 0.05), (1000.0, 1.0), (3000.0, 3.0)])
def test_large_logits_lose_nothing(device: str, size: float, temperature: float) -> None:
    """The classes that matter are near each other, far from zero: their differences are exact."""
    near = torch.randn(2, 64, 10, dtype=torch.float64, device=device) * temperature
    z = (near + torch.randn(2, 64, 1, dtype=torch.float64, device=device) * size).float().requires_grad_()
    exact = z.detach().double().requires_grad_()
    loss = ops.jensen_shannon(z[0], z[1], temperature, "none")
    expected = reference.jensen_shannon(exact[0], exact[1], temperature, "none")
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)
    (found,), (wanted,) = torch.autograd.grad(loss.sum(), z), torch.autograd.grad(expected.sum(), exact)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-6


shapes_and_values = {
    "rows": st.integers(1, 40),
    "classes": st.integers(2, 70),
    "layout": st.sampled_from(["contiguous", "strided", "channels_last"]),
    "dtype": st.sampled_from(list(TOLERANCE)),
    "temperature": st.floats(0.5, 50),
    "scale": st.floats(0.1, 10),
}


def drawn(rows: int, classes: int, layout: str, dtype: torch.dtype, scale: float) -> torch.Tensor:
    return laid_out((torch.randn(2, rows, classes, dtype=torch.float64) * scale).to(dtype), layout)


@given(**shapes_and_values, reduction=st.sampled_from(["mean", "sum", "none"]))
def test_any_shape_and_layout(rows, classes, layout, dtype, temperature, scale, reduction) -> None:
    share = 1 / rows if reduction == "mean" else 1
    saturates = share / temperature  # one class has nearly all the probability, and the gradient vanishes
    check(drawn(rows, classes, layout, dtype, scale), temperature, reduction, saturates)


@given(**shapes_and_values, shift=st.floats(-30, 30))
def test_what_a_divergence_is(rows, classes, layout, dtype, temperature, scale, shift) -> None:
    p, q = drawn(rows, classes, layout, dtype, scale)
    value = ops.jensen_shannon(p, q, temperature, "none")
    rounding = 1e-12 if dtype == torch.float64 else 2e-5
    assert (value >= 1 - math.log(2) - rounding).all() and (value <= 1 + rounding).all()
    torch.testing.assert_close(ops.jensen_shannon(q, p, temperature, "none"), value, rtol=rounding, atol=0)
    assert (ops.jensen_shannon(p, p.clone(), temperature, "none") == 1).all()
    if dtype != torch.bfloat16:  # which the shift itself would round
        moved = ops.jensen_shannon(p + shift, q, temperature, "none")
        torch.testing.assert_close(moved, value, rtol=rounding, atol=0)


def test_value_by_hand(device: str) -> None:
    p, q = torch.tensor([[0.5, 0.5]], device=device), torch.tensor([[0.25, 0.75]], device=device)
    expected = 1 - 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625))
    expected -= 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625))
    assert ops.jensen_shannon(p.log(), q.log()).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(device: str, reduction: str) -> None:
    p, q = (torch.randn(4, 7, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda p, q: ops.jensen_shannon(p, q, 1.7, reduction), (p, q))
    assert torch.autograd.gradcheck(lambda z: ops.jensen_shannon(z, z * 0.5, 1.7, reduction), p)


class Calls(TorchDispatchMode):
    """Counts the ops that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.compiled
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("student", [False, True])
def test_computes_only_the_gradients_asked_for(device: str, teacher: bool, student: bool) -> None:
    logits = [torch.randn(3, 5, device=device, requires_grad=wanted) for wanted in (teacher, student)]
    exact = [z.detach().double().requires_grad_(z.requires_grad) for z in logits]
    loss, expected = ops.jensen_shannon(*logits), reference.jensen_shannon(*exact)
    assert loss.requires_grad == (teacher or student)
    if not loss.requires_grad:
        return
    with Calls() as calls:
        loss.backward()
    expected.backward()
    assert calls.names.count("exml::_jensen_shannon_backward") == teacher + student
    for z, x in zip(logits, exact, strict=True):
        assert (z.grad is None) == (not z.requires_grad)
        if z.requires_grad:
            torch.testing.assert_close(z.grad.double(), x.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.compiled
def test_saves_the_logits_and_two_numbers_a_row(device: str) -> None:
    p, q = (torch.randn(6, 50, device=device, requires_grad=True) for _ in range(2))
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        ops.jensen_shannon(p, q)
    assert sorted(saved) == [(6,), (6,), (6, 50), (6, 50)]


@pytest.mark.compiled
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(device: str, reduction: str) -> None:
    p, q = (torch.randn(4, 7, device=device, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.exml.jensen_shannon, (p, q, 2.0, reduction))
    torch.library.opcheck(torch.ops.exml.jensen_shannon, (p.detach(), q, 2.0, reduction))
    p, q = p.detach(), q.detach()
    torch.library.opcheck(torch.ops.exml._jensen_shannon_forward, (p, q, 2.0, reduction))
    loss, p_lse, q_lse = torch.ops.exml._jensen_shannon_forward(p, q, 2.0, reduction)
    arguments = (torch.ones_like(loss), p, q, p_lse, q_lse, 2.0, reduction)
    torch.library.opcheck(torch.ops.exml._jensen_shannon_backward, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles(device: str, reduction: str) -> None:
    teacher, z = torch.randn(6, 10, device=device), torch.randn(6, 10, device=device)
    assert_compiles(lambda z: ops.jensen_shannon(teacher, z * 2, 4.0, reduction), z)
    assert_compiles(lambda z: ops.jensen_shannon(z * 2, z.sin(), 4.0, reduction), z)


@pytest.mark.compiled
def test_extreme_logits(device: str) -> None:
    """Probabilities that underflow to 0, in either or both: no NaN."""
    p = torch.tensor([[1e4, 0, -1e4], [1e4, 0, -1e4], [1e4, 1e4, -1e4], [3e38, -3e38, 0]], device=device)
    q = torch.tensor([[1e4, 0, -1e4], [-1e4, 0, 1e4], [1e4, -1e4, -1e4], [-3e38, 3e38, 0]], device=device)
    p.requires_grad_(), q.requires_grad_()
    value = ops.jensen_shannon(p, q, reduction="none")
    shared = 1 - 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2) + math.log(4 / 3))
    expected = torch.tensor([1, 1 - math.log(2), shared, 1 - math.log(2)], device=device)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)  # the last place of 1e4 is 1e-3
    for grad in torch.autograd.grad(value.sum(), (p, q)):
        assert grad.isfinite().all() and (grad[[0, 1, 3]] == 0).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_gives_nan(device: str, bad: float, side: int) -> None:
    logits = torch.randn(2, 3, 20, device=device)
    logits[side, 1, 7] = bad
    logits.requires_grad_()
    loss = ops.jensen_shannon(logits[0], logits[1], reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(2).tolist() == [[False, True, False]] * 2
    assert grad.isnan().any(2).tolist() == [[False, True, False]] * 2
    assert ops.jensen_shannon(logits[0], logits[1]).isnan()


@pytest.mark.parametrize("jensen_shannon", [ops.jensen_shannon, reference.jensen_shannon])
@pytest.mark.parametrize("excluded", [1, 20])
def test_a_class_that_both_exclude_gives_nan(device: str, jensen_shannon: Callable, excluded: int) -> None:
    p, q = torch.randn(3, 20, device=device), torch.randn(3, 20, device=device)
    finite = p.clone(), q.clone()
    for logits, value in ((p, -float("inf")), (q, -float("inf")), (finite[0], -1e4), (finite[1], -1e4)):
        logits[1, :excluded] = value
    loss = jensen_shannon(p.requires_grad_(), q.requires_grad_(), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    for grad in torch.autograd.grad(loss.sum(), (p, q)):
        assert grad.isnan().all(1).tolist() == grad.isnan().any(1).tolist() == [False, True, False]
    # What the docstring advises: classes that none gives any probability count for nothing.
    if excluded == 1:
        without = jensen_shannon(p[1:2, 1:], q[1:2, 1:])
        torch.testing.assert_close(jensen_shannon(*finite, reduction="none")[1], without)


def test_classes_without_a_clamp_all_count() -> None:
    """A clamp of the probabilities at 0.01, as published, would hide that nearly all classes differ."""
    p, q = (torch.randn(4, 1000, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad(ops.jensen_shannon(p, q), q)
    assert (grad != 0).all()


def test_deterministic(device: str) -> None:
    p, q = (torch.randn(300, 1500, device=device, requires_grad=True) for _ in range(2))
    results = []
    for _ in range(3):
        loss = ops.jensen_shannon(p, q)
        results.append((loss.detach(), *torch.autograd.grad(loss, (p, q))))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_second_derivative_raises() -> None:
    other = torch.randn(3, 5)
    assert_second_derivative_raises(lambda z: ops.jensen_shannon(z, other), torch.randn(3, 5))
    assert_second_derivative_raises(lambda z: ops.jensen_shannon(other, z), torch.randn(3, 5))


def bad_calls() -> list[tuple[str, tuple, type[Exception], str]]:
    z = torch.randn(4, 3)
    return [
        ("rank 3", (z[None], z[None]), ValueError, "teacher_logits must have shape"),
        ("empty batch", (z[:0], z[:0]), ValueError, "teacher_logits must have shape"),
        ("no classes", (z[:, :0], z[:, :0]), ValueError, "teacher_logits must have shape"),
        ("integer teacher", (z.long(), z), ValueError, "teacher_logits must be float32, bfloat16 or float64"),
        ("half student", (z, z.half()), ValueError, "student_logits must be float32, bfloat16 or float64"),
        ("shapes", (z, z[:, :2]), ValueError, r"student_logits must have teacher_logits' shape \[4, 3\], got \[4, 2\]"),
        ("dtypes", (z, z.double()), ValueError, "student_logits must have teacher_logits' dtype Float, got Double"),
        ("negative temperature", (z, z, -1.0), ValueError, "temperature must be positive and finite, got -1"),
        ("zero temperature", (z, z, 0.0), ValueError, "temperature must be positive"),
        ("nan temperature", (z, z, float("nan")), ValueError, "temperature must be positive"),
        ("reduction", (z, z, 1.0, "max"), ValueError, "jensen_shannon: reduction must be 'none', 'mean' or 'sum', got"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("args,error,message", [c[1:] for c in bad_calls()], ids=[c[0] for c in bad_calls()])
def test_bad_input_is_named(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.jensen_shannon(*args)


@pytest.mark.gpu
def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="student_logits must be on teacher_logits's device cuda:0, got cpu"):
        ops.jensen_shannon(torch.randn(2, 3, device="cuda"), torch.randn(2, 3))
