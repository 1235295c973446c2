"""What the derivatives of the compiled ops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["once_differentiable"]


def once_differentiable(op: str, tensors: Sequence[Tensor | None], compute: Callable[[], Any]) -> Any:
    """The gradients that ``compute`` returns, which depend on ``tensors``.

    The kernels of backward passes have no derivatives. Where PyTorch records the backward pass (``create_graph``), a
    derivative of the gradients raises NotImplementedError instead of being silently wrong.
    """
    return _OnceDifferentiable.apply(op, compute, *tensors) if torch.is_grad_enabled() else compute()


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, compute: Callable[[], Any], *tensors: Tensor | None) -> Any:
        ctx.op = op
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{ctx.op}: second derivatives are not implemented; use exml_fast.ops.reference where you need them"
        )
