"""Checks that every op must pass, written once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from exml_fast._native import COMPILED

# Relative error against the float64 reference: rounding of the inputs is not part of it, rounding of the gradient is.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 6e-3}


def run_python(code: str, **environment: str) -> None:
    """In a process of its own, with the seed of all tests."""
    run = subprocess.run(
        [sys.executable, "-c", f"import torch\ntorch.manual_seed(0)\n{code}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


def relative_error(value: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Error in the l2 norm, relative to the norm of ``reference``, or to ``least`` where that is larger."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    scale = reference.norm().clamp(min=least)
    return float((value - reference).norm() / (scale if scale > 0 else 1))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "contiguous":
        return values.contiguous()
    if layout == "channels_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":  # every other element of a larger tensor
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), float("nan"))
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "expanded":  # equal images, stride 0
        return values[:1].expand_as(values)
    raise ValueError(layout)


def assert_matches_reference(
    op: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    x: Tensor,
    factor: float = 1.0,
    least_gradient: float = 0.0,
) -> None:
    """Value and gradient of ``op`` at ``x`` agree with ``reference`` in float64; outputs are weighted at random.

    ``least_gradient``: of a gradient that vanishes as a difference of larger numbers, their size.
    """
    x = x.detach().requires_grad_()
    exact = x.detach().double().cpu().requires_grad_()
    value, expected = op(x), reference(exact)
    assert value.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert value.shape == expected.shape and value.device == x.device
    weights = torch.rand(value.shape, dtype=torch.float64) + 0.5
    (grad,) = torch.autograd.grad((value * weights.to(value)).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert grad.dtype == x.dtype and grad.shape == x.shape
    tolerance = TOLERANCE[x.dtype] * factor
    # Losses are summed in float32 or better, whatever the dtype of the pixels.
    assert relative_error(value, expected) <= min(tolerance, 1e-4)
    assert relative_error(grad, expected_grad, least_gradient) <= tolerance


def assert_compiles(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Same value and gradient under torch.compile(fullgraph=True), traced through autograd, as in eager mode."""
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    results = []
    for f in (op, compiled):
        leaf = x.detach().requires_grad_()
        value = f(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        results.append((value.detach(), grad))
    torch.testing.assert_close(results[1], results[0])


def assert_second_derivative_raises(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
    try:
        torch.autograd.grad((grad**2).sum(), x)
    except RuntimeError as error:
        assert "second derivatives are not implemented" in str(error)
    else:
        assert not COMPILED, "a second derivative was returned"  # PyTorch's own functions have all derivatives
