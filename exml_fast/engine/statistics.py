"""Channel statistics of the inputs of BatchNorm layers, and their running statistics (Yin 2020, Eqs. 4 to 6)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from exml_fast import ops

__all__ = [
    "BNStatistics",
    "LayerInput",
    "LayerStatistics",
    "Observer",
    "StatisticsCapture",
    "Tape",
    "bn_layers",
    "is_batch_norm",
    "match_running",
    "observe",
    "pooled_statistics",
    "require_module",
    "require_running_statistics",
]


class LayerInput(NamedTuple):
    """One call of one BatchNorm layer."""

    x: Tensor
    """Its input (N, C, ...), attached to the graph."""
    mean: Tensor
    """Its running mean (C,)."""
    var: Tensor
    """Its running variance (C,)."""


class LayerStatistics(NamedTuple):
    """The statistics of the input of one call of one BatchNorm layer, and their targets."""

    name: str
    mean: Tensor
    """Mean of the input, (C,), attached to the graph."""
    var: Tensor
    """Biased variance of the input, (C,), attached to the graph."""
    target_mean: Tensor
    """Running mean of the layer, or the mean over given images, (C,)."""
    target_var: Tensor
    """The variance, likewise."""


class Tape(threading.local):
    """Collects the statistics of a network's layers; each thread has a list for its own pass.

    Calls outside of :meth:`recording` are ignored: activation checkpoints (torch.utils.checkpoint) run a network's
    code again in the backward pass.
    """

    _entries: list[LayerStatistics] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[LayerStatistics]]:
        """The list to which calls of this thread inside the block append."""
        before, self._entries = self._entries, []
        try:
            yield self._entries
        finally:
            self._entries = before

    def append(self, entry: LayerStatistics) -> None:
        """Add one call's statistics to the pass of this thread."""
        if self._entries is not None:
            self._entries.append(entry)

    def __reduce__(self) -> tuple[type[Tape], tuple[()]]:
        """Copies of a network share a tape of their own."""
        return Tape, ()


def bn_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of every BatchNorm, in the order of registration, each module once.

    BatchNorm1d, 2d, 3d, SyncBatchNorm and their subclasses (timm's BatchNormAct2d), and any module with
    ``running_mean`` and ``running_var`` of one dimension (torchvision's FrozenBatchNorm2d); never InstanceNorm.
    """
    return [(name, module) for name, module in model.named_modules() if is_batch_norm(module)]


class StatisticsCapture:
    """Context in which every call of a BatchNorm layer of ``model`` is appended to :attr:`calls`.

    A layer that runs twice is in the list twice. The owner clears the list before each forward pass. Leaving the
    context removes the hooks.

    Raises:
        ValueError: on construction, naming the layers that keep no running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[LayerInput] = []
        require_running_statistics(model)
        self._layers = bn_layers(model)
        self._handles: list[Any] = []

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
        self.calls.append(LayerInput(_input(args, kwargs), module.running_mean, module.running_var))


class Observer(nn.Module):
    """Identity that appends the statistics of its input, without targets, to ``tape``.

    Args:
        name: the observed layer's name.
        tape: where the statistics go.
        features: the number of output features of a linear layer or a LayerNorm, which may be the last dimension.
        last: the features are certainly the last dimension. (A class derived from LayerNorm may normalise the second.)
    """

    def __init__(self, name: str, tape: Tape, features: int | None = None, last: bool = False) -> None:
        super().__init__()
        self.name, self.tape, self.features, self.last = name, tape, features, last

    def forward(self, x: Tensor) -> Tensor:
        """(N, C), (N, tokens, C), (N, C, ...), or (N, ..., C) after a LayerNorm or a linear layer, to the same."""
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"layer {self.name!r} must give a floating-point tensor (N, ...), got {found}")
        last = x.dim() == 3 or (x.shape[-1] == self.features and (self.last or x.shape[1] != self.features))
        channel = x.dim() - 1 if last else 1
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != channel], correction=0)
        self.tape.append(LayerStatistics(self.name, mean, var, mean.detach(), var.detach()))
        # A later layer may change its input in place, but the backward pass of var_mean needs it.
        return x.clone()


class _Observed(nn.Module):
    def __init__(self, layer: nn.Module, observer: Observer) -> None:
        super().__init__()
        self.layer, self.observer = layer, observer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.observer(self.layer(*args, **kwargs))
        return output


def observe(model: nn.Module, layers: Sequence[str], tape: Tape) -> None:
    """Put an :class:`Observer` behind each layer of ``model`` whose name is, or matches, one of ``layers``.

    Names as ``model.named_modules()`` gives them; ``*`` stands for anything, as in ``"blocks.*.norm1"``. ValueError
    naming a pattern that matches no layer.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for pattern in layers:
        matching = [name for name in modules if fnmatchcase(name, pattern)]
        if not matching:
            known = ", ".join(list(modules)[:12])
            raise ValueError(f"layers: {pattern!r} matches no layer of {type(model).__name__}, which has {known} …")
        found |= {name: modules[name] for name in matching}
    for name in sorted(found, key=lambda name: -name.count(".")):  # inner layers first: outer names stay valid
        layer = found[name]
        features = layer.out_features if isinstance(layer, nn.Linear) else None
        if isinstance(layer, nn.LayerNorm):
            features = layer.normalized_shape[-1]
        last = isinstance(layer, nn.Linear) or type(layer) is nn.LayerNorm
        model.set_submodule(name, _Observed(layer, Observer(name, tape, features, last)))


@torch.no_grad()
def pooled_statistics(layers_of: Any, images: Tensor, batch_size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance (C,) of each call over all ``images`` (N, C, H, W), in batches of ``batch_size``.

    ``layers_of`` maps images to the LayerStatistics of the network's calls.
    """
    sums: list[tuple[Tensor, Tensor]] = []
    dtypes: list[torch.dtype] = []
    for part in images.split(batch_size):
        share, layers = len(part) / len(images), layers_of(part)
        dtypes = [x.mean.dtype for x in layers]
        moments = [(x.mean.double(), x.var.double()) for x in layers]
        new = [(share * mean, share * (var + mean.square())) for mean, var in moments]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, new, strict=True)] if sums else new
    return [
        (mean.to(dtype), (second - mean.square()).clamp_min(0).to(dtype))
        for (mean, second), dtype in zip(sums, dtypes, strict=True)
    ]


