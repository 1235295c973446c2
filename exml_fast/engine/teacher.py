"""The frozen network: a fused copy that gives logits and BatchNorm statistics in one pass."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.data import InputSpec
from exml_fast.engine.conv_plan import ConvShape
from exml_fast.engine.conv_tuning import PRECISIONS, Plans, check_plans, choose_plans, without_winograd
from exml_fast.engine.freezing import device_of, dtype_of, frozen_copy, probe
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.fusion import FrozenBatchNorm, fuse, replace_modules
from exml_fast.engine.statistics import (
    LayerStatistics,
    StatisticsCapture,
    Tape,
    bn_layers,
    observe,
    pooled_statistics,
    require_module,
)
from exml_fast.engine.substitution import substitute

__all__ = ["EagerTeacher", "FrozenTeacher", "Teacher"]

# Largest allowed difference of the logits, relative to the largest logit, between a network and its fused copy. The
# bound for bfloat16 lies far above rounding and refuses only broken copies.
TRACING_ERROR, HALF_ERROR = 1e-3, 0.5


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
        statistics: str | Tensor = "running",
        layers: Sequence[str] = (),
    ) -> None:
        require_module(model)
        _check_statistics(statistics, layers, spec)
        self.model = frozen_copy(model, device)
        self.dtype = dtype_of(self.model)
        self.precision = _name(self.dtype)
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

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerStatistics]]:
        """Logits (N, K) and statistics."""
        if self._observed is not None:
            with self._observed.recording() as layers:
                return self.model(images.to(self.dtype)), _with_targets(layers, self._targets)
        with self._one_at_a_time, self._capture as capture:
            logits = self.model(images.to(self.dtype))
            layers = []
            for call in capture.calls:
                dims = [d for d in range(call.x.dim()) if d != 1]
                var, mean = torch.var_mean(call.x, dims, correction=0)
                layers.append(LayerStatistics("", mean, var, call.mean, call.var))
        return logits, _with_targets(layers, self._targets)


class FrozenTeacher:
    """A copy of a network made for inversion: ``logits, layers = teacher(images)``.

    The copy is in evaluation mode and computes no weight gradients. The caller's model is not changed, and later
    changes to it have no effect here. Every BatchNorm, with the residual and the activation that follow it, becomes one
    op that also gives the statistics of its input (:mod:`exml_fast.engine.fusion`). Convolutions prepare their weights
    once (:mod:`exml_fast.engine.frozen_conv`). The memory format inside is channels_last. A teacher may be called from
    several threads at a time.

    Args:
        model: a classifier that returns logits (N, K), with any of the BatchNorms of
            :func:`exml_fast.engine.statistics.bn_layers`, or none.
        spec: its input.
        device: where to run; the model's device when None.
        precision: the dtype of the convolutions and of the activations between them. "auto" uses bfloat16 where that is
            faster (:func:`exml_fast.engine.conv_tuning.choose_plans`). Statistics, logits and images are always
            float32. A bfloat16 or float64 network keeps its dtype; a float16 network becomes float32.
        batch_size: the batch size for which weights are prepared; other sizes work too.
        statistics: "running" for the BatchNorms' running statistics, or normalised images (N, C, H, W) whose
            statistics replace them (Yin 2020, A.2).
        layers: names or patterns (:func:`exml_fast.engine.statistics.observe`) of layers whose outputs are matched
            instead of the BatchNorms' inputs; ``statistics`` must then be images.
        plans: :attr:`plans` of another teacher of the same network. This teacher then computes the same bits as that
            one, without measuring; with plans from another device, the same up to rounding.

    Raises:
        ValueError: if the network is no Python module (TorchScript), does not take the specification's images or does
            not return logits, if ``statistics`` or ``plans`` do not fit, if a pattern of ``layers`` matches none, or
            for an unknown ``precision``.
    """

    @reused_memory()  # page faults would distort the timing
    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        batch_size: int = 8,
        statistics: str | Tensor = "running",
        layers: Sequence[str] = (),
        plans: Plans | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
        require_module(model)
        _check_statistics(statistics, layers, spec)
        self.device = device_of(model) if device is None else torch.device(device)
        # With named layers, the statistics of the BatchNorms are not read.
        norms = Tape()
        self._tape = Tape() if layers else norms
        self._targets: list[tuple[Tensor, Tensor]] | None = None
        original = frozen_copy(model, self.device)
        own = dtype_of(original)
        example = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0)).to(self.device, own)
        if layers:
            observe(original, layers, self._tape)
        with torch.no_grad(), _recorded_calls(original) as calls:
            expected = probe(original, example, spec)
        self.num_classes = expected.shape[1]
        self.model, self._notes, inputs, matched = self._fuse(original, example, expected, norms)
        self._order = _order_of(calls, matched)
        self.matched_calls = len(matched)
        convolutions = {n: m for n, m in self.model.named_modules() if FrozenConv2d.takes(m) and n in inputs}
        self._memory_format = torch.channels_last if convolutions else torch.contiguous_format
        self._cast_inputs_of_others()
        shapes = {
            name: ConvShape.of(m, (batch_size, *inputs[name].shape[1:]), True) for name, m in convolutions.items()
        }
        self.plans: Plans = {}
        if plans is not None:
            check_plans(plans, shapes, own)
        self._freeze_convolutions(
            convolutions, shapes, choose_plans(shapes, own, precision, self.device) if plans is None else plans, own
        )
        substitute(self.model)
        failure = first = self._fails(example, expected)
        for note, others in self._fallbacks(shapes, own) if failure and plans is None else ():
            if others != self.plans:
                self._freeze_convolutions(convolutions, shapes, others, own)
                failure = self._fails(example, expected)
            if not failure:
                self._notes.append(note.format(first))
                break
        if failure:
            raise ValueError(f"{type(model).__name__} cannot be frozen: {failure}")
        if isinstance(statistics, Tensor):
            self._targets = pooled_statistics(lambda images: self(images.to(self.device))[1], statistics)

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerStatistics]]:
        """Logits (N, K), float32 (float64 for a float64 network), and the statistics in the order of the calls."""
        with self._tape.recording() as entries:
            logits = self.model(images.to(self.dtype, memory_format=self._memory_format))
        layers = [entries[i] for i in self._order]
        return logits if logits.dtype == torch.float64 else logits.float(), _with_targets(layers, self._targets)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format in which images need no conversion."""
        return self._memory_format

    def summary(self) -> str:
        """Lines that say what was fused, how the convolutions are computed, and what failed."""
        convolutions = [m for m in self.model.modules() if isinstance(m, FrozenConv2d)]
        dtypes = Counter(_name(m.dtype) for m in convolutions)
        lines = [f"{len(convolutions)} convolutions" + "".join(f", {n} in {dtype}" for dtype, n in dtypes.items())]
        if self.device.type == "cpu" and convolutions:
            adjoints = Counter(
                "winograd" if m.plan.adjoint_weights == "winograd" else m.plan.adjoint for m in convolutions
            )
            ways = Counter(m.plan.forward for m in convolutions)
            own = {"winograd": "by Winograd's algorithm", "lanes": "with an image a vector lane"}
            others = "".join(f", {ways[way]} {text}" for way, text in own.items() if ways[way])
            lines.append(
                f"{ways['packed']} with packed weights{others}; input gradients by "
                + ", ".join(f"{how} ({number})" for how, number in adjoints.most_common())
            )
        return "\n".join([*lines, *self._notes])

    @torch.no_grad()
    def _fuse(
        self, original: nn.Module, example: Tensor, expected: Tensor, norms: Tape
    ) -> tuple[nn.Module, list[str], dict[str, Tensor], list[str]]:
        """Fuse the network by the first way that gives its own logits.

        Returns:
            The fused network, notes, the inputs of its convolutions, and the layer's name for each matched call.
        """
        notes = []
        for way in (fuse, replace_modules):
            try:
                model, line = way(original, example, norms)
                with _recorded_inputs(model) as inputs, self._tape.recording() as entries:
                    logits = model(example)
            except Exception as failure:  # the network's own code may raise anything while it is traced
                message = str(failure).strip() or type(failure).__name__
                notes.append(f"{way.__name__} failed on {type(original).__name__}: {message.splitlines()[0][:200]}")
                continue
            error = HALF_ERROR if example.dtype == torch.bfloat16 else TRACING_ERROR
            allowed = error * float(expected.abs().nan_to_num().max())
            if torch.allclose(logits, expected, rtol=0, atol=allowed, equal_nan=True):
                return model, [line, *notes], inputs, [entry.name for entry in entries]
            error = float((logits - expected).abs().max())
            notes.append(f"{way.__name__}: logits differ from {type(original).__name__}'s by {error:.3g}")
        raise ValueError(f"{type(original).__name__} cannot be frozen: {'; '.join(notes)}")

    def _freeze_convolutions(
        self, convolutions: dict[str, nn.Module], shapes: dict[str, ConvShape], chosen: Plans, own: torch.dtype
    ) -> None:
        """Replace the convolutions of ``self.model``, and set the dtype inside."""
        self.plans = {name: chosen[name] for name in shapes}
        for name, (dtype, plan) in self.plans.items():
            conv = convolutions[name]
            assert isinstance(conv, nn.Conv2d)
            self.model.set_submodule(name, FrozenConv2d(conv, getattr(torch, dtype), shapes[name], plan))
        half = any(dtype == "bfloat16" for dtype, _ in self.plans.values())
        self.dtype = torch.bfloat16 if half else own
        self.precision = _name(self.dtype)

    @torch.enable_grad()
    def _fails(self, example: Tensor, expected: Tensor) -> str:
        """What is wrong with a forward and backward pass: an error or other logits; empty if nothing is."""
        x = example.float() if example.dtype == torch.bfloat16 else example
        x = x.detach().clone().requires_grad_()
        try:
            logits, _ = self(x)
            torch.autograd.grad(logits.sum(), x, allow_unused=True)
        except Exception as failure:  # the network's own code may raise anything for mixed dtypes
            return (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
        largest = float(expected.abs().nan_to_num().max())
        allowed = largest * (HALF_ERROR if self.dtype == torch.bfloat16 else TRACING_ERROR)
        if torch.allclose(logits.to(expected.dtype), expected, rtol=0, atol=allowed, equal_nan=True):
            return ""
        return f"its logits differ by {float((logits.detach() - expected).abs().max()):.3g} of {largest:.3g}"

    def _fallbacks(self, shapes: dict[str, ConvShape], own: torch.dtype) -> Iterator[tuple[str, Plans]]:
        """A note and plans for each further attempt, where the network fails with the chosen plans."""
        yield "without Winograd's algorithm: {} with it", without_winograd(self.plans)
        if self.dtype != own:
            single = choose_plans(shapes, own, "float32", self.device)
            yield "float32: the network does not run in bfloat16: {}", single
            yield "float32, and without Winograd's algorithm: {}", without_winograd(single)

    def _cast_inputs_of_others(self) -> None:
        """Cast the inputs of other layers with parameters (Linear) to the dtype of the parameters."""

        def cast(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
            dtype = dtype_of(module)
            return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

        for module in self.model.modules():
            has_own = next(module.parameters(recurse=False), None) is not None
            if has_own and not isinstance(module, FrozenConv2d | FrozenBatchNorm) and not list(module.children()):
                module.register_forward_pre_hook(cast)


def _check_statistics(statistics: str | Tensor, layers: Sequence[str], spec: InputSpec) -> None:
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


def _with_targets(layers: list[LayerStatistics], targets: list[tuple[Tensor, Tensor]] | None) -> list[LayerStatistics]:
    """``layers`` with ``targets``, which are in the order of the calls; ``layers`` itself when None."""
    if targets is None:
        return layers
    return [x._replace(target_mean=mean, target_var=var) for x, (mean, var) in zip(layers, targets, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _recorded_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The last input of each convolution that runs inside the block, by name."""
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, args, name=name: inputs.update({name: args[0]}))
        for name, module in model.named_modules()
        if FrozenConv2d.takes(module)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[str]]:
    """Names of the BatchNorms that run inside the block, in the order of the calls."""
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, module in bn_layers(model)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _order_of(calls: list[str], tape: list[str]) -> list[int]:
    """The place of each call on the tape: fusing moves a BatchNorm to the addition or activation after it."""
    if sorted(calls) != sorted(tape):
        return list(range(len(tape)))
    places: dict[str, list[int]] = {}
    for place, name in enumerate(tape):
        places.setdefault(name, []).append(place)
    return [places[name].pop(0) for name in calls]
