"""What the derivatives of the compiled ops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Derivative", "once_differentiable"]


class Derivative(torch.autograd.Function):
    """``torch.autograd.Function`` whose ``apply`` saves the search for tensors of ended torch.func transforms.

    The search looks at each argument and takes a tenth of the time of a small op.
    """

    op: ClassVar[str]
    """The public op."""

    _apply: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        base: Any = super(torch.autograd.Function, cls)
        cls._apply = base.apply

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Compute ``forward``, and record ``backward`` where an argument requires grad.

        Raises:
            NotImplementedError: under a torch.func transform.
        """
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                f"{cls.op}: torch.func (grad, jvp, jacrev, vmap) is not supported, because the kernels have "
                "derivatives of torch.autograd alone; use torch.autograd.grad, or exml_fast.ops.reference "
                "under torch.func"
            )
        return cls._apply(*args)


def once_differentiable(op: str, tensors: Sequence[Tensor | None], compute: Callable[[], Any]) -> Any:
    """The gradients that ``compute`` returns, which depend on ``tensors``.

    The kernels of backward passes have no derivatives. Where PyTorch records the backward pass (``create_graph``), a
    derivative of the gradients raises NotImplementedError instead of being silently wrong.
    """
    return _OnceDifferentiable.apply(op, compute, *tensors) if torch.is_grad_enabled() else compute()


class _OnceDifferentiable(Derivative):
    op = "a derivative"

    @staticmethod
    def forward(ctx: Any, op: str, compute: Callable[[], Any], *tensors: Tensor | None) -> Any:
        ctx.op = op
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{ctx.op}: second derivatives are not implemented; use exml_fast.ops.reference where you need them"
        )
