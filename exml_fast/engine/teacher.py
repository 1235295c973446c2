"""The frozen network: a fused copy that gives logits and BatchNorm statistics in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.data import DataSource, InputSpec
from exml_fast.data.foreign import network_statistics
from exml_fast.engine.conv_plan import ConvShape
from exml_fast.engine.conv_tuning import PRECISIONS, Plans, checked_plans, choose_plans, without_winograd
from exml_fast.engine.eager import check_statistics, with_targets
from exml_fast.engine.freezing import chosen_device, dtype_name, dtype_of, frozen_copy, no_autocast
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.fusion import FrozenBatchNorm, fuse, fuse_exported, replace_modules
from exml_fast.engine.original import Original
from exml_fast.engine.statistics import LayerStatistics, Tape, observe, pooled_statistics, require_module
from exml_fast.engine.substitution import substitute

__all__ = ["FrozenTeacher"]

# How a network is fused, in the order of the attempts.
WAYS = {"torch.fx": fuse, "torch.export": fuse_exported, "without tracing": replace_modules}


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
        statistics: "running" for the BatchNorms' running statistics, or normalised images (N, C, H, W), or a data set
            or DataLoader of some, whose statistics replace them (Yin 2020, A.2).
        layers: names or patterns (:func:`exml_fast.engine.statistics.observe`) of layers whose outputs are matched
            instead of the BatchNorms' inputs; ``statistics`` must then be images.
        plans: :attr:`plans` of another teacher of the same network. This teacher then computes the same bits as that
            one, without measuring; with plans from another device, the same up to rounding.

    Attributes:
        way: how the network was fused: by "torch.fx", by "torch.export", or "without tracing", each layer alone.

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
        statistics: str | Tensor | DataSource = "running",
        layers: Sequence[str] = (),
        plans: Plans | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
        require_module(model)
        statistics = network_statistics(statistics, spec)
        check_statistics(statistics, layers, spec)
        self.device = chosen_device(device, model)
        # With named layers, the statistics of the BatchNorms are not read.
        norms = Tape()
        self._tape = Tape() if layers else norms
        self._targets: list[tuple[Tensor, Tensor]] | None = None
        copied = frozen_copy(model, self.device)
        own = dtype_of(copied)
        if layers:
            observe(copied, layers, self._tape)
        original = Original(copied, spec, self._tape if layers else None)
        self.num_classes = original.logits.shape[1]
        self._name = f"{type(model).__name__}, {'×'.join(map(str, spec.shape))} to {self.num_classes} logits"
        self.model, self._notes, inputs, matched = self._fuse(original, norms)
        self._order = _order_of(original.calls, matched)
        self.matched_calls = len(matched)
        convolutions = {n: m for n, m in self.model.named_modules() if FrozenConv2d.takes(m) and n in inputs}
        self._memory_format = torch.channels_last if convolutions else torch.contiguous_format
        self._cast_inputs_of_others()
        shapes = {
            name: ConvShape.of(m, (batch_size, *inputs[name].shape[1:]), True) for name, m in convolutions.items()
        }
        self.plans: Plans = {}
        chosen = (
            choose_plans(shapes, own, precision, self.device) if plans is None else checked_plans(plans, shapes, own)
        )
        self._freeze_convolutions(convolutions, shapes, chosen, own)
        substitute(self.model)
        failure = first = self._fails(original)
        for note, others in self._fallbacks(shapes, own) if failure and plans is None else ():
            if others != self.plans:
                self._freeze_convolutions(convolutions, shapes, others, own)
                failure = self._fails(original)
            if not failure:
                self._notes.append(note.format(first))
                break
        if failure:
            raise ValueError(f"{type(model).__name__} cannot be frozen: {failure}")
        if isinstance(statistics, Tensor):
            self._targets = pooled_statistics(lambda images: self(images.to(self.device))[1], statistics)

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerStatistics]]:
        """Logits (N, K), float32 (float64 for a float64 network), and the statistics in the order of the calls.

        RuntimeError under torch.func: the fused ops have gradients of autograd alone.
        """
        if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(images):
            raise RuntimeError(
                "FrozenTeacher does not run under torch.func (grad, jvp, jacrev, vmap): use torch.autograd.grad, or "
                "exml_fast.engine.EagerTeacher, which runs PyTorch's own layers"
            )
        # Its layers have the dtypes that they were frozen with.
        with self._tape.recording() as entries, no_autocast(self.device.type):
            # Two copies take less time than PyTorch's copy that changes both dtype and format, as in FrozenConv2d.
            logits = self.model(images.to(self.dtype).contiguous(memory_format=self._memory_format))
        # A network may call its layers as often as there are images.
        layers = [entries[i] for i in self._order] if len(entries) == len(self._order) else entries
        return logits if logits.dtype == torch.float64 else logits.float(), with_targets(layers, self._targets)

    def __repr__(self) -> str:
        matched = f"statistics of {self.matched_calls} layers, {self.precision} on {self.device}"
        return f"FrozenTeacher({self._name}; {matched}; fused by {self.way})".replace("by without", "without")

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format in which images need no conversion."""
        return self._memory_format

    def summary(self) -> str:
        """Lines that say what was fused, how the convolutions are computed, and what failed."""
        convolutions = [m for m in self.model.modules() if isinstance(m, FrozenConv2d)]
        dtypes = Counter(dtype_name(m.dtype) for m in convolutions)
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

    def _fuse(self, original: Original, norms: Tape) -> tuple[nn.Module, list[str], dict[str, Tensor], list[str]]:
        """Fuse the network by the first way that computes the same.

        Returns:
            The fused network, notes, the inputs of its convolutions, and the layer's name for each matched call.
        """
        notes, name = list[str](), type(original.model).__name__
        if original.hooked:
            notes.append("not traced: its hooks change what it computes")
        for kind, way in WAYS.items():
            last = way is replace_modules
            if original.hooked and not last:
                continue
            try:
                with torch.no_grad():
                    model, line = way(original.model, original.example, norms)
                    with _recorded_inputs(model) as inputs, self._tape.recording() as entries:
                        model(original.example)
            except Exception as failure:  # the network's own code may raise anything while it is traced
                message = str(failure).strip() or type(failure).__name__
                notes.append(f"{kind} cannot follow {name}: {message.splitlines()[0][:200]}")
                continue
            matched = [entry.name for entry in entries]
            difference = original.difference(model, traced=not last)
            if not difference and not last and sorted(matched) != sorted(original.calls):
                difference = f"it has {len(matched)} of {len(original.calls)} calls with statistics"
            if not difference:
                self.way = kind
                return model, [line, *notes], inputs, matched
            notes.append(f"{kind} does not give {name}: {difference}")
        raise ValueError(f"{name} cannot be frozen: {'; '.join(notes)}")

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
        self.precision = dtype_name(self.dtype)

    def _fails(self, original: Original) -> str:
        """What is wrong with a forward and backward pass; empty if nothing is."""
        return original.difference(lambda images: self(images)[0], half=self.dtype == torch.bfloat16)

    def _fallbacks(self, shapes: dict[str, ConvShape], own: torch.dtype) -> Iterator[tuple[str, Plans]]:
        """A note and plans for each further attempt, where the network fails with the chosen plans."""
        yield "without Winograd's algorithm: {} with it", without_winograd(self.plans)
        if self.dtype != own:
            single = choose_plans(shapes, own, "float32", self.device)
            yield "float32: the network does not run in bfloat16: {}", single
            yield "float32, and without Winograd's algorithm: {}", without_winograd(single)

    def _cast_inputs_of_others(self) -> None:
        """Cast the inputs of other layers with parameters (Linear) to the dtype of the parameters."""
        for module in self.model.modules():
            has_own = next(module.parameters(recurse=False), None) is not None
            if has_own and not isinstance(module, FrozenConv2d | FrozenBatchNorm) and not list(module.children()):
                module.register_forward_pre_hook(_cast)


def _cast(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    dtype = dtype_of(module)
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


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


def _order_of(calls: list[str], tape: list[str]) -> list[int]:
    """The place of each call on the tape: fusing moves a BatchNorm to the addition or activation after it."""
    if sorted(calls) != sorted(tape):
        return list(range(len(tape)))
    places: dict[str, list[int]] = {}
    for place, name in enumerate(tape):
        places.setdefault(name, []).append(place)
    return [places[name].pop(0) for name in calls]
