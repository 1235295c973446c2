"""What the BatchNorm layers of a network see, beside the statistics that they remember (Yin 2020, Eqs. 4 to 6)."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["LayerInput", "StatisticsCapture", "bn_layers"]


class LayerInput(NamedTuple):
    """One call of one BatchNorm layer."""

    x: Tensor
    """Its input (N, C, ...), attached to the graph."""
    mean: Tensor
    """Its running mean (C,)."""
    var: Tensor
    """Its running variance (C,)."""


def bn_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of every BatchNorm, in the order of registration, each module once.

    BatchNorm1d, 2d, 3d, SyncBatchNorm and their subclasses (timm's BatchNormAct2d), and any module with
    ``running_mean`` and ``running_var`` of one dimension (torchvision's FrozenBatchNorm2d); never InstanceNorm.
    """
    return [(name, module) for name, module in model.named_modules() if _is_batch_norm(module)]


class StatisticsCapture:
    """Context in which every call of a BatchNorm layer of ``model`` is appended to :attr:`calls`.

    A layer that runs twice is in the list twice. The owner clears the list before each forward pass. The hooks go
    when the context ends.

    Raises:
        ValueError: on construction, naming the layers that keep no running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[LayerInput] = []
        self._layers = bn_layers(model)
        self._handles: list[Any] = []
        if without := [name for name, module in self._layers if not isinstance(module.running_mean, Tensor)]:
            raise ValueError(
                f"BatchNorm layers without running statistics (track_running_stats=False) cannot be matched: "
                f"{', '.join(without)}; set the recipe's bn=0"
            )

    def __len__(self) -> int:
        """Number of BatchNorm layers."""
        return len(self._layers)

    def clear(self) -> None:
        """Forget the calls so far."""
        self.calls.clear()

    def __enter__(self) -> StatisticsCapture:
        self._handles = [m.register_forward_pre_hook(self._record, with_kwargs=True) for _, m in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.calls.clear()

    def _record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.calls.append(LayerInput(x, module.running_mean, module.running_var))


def _is_batch_norm(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return True
    if isinstance(module, _InstanceNorm):
        return False
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape
