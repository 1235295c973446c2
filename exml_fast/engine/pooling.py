"""Average pooling of a frozen network."""

from __future__ import annotations

from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.freezing import is_untouched

__all__ = ["AveragePool2d"]


class AveragePool2d(nn.Module):
    """``nn.AvgPool2d`` over windows that do not overlap, by :func:`exml_fast.ops.average_pool2d`."""

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel

    @classmethod
    def of(cls, pool: nn.Module) -> AveragePool2d | None:
        """The equivalent of ``pool``; None where this class has no equivalent."""
        if type(pool) is not nn.AvgPool2d or not is_untouched(pool):
            return None
        if pool.ceil_mode or pool.divisor_override is not None:
            return None
        kernel, stride, padding = map(_pair, (pool.kernel_size, pool.stride, pool.padding))
        return cls(kernel) if stride == kernel and padding == (0, 0) else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H // height, W // width)."""
        if x.dim() != 4:
            return nn.functional.avg_pool2d(x, self.kernel)
        return ops.average_pool2d(x, self.kernel)

    def extra_repr(self) -> str:
        """The window."""
        return str(self.kernel)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
