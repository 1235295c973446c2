"""What an objective needs of a network, and the reference in plain PyTorch that gives it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exml_fast.data import DataSource, InputSpec
from exml_fast.data.foreign import network_statistics
from exml_fast.engine.freezing import device_of, dtype_name, dtype_of, frozen_copy, probe
from exml_fast.engine.statistics import (
    LayerStatistics,
    StatisticsCapture,
    Tape,
    observe,
    pooled_statistics,
    require_module,
)

__all__ = ["EagerTeacher", "Teacher", "check_statistics", "with_targets"]


class Teacher(Protocol):
    """What an objective needs of a network."""

    num_classes: int
    matched_calls: int
    """The number of calls with statistics in a forward pass: of BatchNorms, or of the named layers."""
    precision: str
    """The name of the dtype inside."""

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerStatistics]]:
        """Logits (N, K) of normalised images (N, C, H, W), and a LayerStatistics for each call with statistics."""
        ...


class EagerTeacher:
    """The reference of :class:`FrozenTeacher`: the unchanged layers, and statistics by ``torch.var_mean`` in hooks.

    The arguments and errors are those of :class:`FrozenTeacher`. The network computes in its own dtype.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        device: torch.device | str | None = None,
        statistics: str | Tensor | DataSource = "running",
        layers: Sequence[str] = (),
    ) -> None:
        require_module(model)
        statistics = network_statistics(statistics, spec)
        check_statistics(statistics, layers, spec)
        self.model = frozen_copy(model, device)
        self.dtype = dtype_of(self.model)
        self.precision = dtype_name(self.dtype)
        self._observed = Tape() if layers else None
        if self._observed is not None:
            observe(self.model, layers, self._observed)
        self._capture = StatisticsCapture(self.model)
        self._one_at_a_time = threading.Lock()  # calls of one model share its hooks
        self._targets: list[tuple[Tensor, Tensor]] | None = None
        device = device_of(self.model)
        self.num_classes = probe(self.model, torch.zeros(2, *spec.shape, dtype=self.dtype, device=device), spec).shape[
            1
        ]
        with torch.no_grad():
            self.matched_calls = len(self(torch.zeros(2, *spec.shape, device=device))[1])
        if isinstance(statistics, Tensor):
            self._targets = pooled_statistics(lambda images: self(images.to(device))[1], statistics)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_one_at_a_time"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _one_at_a_time=threading.Lock())

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerStatistics]]:
        """Logits (N, K) and statistics."""
        if self._observed is not None:
            with self._observed.recording() as layers:
                return self.model(images.to(self.dtype)), with_targets(layers, self._targets)
        with self._one_at_a_time, self._capture as capture:
            logits = self.model(images.to(self.dtype))
            layers = []
            for call in capture.calls:
                dims = [d for d in range(call.x.dim()) if d != 1]
                var, mean = torch.var_mean(call.x, dims, correction=0)
                layers.append(LayerStatistics("", mean, var, call.mean, call.var))
        return logits, with_targets(layers, self._targets)


def check_statistics(statistics: str | Tensor, layers: Sequence[str], spec: InputSpec) -> None:
    """ValueError unless ``statistics`` and ``layers`` are as :class:`EagerTeacher` takes them."""
    if isinstance(statistics, str):
        if statistics != "running":
            raise ValueError(f"statistics must be 'running' or images (N, C, H, W), got {statistics!r}")
        if layers:
            raise ValueError("layers keep no running statistics: statistics must be images (N, C, H, W), got 'running'")
    elif statistics.dim() != 4 or tuple(statistics.shape[1:]) != spec.shape or len(statistics) == 0:
        raise ValueError(
            f"statistics must be images (N, {', '.join(map(str, spec.shape))}), got {tuple(statistics.shape)}"
        )
    elif not statistics.is_floating_point() or not bool(statistics.isfinite().all()):
        raise ValueError("statistics must be normalised images, floating point and finite (InputSpec.prepare)")


def with_targets(layers: list[LayerStatistics], targets: list[tuple[Tensor, Tensor]] | None) -> list[LayerStatistics]:
    """``layers`` with ``targets``, which are in the order of the calls; ``layers`` itself when None."""
    if targets is None:
        return layers
    return [x._replace(target_mean=mean, target_var=var) for x, (mean, var) in zip(layers, targets, strict=True)]