class BNStatistics:
    """The distance of BatchNorm inputs to the running statistics, for your own loop (Yin 2020, Eq. 4).

        with xf.BNStatistics(model) as statistics:
            for _ in range(steps):
                loss = criterion(model(images), labels) + 0.01 * statistics.loss()
                ...

    Inside the block each call of ``model`` starts a new sum, to which every BatchNorm that runs adds. A layer that runs
    twice counts twice. In training mode the running statistics are those before the pass. Leaving the block removes the
    hooks; the last values remain. Blocks may be nested, also for one model.

    Args:
        model: any network with BatchNorm layers (:func:`bn_layers`), in training or evaluation mode.
        distance, moment: as in :func:`exml_fast.ops.bn_match`.

    Raises:
        ValueError: for a network without BatchNorm layers or in TorchScript, or naming the layers that keep no running
            statistics.
        RuntimeError: on entering a context that is active already.
    """

    def __init__(self, model: nn.Module, distance: str = "l2", moment: str = "var") -> None:
        require_module(model)
        self.distance, self.moment = distance, moment
        self._model = model
        self._names = {module: name for name, module in bn_layers(model)}
        if not self._names:
            raise ValueError(f"model must have BatchNorm layers, {type(model).__name__} has none")
        require_running_statistics(model)
        self._calls: list[tuple[str, Tensor]] = []
        self._handles: list[Any] = []

    @property
    def losses(self) -> dict[str, Tensor]:
        """The distance of each layer in the last forward pass, attached to the graph, in the order of calls."""
        losses: dict[str, Tensor] = {}
        for name, loss in self._calls:
            losses[name] = losses[name] + loss if name in losses else loss
        return losses

    def loss(self, first: float = 1.0) -> Tensor:
        """The sum over the layers of the last forward pass, a scalar attached to the graph.

        Args:
            first: further factor of the layer that ran first (10 in the published ImageNet settings).

        Raises:
            RuntimeError: if no BatchNorm layer ran since the block was entered.
        """
        if not self._calls:
            raise RuntimeError("no forward pass to take the loss of: call the model inside the with block first")
        losses = [loss for _, loss in self._calls]
        return torch.stack([losses[0] * first, *losses[1:]]).sum()

    def __enter__(self) -> BNStatistics:
        if self._handles:
            raise RuntimeError("this BNStatistics is active already: make another one for the inner block")
        self._calls = []
        # Registered before the layers' hooks, because the model itself may be a BatchNorm.
        self._handles = [self._model.register_forward_pre_hook(self._begin)]
        self._handles += [m.register_forward_pre_hook(self._record, with_kwargs=True) for m in self._names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, module: Any, args: tuple[Any, ...]) -> None:
        self._calls.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> BNStatistics:
        """A copy of a network inside the block has hooks that do nothing."""
        other = copy.copy(self)
        other._calls, other._handles = [], []
        other._names = {}
        return other

    def _record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in self._names:  # a layer of a copy
            return
        # Computed at once: a later layer may change the input in place, and this layer its running statistics.
        loss = match_running(_input(args, kwargs), module, self.distance, self.moment)
        self._calls.append((self._names[module], loss))


def match_running(x: Tensor, module: Any, distance: str = "l2", moment: str = "var") -> Tensor:
    """:func:`exml_fast.ops.bn_match` of ``x`` (float16 too, for autocast) and the running statistics of ``module``."""
    x = x.float() if x.dtype == torch.float16 else x
    return ops.bn_match(x, module.running_mean.detach(), module.running_var.detach(), distance, moment)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def require_module(model: Any) -> None:
    """ValueError unless ``model`` is a network of Python modules, whose layers can be seen and replaced."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "model must be a torch.nn.Module in Python, whose layers can be seen, got a torch.jit.ScriptModule "
            f"({getattr(model, 'original_name', type(model).__name__)}): give the module it was made from"
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def require_running_statistics(model: nn.Module) -> None:
    """ValueError naming the BatchNorm layers of ``model`` that keep no running statistics."""
    if without := [name for name, module in bn_layers(model) if not isinstance(module.running_mean, Tensor)]:
        raise ValueError(
            f"BatchNorm layers without running statistics (track_running_stats=False) cannot be matched: "
            f"{', '.join(without)}; set the recipe's bn=0"
        )


def is_batch_norm(module: nn.Module) -> bool:
    """See :func:`bn_layers`."""
    if isinstance(module, _BatchNorm):
        return True
    if isinstance(module, _InstanceNorm):
        return False
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape
