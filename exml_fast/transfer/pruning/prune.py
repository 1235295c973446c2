"""A smaller network out of a trained one, on images that need not be real (Yin 2020, sec. 4.3 and App. C)."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, fingerprint, random_state, set_random_state
from exml_fast.data import Augmentation, DataSource, ImageSource, InputSpec
from exml_fast.engine.freezing import chosen_device, device_of, unpacked
from exml_fast.engine.substitution import copied
from exml_fast.inversion import Result
from exml_fast.models import is_depthwise, resize_layers, widths_of
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import (
    Answers,
    Batch,
    Loop,
    Training,
    TrainingResult,
    network_input,
    seeded,
    shared_layers,
    softened_kl,
    unlabelled_batches,
)
from exml_fast.training.loop import forked
from exml_fast.transfer.distill import Distillation, distill
from exml_fast.transfer.pruning.filters import FilterGroup, Taylor, filter_groups, layers_of_training
from exml_fast.transfer.pruning.latency import LatencyTable, Layer, layers_of, multiply_adds
from exml_fast.validation import (
    Count,
    Flat,
    NonNegative,
    Positive,
    require,
    settings,
    to_dict,
    with_flat_changes,
)

__all__ = ["FINE_TUNING", "PruneResult", "Pruning", "prune"]

CHECKPOINT_FILE = "prune.pt"
# Molchanov 2019 prunes while the network learns at a small constant rate.
TRAINING = Training(
    optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, batch_size=128, schedule="constant", precision="auto",
    augmentation=Augmentation(shift=4, flip=0.5),
)  # fmt: skip
# The filters that are left know what they computed before: their outputs teach more than logits alone.
FINE_TUNING = Distillation().replace(
    steps=2000, batch_size=128, lr=0.01, schedule="cosine", temperature=5.0, lambda_features=300.0, precision="auto"
)
Target = Literal["filters", "flops", "latency"]
Widths = dict[nn.Module, tuple[int, int]]


@settings
class Pruning:
    """Settings of :func:`prune`.

    Attributes:
        training: of the network between two removals; its ``steps`` are their number of batches (30 in the paper).
        filters: removed at once, at least; 32 in the paper.
        chunk: filters of one layer are removed in multiples of this number, which hardware computes well; 16 in the
            paper, for wider networks.
        eta: η of Eq. 10, with target "latency": how much the saved share of the latency counts beside the share of
            the importance.
        temperature: of the divergence that ranks and trains (5 to 15 in the paper).
    """

    training: Flat[Training] = TRAINING.replace(steps=30)
    filters: Count = 32
    chunk: Count = 4
    eta: NonNegative = 1.0
    temperature: Positive = 5.0

    def replace(self, **changes: Any) -> Pruning:
        """A copy with some fields changed, those of ``training`` by their own names; ValueError for an unknown one."""
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_dict(self)


@dataclass(repr=False)
class PruneResult(TrainingResult):
    """What :func:`prune` returns; ``history`` is that of the fine-tuning, ``seconds`` "prune" and "fine-tune".

    Attributes:
        widths: channels of each layer (:func:`exml_fast.models.widths_of`).
        rounds: one entry a removal: "removed", and what is left as shares: "filters", "flops", "latency" (None without
            target "latency"); "loss" before the removal.
        fixed: layers whose filters cannot be removed, with the reason.
    """

    widths: dict[str, list[int]] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)

    def architecture(self, architecture: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Name and arguments with which :func:`exml_fast.models.create` builds the pruned network.

        ``architecture`` and ``arguments`` are those of the network before. For an expert's card.
        """
        return "slimmed", {"architecture": architecture, "arguments": dict(arguments), "widths": self.widths}


@reports_progress
def prune(
    model: Any,
    images: Result | Tensor | DataSource | ImageSource,
    ratio: Annotated[float, Field(gt=0, lt=1)],
    *,
    target: Target = "filters",
    config: Pruning | None = None,
    fine_tuning: Distillation | None = FINE_TUNING,
    table: LatencyTable | None = None,
    spec: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **overrides: Any,
) -> PruneResult:
    """Remove the filters that matter least for the network's own answers, and let the rest learn these again.

    The importance of a filter is the squared change of the divergence between the original and the pruned network, by
    its first-order expansion (Yin 2020, Eq. 12). No labels are needed, so the images may be synthetic. Between two
    removals the pruned network learns from the original for some batches.

    Args:
        model: a classifier with a final linear layer, or an object with one as ``.model`` (an Expert). It is not
            changed.
        images: a Result, normalised images (N, C, H, W), a data set or DataLoader, or a source of images.
        ratio: the share to remove, in (0, 1), of what ``target`` says.
        target: "filters", of all convolutions; "flops", multiplications of convolutions and linear layers; "latency",
            milliseconds by ``table``, which then count in the ranking (Eqs. 10, 13 and 14).
        config: :class:`Pruning`'s defaults when None. ``overrides`` are fields of it, as ``chunk=8``.
        fine_tuning: how the pruned network learns from the original afterwards (:func:`exml_fast.distill`); None
            leaves this out. ``lambda_features`` has no effect if no BatchNorm kept all of its channels.
        table: of latencies; a new one for the network's device, single images and torch's number of threads, when None.
        spec: the input; read from the model or the Result when None.
        seed, device, progress: as :func:`exml_fast.distill`; stages "prune" and "learn".
        checkpoint_dir: a folder from which the same call continues after an interruption.

    Raises:
        ImportError: without torch-pruning.
        ValueError: naming the argument; if no layer can be pruned, or too few filters are left to reach ``ratio``.
        RuntimeError: if a loss or an importance is not finite.
    """
    progress = callback_of(progress)
    config = (config or Pruning()).replace(**overrides)
    require(isinstance(ratio, float) and 0 < ratio < 1, "ratio", "a number between 0 and 1, both left out", ratio)
    average = config.training.average
    require(average == 0, "average", "0, as the weights change their shapes", average)
    require(target in ("filters", "flops", "latency"), "target", "'filters', 'flops' or 'latency'", target)
    spec = InputSpec.of(spec if spec is not None else images.spec if isinstance(images, Result) else model)
    model, *_ = unpacked(model)
    device = chosen_device(device, model)
    if table is not None and table.device.type != device.type:
        raise ValueError(f"table must be of latencies on {device.type!r}, got one of {table.device.type!r}")
    given = images if isinstance(images, ImageSource) else network_input(images, spec)[0]
    begun = time.monotonic()
    with seeded(seed, device), Meter(device) as meter:
        original = copied(model).to(device).eval().requires_grad_(False)
        run = _Run(original, given, ratio, target, config, table, spec, seed, progress)
        checkpoint = Checkpoint(None, "")
        if checkpoint_dir is not None:
            tensors = [*original.state_dict().values(), *([given] if isinstance(given, Tensor) else [])]
            source = given.describe() if isinstance(given, ImageSource) else None
            measured = run.table.describe() if target == "latency" else None
            identity = fingerprint(tensors, [config.to_dict(), ratio, target, measured, spec.to_dict(), source, seed])
            checkpoint = Checkpoint(Path(checkpoint_dir) / CHECKPOINT_FILE, identity)
        if (state := checkpoint.load(device)) is not None:
            run.load_state_dict(state["run"])
            set_random_state(state["random"], device)
        with checkpoint:
            while run.left() > 1 - ratio:
                run.remove_some()
                checkpoint.keep(lambda: {"run": run.state_dict(), "random": random_state(device)})
                run.report()
            checkpoint.keep(lambda: {"run": run.state_dict(), "random": random_state(device)}, write=True)
        pruned, seconds, history = run.model.eval(), {"prune": time.monotonic() - begun}, dict[str, list[float]]()
        if fine_tuning is not None:
            if not shared_layers(original, pruned):
                fine_tuning = fine_tuning.replace(lambda_features=0.0)
            taught = distill(
                original, pruned, given, config=fine_tuning, spec=spec, seed=seed, device=device, progress=progress,
                checkpoint_dir=checkpoint_dir,
            )  # fmt: skip
            pruned, history, seconds["fine-tune"] = taught.model, taught.history, taught.seconds["learn"]
        checkpoint.remove()
    return PruneResult(
        pruned.requires_grad_(True), history, seconds, meter.peak_mb, widths_of(pruned), run.rounds, run.fixed
    )


class _Run:
    """The network while its filters are removed."""

    def __init__(
        self,
        original: nn.Module,
        images: Tensor | ImageSource,
        ratio: float,
        target: Target,
        config: Pruning,
        table: LatencyTable | None,
        spec: InputSpec,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.original, self.config, self.target, self.progress, self.spec = original, config, target, progress, spec
        self.wanted, self.device = 1 - ratio, device_of(original)
        self.model = copied(original).requires_grad_(True)
        self.example = torch.zeros(1, *spec.shape, device=self.device)
        self.table = table or LatencyTable.of(original)
        self.rounds: list[dict[str, Any]] = []
        if extra := layers_of_training(self.model, self.example):
            raise ValueError(
                f"model has {extra[0]!r}, which runs in training mode alone and would lose its input: take such heads "
                "out first (of torchvision's networks with aux_logits=False)"
            )
        groups, self.fixed = filter_groups(self.model, self.example)
        if target == "filters":  # which hidden neurons of linear layers are not
            groups = [group for group in groups if any(isinstance(m.module, nn.Conv2d) for m in group.producers)]
        self._names = [group.name for group in groups]
        if not groups:
            reasons = "; ".join(f"{name!r}: {reason}" for name, reason in self.fixed.items())
            raise ValueError(f"model has no layer whose filters can be removed ({reasons or 'no convolution'})")
        layers = layers_of(self.model, self.example)
        self._whole = self._sizes(layers)
        self._require_reachable(groups, layers)
        self._answers = Answers(original, spec, config.training)
        self._taylor = Taylor()
        generator = torch.Generator().manual_seed(seed)
        self._batches = unlabelled_batches(images, config.training, spec, generator, self.device)

    def _require_reachable(self, groups: Sequence[FilterGroup], layers: Sequence[Layer]) -> None:
        """ValueError if the smallest network still has too much of the target.

        Fewer filters may take longer, so that "latency" shows this only when no filters are left to remove.
        """
        if self.target == "latency":
            return
        chunk, widths = self.config.chunk, {layer.module: layer.widths for layer in layers}
        for group in groups:
            widths = _without(widths, group, chunk * ((group.channels - 1) // chunk))
        least = self._share(layers, widths)
        if least > self.wanted:
            most = math.floor(1000 * (1 - least)) / 1000
            raise ValueError(
                f"ratio must be at most {most:g}, got {1 - self.wanted:g}: {100 * least:.0f} % of the "
                f"{self.target} are left when all layers that can be pruned keep {chunk} filters or fewer"
            )

    def _share(self, layers: Sequence[Layer], widths: Widths) -> float:
        """What these widths leave of the target, as a share of the whole."""
        size, whole = self._sizes(layers, widths)[self.target], self._whole[self.target]
        assert size is not None and whole is not None
        return size / whole

    def left(self) -> float:
        """What is left of the target, as a share of the whole."""
        return 1.0 if not self.rounds else float(self.rounds[-1][self.target])

    def remove_some(self) -> None:
        """Learn for some batches, then remove the least important filters."""
        found, _ = filter_groups(self.model, self.example, self._names)
        self._taylor.forget()
        loop = Loop(self.model, self._loss, self.config.training, stage="prune")
        with self._taylor.watching([gate.module for group in found for gate in group.gates]):
            loop.run(self._batches)
        self._taylor.count()
        layers = layers_of(self.model.eval(), self.example)
        chosen, widths = self._least_important(found, layers)
        for group in found:
            if chosen.get(group.name):
                group.remove(chosen[group.name])
        sizes = self._sizes(layers, widths)
        shares = {name: size and size / (self._whole[name] or 1.0) for name, size in sizes.items()}
        removed = {name: len(channels) for name, channels in chosen.items()}
        self.rounds.append({"removed": removed, **shares, "loss": loop.history["loss"][-1]})
        self.table.save()

    def report(self) -> None:
        """Tell the caller's progress how many percent are removed."""
        if self.progress is not None:
            removed, wanted = round(100 * (1 - self.left())), round(100 * (1 - self.wanted))
            with forked(self.device):
                self.progress("prune", min(removed, wanted), wanted, {"loss": self.rounds[-1]["loss"]})

    def _loss(self, network: nn.Module, batch: Batch) -> Tensor:
        self._taylor.count()
        return softened_kl(self._answers(batch.images), network(batch.images), self.config.temperature)

    def _least_important(
        self, groups: Sequence[FilterGroup], layers: Sequence[Layer]
    ) -> tuple[dict[str, list[int]], Widths]:
        """Channels of each group to remove now, chunk by chunk, and the widths of all layers without them."""
        chunk, widths = self.config.chunk, {layer.module: layer.widths for layer in layers}
        importance = {group.name: self._taylor.of(group) for group in groups}
        orders = {name: values.argsort().tolist() for name, values in importance.items()}
        whole = sum(float(values.sum()) for values in importance.values()) or 1.0
        latency = self.table.latency(layers) if self.target == "latency" else 0.0
        taken = dict.fromkeys(importance, 0)
        by_name = {group.name: group for group in groups}

        def score(name: str) -> float:
            """Eq. 10 of the next chunk of a group, both terms as shares of the network's."""
            group, at = by_name[name], taken[name]
            error = float(importance[name][orders[name][at : at + chunk]].sum()) / whole
            if self.target != "latency":
                return error
            touched = {member.module for member in (*group.producers, *group.consumers)}
            near = [layer for layer in layers if layer.module in touched]
            saved = self.table.latency(near, widths) - self.table.latency(near, _without(widths, group, chunk))
            return error - self.config.eta * saved / latency

        queue = [(score(name), name) for name in taken if by_name[name].channels > chunk]
        heapq.heapify(queue)
        removed = 0
        while queue and removed < self.config.filters:
            _, name = heapq.heappop(queue)
            group = by_name[name]
            widths = _without(widths, group, chunk)
            taken[name] += chunk
            removed += chunk * len(group.producers)
            if group.channels - taken[name] > chunk:
                heapq.heappush(queue, (score(name), name))
            if self._share(layers, widths) <= self.wanted:
                break
        if not removed:
            raise ValueError(
                f"ratio must be less, as no more filters can be removed: {100 * self.left():.0f} % of the "
                f"{self.target} are left, and each layer keeps {chunk} of its filters"
            )
        return {name: orders[name][:count] for name, count in taken.items() if count}, widths

    def _sizes(self, layers: Sequence[Layer], widths: Widths | None = None) -> dict[str, float | None]:
        outputs = [(widths or {}).get(la.module, la.widths)[0] for la in layers if isinstance(la.module, nn.Conv2d)]
        return {
            "filters": float(sum(outputs)),
            "flops": float(multiply_adds(layers, widths)),
            "latency": self.table.latency(layers, widths) if self.target == "latency" else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """The pruned network and its batches: a copy."""
        weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        latencies = dict(self.table.milliseconds)
        return {
            "widths": widths_of(self.model), "weights": weights, "rounds": list(self.rounds),
            "batches": self._batches.state_dict(), "latencies": latencies,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        resize_layers(self.model, state["widths"])
        self.model.load_state_dict(state["weights"])
        self.rounds = list(state["rounds"])
        self._batches.load_state_dict(state["batches"])
        self.table.milliseconds |= state["latencies"]
        self._whole = self._sizes(layers_of(self.original, self.example))


def _without(widths: Widths, group: FilterGroup, chunk: int) -> Widths:
    """The widths when a group loses ``chunk`` channels."""
    less = dict(widths)
    for module, channels, _ in group.producers:
        (outputs, inputs), lost = less[module], chunk * len(channels) // group.channels
        less[module] = (outputs - lost, inputs - lost if is_depthwise(module) else inputs)
    for module, channels, _ in group.consumers:
        outputs, inputs = less[module]
        less[module] = (outputs, inputs - chunk * len(channels) // group.channels)
    return less
