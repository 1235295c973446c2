"""Ex-Model Distillation: one model that learns from a stream of experts without their data (Carta 2022, sec. 3)."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import ops
from exml_fast._native import reused_memory
from exml_fast.continual.ex_model.calibration import Measured, ResponseCalibration
from exml_fast.continual.ex_model.strategies import Strategy
from exml_fast.continual.expert import ARITHMETIC, Card, Expert, complete_arguments, require_fit
from exml_fast.continual.metrics import average_accuracy, forgetting
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import Augmentation, ImageSource, InputSpec
from exml_fast.data.buffer import ImageBuffer
from exml_fast.engine.substitution import copied, twin
from exml_fast.models import create, final_linear
from exml_fast.profiling import Meter
from exml_fast.progress import Progress
from exml_fast.storage import load_checkpoint, save_checkpoint
from exml_fast.training import blended, forward, one_cycle, placed

__all__ = [
    "DistillationConfig",
    "DistillationResult",
    "ExModelDistillation",
    "combined_targets",
    "distillation_loss",
    "normalize",
]

NORMALIZATIONS = ("none", "mean", "standardize")
CHECKPOINT_FILE = "distillation.pt"
# Inputs and targets are prepared for a block of steps at once: at most so many steps, at most so much memory.
BLOCK_STEPS, BLOCK_BYTES = 100, 2**26
# Targets that do not change are computed for so many images at once: the buffer may be larger than the memory.
BLOCK_IMAGES = 512
# How the further views of an image differ from it (``DistillationConfig.views``).
VIEW = Augmentation(shift=2, rotation=15.0, scale=0.15, stretch=0.1, shear=0.15, elastic=0.7)
# Smaller experts may wait for Python's own garbage collection.
COLLECT_BYTES = 2**20
UNLABELLED = -1


@dataclass(frozen=True)
class DistillationConfig:
    """How an ex-model is distilled; the defaults are Carta 2022, App. B.1 (MNIST).

    Attributes:
        iterations, batch_size, lr, momentum, weight_decay, optimizer: SGD steps an expert ("sgd" or "adam").
        arithmetic: of the ex-model while it learns, "float32" or "bfloat16" (torch.autocast: weights, optimiser and
            loss stay float32); faster where the processor has bfloat16.
        schedule: "constant", or "onecycle" (cosine from lr/25 up in the first 30 %, cosine down to lr/1e4).
        lambda_ce: weight of the cross-entropy in Eq. 10.
        loss: "mse" (Eq. 9) or "kl" (softened by ``temperature``, times its square).
        temperature: of the "kl" loss only; the MSE of Eq. 9 has none.
        mse: "mean" over the known units (as the published code) or "sum" (the squared norm of Eq. 9).
        normalize: Eq. 6, 7: "none" (as every published configuration), "mean" or "standardize".
        combine: Eq. 8 "per_unit", by each unit's class (as the published code), or "per_sample", by the label.
        buffer_size: N of Alg. 1.
        augmentation: of the images in the distillation steps.
        mixup: a of the shares Beta(a, a) with which each image is blended with another random one (Zhang 2018) before
            the models see it; 0 for none. A blend has no label: needs ``lambda_ce`` 0, targets "live", combine
            "per_unit" and no ``task_labels``; the cross-entropy that is recorded then means nothing.
        targets: "live": the models see the augmented images; "fixed": the targets are those of the images as they are,
            computed once an expert; "stored": likewise, and kept with the images, so that what the expert said of an
            image outlives it. The previous ex-model then speaks for the earlier experts on new images only; "experts":
            likewise, but it never speaks: units of experts that did not see an image count for nothing there (in the
            cross-entropy all seen units count).
        background_share: of the buffer that random images fill at the first expert, of the ``background`` of
            :class:`ExModelDistillation`. Every expert sees all of them. They have no label: to the cross-entropy, a
            mean over the batch, they add nothing.
        renormalise: after each expert, take the statistics of the ex-model's BatchNorms from the strategy's images in
            the buffer: a background's are not those of the classes. (Not of a copy of the first expert.)
        align: in the ex-model that is returned and evaluated, the rows of the final linear layer, centred over the
            classes seen, get the same norm, and the biases are scaled with them (after weight aligning, Zhao 2020,
            "Maintaining Discrimination and Fairness in Class Incremental Learning", which scales the rows of new
            classes together). For where later classes' logits stay smaller; it goes on learning as it was.
        debias: likewise, the share of the classes' mean logits for the ``background`` that is taken off their biases:
            random images should not speak for a class. Needs ``background_share``.
        views: forms of each image, of which a step sees one: as it is, and others shifted, turned, stretched and bent a
            little. They are the same from the seed whenever they are made, and have targets of their own, which are
            kept: where ``augmentation``, which should then change nothing, would show the ex-model images of which no
            expert spoke. Needs targets that are kept, and memory for the views of the whole buffer while an expert is
            learned, also where the buffer is in a folder.
        task_labels: the task of every image is known (multi-task, Carta 2022, sec. 5): an image of a class of
            experience i trains the units of experience i only, one head of many. Experiences must share no class.
        init_from_first: the ex-model becomes a copy of the first expert (and is not distilled from it) if both
            have the same architecture, arguments and units.
        reset: start each expert from the ex-model's initial weights.
    """

    iterations: int = 30000
    batch_size: int = 32
    lr: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    arithmetic: str = "float32"
    lambda_ce: float = 1.0
    loss: str = "mse"
    temperature: float = 2.0
    mse: str = "mean"
    normalize: str = "none"
    combine: str = "per_unit"
    buffer_size: int = 5000
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    targets: str = "live"
    background_share: float = 0.0
    renormalise: bool = False
    align: bool = False
    debias: float = 0.0
    views: int = 1
    task_labels: bool = False
    init_from_first: bool = False
    reset: bool = False

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("sgd", "adam"),
            "arithmetic": ARITHMETIC,
            "schedule": ("constant", "onecycle"),
            "loss": ("mse", "kl"),
            "mse": ("mean", "sum"),
            "normalize": NORMALIZATIONS,
            "combine": ("per_sample", "per_unit"),
            "targets": ("live", "fixed", "stored", "experts"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        if self.keeps_targets and self.combine != "per_unit":
            raise ValueError(f"targets={self.targets!r} needs combine='per_unit', got {self.combine!r}")
        share = self.background_share
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"background_share must be at least 0 and less than 1, got {share!r}")
        if share and not self.keeps_targets:
            raise ValueError(f"background_share needs targets 'stored' or 'experts', got {self.targets!r}")
        if share and self.task_labels:
            raise ValueError("background_share must be 0 with task_labels: random images belong to no task")
        if self.align and self.task_labels:
            raise ValueError("align must be False with task_labels: every task has a head of its own")
        if not isinstance(self.debias, int | float) or not 0 <= self.debias <= 1:
            raise ValueError(f"debias must be between 0 and 1, got {self.debias!r}")
        if self.debias and not share:
            raise ValueError(f"debias needs background_share, random images of no class, got {share!r}")
        if self.views != 1 and not self.keeps_targets:
            raise ValueError(f"views needs targets 'stored' or 'experts', got {self.targets!r}")
        for name in ("iterations", "batch_size", "buffer_size", "views"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("lambda_ce", "momentum", "weight_decay", "mixup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if self.mixup:
            blends = {"targets": "live", "combine": "per_unit", "lambda_ce": 0, "task_labels": False}
            for name, needed in blends.items():
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"mixup needs {name}={needed!r}: a blend has no label, got {getattr(self, name)!r}"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self, dict_factory=_with_lists)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DistillationConfig:
        """The inverse of :meth:`to_dict`."""
        augmentation = value.get("augmentation", {})
        if isinstance(augmentation, Mapping):
            augmentation = Augmentation(**augmentation)
        return cls(**{**value, "augmentation": augmentation})

    @property
    def keeps_targets(self) -> bool:
        """Whether targets are kept with the images."""
        return self.targets in ("stored", "experts")

    def rate(self, step: int) -> float:
        """Learning rate of step 0 .. iterations - 1."""
        if self.schedule == "constant":
            return self.lr
        return one_cycle(self.lr, step, self.iterations)


def _with_lists(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


@dataclass
class DistillationResult:
    """What :meth:`ExModelDistillation.run` returns.

    Attributes:
        expert: the ex-model with a card of its own (``classes``: all that were seen).
        buffer: the final buffer.
        history: one entry an expert: lists "step", "loss", "mse", "ce" (means over blocks of steps).
        evaluations: what ``evaluate`` returned after each expert.
        seconds: one {"generate", "distil", "evaluate"} an expert.
        peak_mb: likewise, the most memory held meanwhile (:class:`exml_fast.profiling.Meter`).
    """

    expert: Expert
    buffer: ImageBuffer
    history: list[dict[str, list[float]]]
    evaluations: list[Any]
    seconds: list[dict[str, float]]
    peak_mb: list[dict[str, float]]

    @property
    def model(self) -> nn.Module:
        """The ex-model's network."""
        return self.expert.model

    @property
    def matrix(self) -> Tensor:
        """(experts, experiences): accuracy on experience j after expert i.

        For an ``evaluate`` that returns the accuracies of all experiences, as
        :func:`exml_fast.continual.experience_accuracies` does; ValueError otherwise.
        """
        if not self.evaluations or not all(isinstance(row, list) and row for row in self.evaluations):
            raise ValueError("evaluate must have returned a list of accuracies after each expert")
        return torch.tensor(self.evaluations, dtype=torch.float64)

    @property
    def average_accuracy(self) -> float:
        """Mean over the experiences after the last expert (:func:`exml_fast.continual.average_accuracy`)."""
        return average_accuracy(self.matrix)

    @property
    def forgetting(self) -> float:
        """What was lost of the best (:func:`exml_fast.continual.forgetting`)."""
        return forgetting(self.matrix)


def normalize(logits: Tensor, known: Tensor, how: str = "mean") -> Tensor:
    """Eq. 6, 7 over the known units: ``logits`` (N, K), ``known`` bool (K,) or (N, K); unknown ones become 0.

    "none" leaves them, "mean" subtracts their mean, "standardize" also divides by their standard deviation
    (biased; rows whose known logits are all equal become 0).
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"how must be one of {list(NORMALIZATIONS)}, got {how!r}")
    logits = torch.where(known, logits, 0.0)
    if how == "none":
        return logits
    count = known.expand_as(logits).sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(known, logits - logits.sum(1, keepdim=True) / count, 0.0)
    if how == "mean":
        return centred
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=torch.finfo(logits.dtype).eps * 16)


def combined_targets(
    previous: Tensor,
    current: Tensor,
    previous_known: Tensor,
    current_known: Tensor,
    labels: Tensor,
    combine: str = "per_unit",
) -> tuple[Tensor, Tensor]:
    """Target logits and their mask, both (N, K) (Eq. 8).

    Args:
        previous, current: normalised logits of the previous ex-model and the expert on the ex-model's K units.
        previous_known, current_known: bool (K,), the units each of them knows.
        labels: (N,) positions of the samples' classes among the K units.
        combine: "per_sample": a sample whose label only one model knows takes that model's target and mask. If
            both know the label (and always with "per_unit"), each unit takes the model that knows it, and the
            mean where both do.
    """
    if combine not in ("per_sample", "per_unit"):
        raise ValueError(f"combine must be 'per_sample' or 'per_unit', got {combine!r}")
    use_previous = previous_known.expand_as(previous)
    use_current = current_known.expand_as(current)
    if combine == "per_sample":
        in_previous, in_current = previous_known[labels][:, None], current_known[labels][:, None]
        use_previous, use_current = use_previous & in_previous, use_current & in_current
    total = torch.where(use_previous, previous, 0.0) + torch.where(use_current, current, 0.0)
    target = torch.where(use_previous & use_current, 0.5 * total, total)
    return target, use_previous | use_current


def distillation_loss(
    logits: Tensor, target: Tensor, mask: Tensor, labels: Tensor, seen: Tensor, config: DistillationConfig
) -> tuple[Tensor, Tensor]:
    """The two terms of Eq. 10, distillation and cross-entropy, means over the batch.

    Args:
        logits: (N, K) of the ex-model.
        target, mask: (N, K) of :func:`combined_targets`; units outside the mask count for nothing. With
            ``config.task_labels`` the mask is the image's head, and the cross-entropy is over it alone.
        labels: (N,) positions among the units ``seen``, not among all K; or, with ``config.background_share``, -1: an
            image without a label, which adds nothing to the cross-entropy.
        seen: int64 positions of the units that any expert has been trained on so far.
    """
    if config.loss == "mse":
        squares = ((logits - target) * mask).square().sum(1)
        term = (squares / mask.sum(1).clamp(min=1)).mean() if config.mse == "mean" else squares.mean()
    else:
        lowest = torch.finfo(logits.dtype).min
        log_p = F.log_softmax(torch.where(mask, logits / config.temperature, lowest), 1)
        log_q = F.log_softmax(torch.where(mask, target / config.temperature, lowest), 1)
        term = (log_q.exp() * (log_q - log_p)).sum(1).mean() * config.temperature**2
    if config.task_labels:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    logits = logits if len(seen) == logits.shape[1] else logits[:, seen]
    if not config.background_share:
        return term, ops.soft_cross_entropy(logits, labels)
    each = ops.soft_cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return term, torch.where(labels == UNLABELLED, 0.0, each).mean()


class ExModelDistillation:
    """Alg. 1: for each expert, new images from the strategy, a rebalanced buffer, and distillation steps.

    Args:
        strategy: where images come from (:mod:`exml_fast.continual.ex_model.strategies`).
        config: the hyper-parameters.
        model, units: the ex-model and the global class id of each of its logits. By default the architecture of
            the first expert, with a unit for every unit that occurs in the stream.
        spec: the ex-model's input, the first expert's by default. Experts may differ from it in architecture and
            input: they see the images converted (:meth:`exml_fast.InputSpec.convert`).
        seed: of everything random in a run.
        device: where the networks, the buffer and the steps are.
        calibration: makes the experts' logits comparable (:class:`ResponseCalibration`); None takes them as they are.
        buffer_dir: folder for the buffer's images instead of memory (:class:`ImageBuffer`); results do not change.
        background: source of the random images of ``config.background_share``; they are kept in memory.
    """

    def __init__(
        self,
        strategy: Strategy,
        config: DistillationConfig | None = None,
        *,
        model: nn.Module | None = None,
        units: Sequence[int] | None = None,
        spec: InputSpec | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        calibration: ResponseCalibration | None = None,
        buffer_dir: str | os.PathLike[str] | None = None,
        background: ImageSource | None = None,
    ) -> None:
        if model is not None and units is None:
            raise ValueError("units must be given with model: the global class id of each logit")
        share = 0.0 if config is None else config.background_share
        if (background is not None) != (share > 0):
            raise ValueError(f"background must be a source if and only if background_share is positive, got {share}")
        self.strategy = strategy
        self.config = config or DistillationConfig()
        self.seed = seed
        self.device = torch.device(device)
        self.calibration = calibration
        self.buffer_dir = buffer_dir
        self.background = background
        self._model, self._units, self._spec = model, units, spec

    def run(
        self,
        stream: ExpertStream,
        progress: Progress | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        evaluate: Callable[[Expert], Any] | None = None,
        checkpoint_every: int = 5000,
    ) -> DistillationResult:
        """Learn from the whole stream.

        Args:
            progress: called as ``progress(stage, step, total, terms)`` once a block of steps.
            checkpoint_dir: where the state is saved after each expert, after its images are there, about every
                ``checkpoint_every`` steps, and on Ctrl-C (which is raised on). A run that finds a checkpoint of
                the same stream, configuration and seed goes on from it and ends bit for bit as if never stopped;
                ValueError naming what differs otherwise.
            evaluate: called with the ex-model after each expert, of which it keeps no copy (the network goes on
                learning); returns a number, or a dict or list of numbers.

        Raises:
            ValueError: if a class of an expert is not among ``units``, or if two experts share a class although the
                task decides the head (``task_labels``).
            RuntimeError: if the loss is not finite.
            ValueError, OSError: for an expert that cannot be read, or a full disk. A note says how much was learned
                and is kept; the same call goes on from there once the expert is mended or replaced. Experts that were
                not learned yet may change, and more may have come.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.seed)
            run = _Run(self, stream, progress, checkpoint_dir, checkpoint_every)
            try:
                return run.finish(evaluate)
            except KeyboardInterrupt:
                run.write_checkpoint()
                raise
            except (ValueError, OSError) as error:
                error.add_note(run.kept())
                raise


class _Run:
    """The state of one run. It is consistent, and can be saved, at the end of every block of steps."""

    def __init__(
        self,
        method: ExModelDistillation,
        stream: ExpertStream,
        progress: Progress | None,
        checkpoint_dir: str | os.PathLike[str] | None,
        checkpoint_every: int,
    ) -> None:
        self.config, self.strategy, self.device = method.config, method.strategy, method.device
        self.calibration, self.once = method.calibration, getattr(method.strategy, "once", False)
        if self.once and (self.config.task_labels or self.config.combine != "per_unit"):
            raise ValueError(
                f"images of {self.strategy.describe()} belong to no class or task: combine must be 'per_unit' and "
                f"task_labels False, got {self.config.combine!r} and {self.config.task_labels}"
            )
        if self.config.renormalise and self.once:
            raise ValueError("renormalise needs images of experts, not random ones alone")
        self.stream, self.progress = stream, progress
        self.units = list(method._units) if method._units is not None else stream.units
        self.spec = method._spec or stream.cards[0].input_spec
        self.position = {unit: j for j, unit in enumerate(self.units)}
        for i, classes in enumerate(stream.experiences):
            if missing := [c for c in classes if c not in self.position]:
                raise ValueError(f"expert {i + 1} was trained on classes {missing}, not among the units {self.units}")
        first = stream.cards[0]
        if method._model is not None:
            self.architecture, self.arguments = type(method._model).__name__, {}
            self.model = copy.deepcopy(method._model).to(self.device)
            require_fit(self.model, self.spec, len(self.units))
        else:
            self.architecture = first.architecture
            arguments = {k: v for k, v in first.arguments.items() if k != "num_classes"}
            self.arguments = complete_arguments(first.architecture, arguments, len(self.units), self.spec)
            self.model = create(self.architecture, **self.arguments).to(self.device)
        self.student = twin(placed(self.model, self.device))
        # What is wrong with it shows before anything is learned.
        self.classifier = self._find_classifier() if self.config.align or self.config.debias else ""
        self.initial = _clone(self.model.state_dict())
        self.previous: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer = self._new_optimizer()
        random_count = round(self.config.background_share * self.config.buffer_size)
        if self.config.buffer_size - random_count < len(stream):
            raise ValueError(
                f"buffer_size {self.config.buffer_size} with background_share {self.config.background_share} leaves "
                f"{self.config.buffer_size - random_count} images for {len(stream)} experts"
            )
        self.buffer = ImageBuffer(self.config.buffer_size - random_count, method.buffer_dir)
        self.buffer_device = self.device if method.buffer_dir is None else torch.device("cpu")
        self.seed = method.seed
        self.generator = torch.Generator().manual_seed(self.seed)
        # The same from the seed whenever it is drawn: no checkpoint holds it. Its rows come before the buffer's.
        self.background = torch.empty(0, *self.spec.shape, device=self.buffer_device)
        if method.background is not None:
            drawn = method.background.draw(random_count, self.spec, torch.Generator().manual_seed(self.seed))
            self.background = drawn.to(self.buffer_device)
        # A number for each image, by which its views are made again; and those, while an expert is learned.
        self.keys = torch.arange(len(self.background))
        self.shown: Tensor | None = None
        # Targets that are kept with the images, and of which units experts spoke; what the calibration found out about
        # the expert.
        self.stored: Tensor | None = None
        self.heard: Tensor | None = None
        self.measured: Measured | None = None
        # Where the run is: expert, whether its images are in the buffer, and how many of its steps are done.
        self.expert_index, self.generated, self.step = 0, False, 0
        self.history: list[dict[str, list[float]]] = []
        self.evaluations: list[Any] = []
        self.seconds: list[dict[str, float]] = []
        self.peak_mb: list[dict[str, float]] = []
        self.bounds = self.spec.bounds(self.device)
        self.identity = {
            "experts": stream.fingerprints(),
            "config": self.config.to_dict(),
            "strategy": self.strategy.describe(),
            "units": self.units,
            "input": self.spec.to_dict(),
            "seed": self.seed,
            "architecture": self.architecture,
            "calibration": None if self.calibration is None else self.calibration.describe(),
            "background": None if method.background is None else method.background.describe(),
        }
        self.path = Path(checkpoint_dir) / CHECKPOINT_FILE if checkpoint_dir is not None else None
        self.checkpoint_every = checkpoint_every
        self._snapshot: dict[str, Any] | None = None
        if self.path is not None and self.path.is_file():
            self._restore(load_checkpoint(self.path, self.device))
        self._take_snapshot()

    def finish(self, evaluate: Callable[[Expert], Any] | None) -> DistillationResult:
        """Go on to the end of the stream."""
        while self.expert_index < len(self.stream):
            expert = self._read_expert()
            if not self.generated:
                self._generate(expert)
            with Meter(self.device) as meter, reused_memory():
                self._distil(expert)
            self.peak_mb[-1]["distil"] = meter.peak_mb
            # Or the next expert would be read beside this one and its fused copy, which torch.fx leaves in cycles.
            large = sum(p.nbytes for p in expert.model.parameters()) >= COLLECT_BYTES
            del expert
            if large:
                gc.collect()
            self.previous = copy.deepcopy(self.student).eval().requires_grad_(False)
            self.expert_index, self.generated, self.step = self.expert_index + 1, False, 0
            if evaluate is not None:
                with Meter(self.device) as meter:
                    self.evaluations.append(evaluate(self._as_expert()))
                self.seconds[-1]["evaluate"], self.peak_mb[-1]["evaluate"] = meter.seconds, meter.peak_mb
            self._take_snapshot(write=True)
        return DistillationResult(
            self._as_expert(), self.buffer, self.history, self.evaluations, self.seconds, self.peak_mb
        )

    def kept(self) -> str:
        """What of the run outlives an error, in words."""
        if self.path is None or not self.path.is_file():
            return "Nothing is kept: there was no checkpoint yet."
        return f"What was learned is kept in {self.path}: the same run goes on from there."

    def _read_expert(self) -> Expert:
        number = self.expert_index
        try:
            expert = self.stream[number]
        except (ValueError, OSError) as error:
            learned = f"the {number} before it are learned" if number else "none is learned yet"
            raise ValueError(f"{self.stream.name(number)} cannot be read, {learned}: {error}") from error
        # A copy: whose expert it is may go on using it as it was.
        return Expert(placed(copied(expert.model), self.device), expert.card)

    def _generate(self, expert: Expert) -> None:
        count = self.buffer.capacity // (1 if self.once else self.expert_index + 1)
        stage = self._stage("generate")

        def report(_stage: str, step: int, total: int, terms: dict[str, float]) -> None:
            if self.progress is not None:
                self.progress(stage, step, total, terms)

        report("", 0, 1, {})
        checkpoint_dir = self.path.parent if self.path is not None else None
        with Meter(self.device) as meter:
            if self.expert_index == 0 or not self.once:
                rival = {"rival": self._rival()} if getattr(self.strategy, "competes", False) else {}
                images, labels = self.strategy.samples(expert, count, self.generator, report, checkpoint_dir, **rival)
                self._keep(self.spec.convert(images, expert.input_spec), labels)
            if self.calibration is not None:
                same = torch.Generator().manual_seed(self.seed)
                self.measured = self.calibration.measure(_by_our_ops(expert), same)
        self.generated, self.step = True, 0
        self.seconds.append({"generate": meter.seconds, "distil": 0.0, "evaluate": 0.0})
        self.peak_mb.append({"generate": meter.peak_mb, "distil": 0.0, "evaluate": 0.0})
        self.history.append({"step": [], "loss": [], self.config.loss: [], "ce": []})
        if self.config.reset:
            self.model.load_state_dict(self.initial)
        if self.config.init_from_first and self.expert_index == 0 and self._same_network(expert):
            self.model.load_state_dict(expert.model.state_dict())
            self.step = self.config.iterations
        self.optimizer = self._new_optimizer()
        self._take_snapshot(write=True)
        report("", 1, 1, {})

    def _rival(self) -> Expert | None:
        if self.previous is None:
            return None
        plain = copy.deepcopy(self.model)
        plain.load_state_dict(self.previous.state_dict())
        return Expert(plain, self._card())

    def _keep(self, images: Tensor, labels: Tensor) -> None:
        """Into the buffer, for which others make room."""
        if self.expert_index > 0:
            kept = self.buffer.subsample(min(len(self.buffer), self.buffer.capacity - len(labels)), self.generator)
            random_count = len(self.background)
            places = torch.cat([torch.arange(random_count), random_count + kept.cpu()])
            self.keys = self.keys[places]
            if self.stored is not None:
                rows = self._rows_of(places).to(self.device)
                self.stored = self.stored[rows]
                self.heard = None if self.heard is None else self.heard[rows]
        self.buffer.add(images.to(self.buffer_device), labels.to(self.buffer_device))
        first = 1 + int(self.keys.max()) if len(self.keys) else 0
        keys = torch.arange(first, first + len(images))
        self.keys = torch.cat([self.keys, keys])
        if self.stored is None or self.previous is None:
            return
        shape = (len(images) * self.config.views, len(self.units))
        if self.heard is None:
            said = _outputs(self.previous, self._views(images.to(self.device), keys))
        else:
            said = self.stored.new_zeros(shape)
            self.heard = torch.cat([self.heard, self.heard.new_zeros(shape)])
        self.stored = torch.cat([self.stored, said])

    def _distil(self, expert: Expert) -> None:
        config, stage = self.config, self._stage("distil")
        begun = time.perf_counter()
        teachers = _Teachers(self, expert)
        labels = self.buffer.labels.to(self.device)
        place = torch.full((max(self.units) + 1,), -1, device=self.device)
        place[torch.tensor(self.units, device=self.device)] = torch.arange(len(self.units), device=self.device)
        random_count = len(self.background)
        positions = torch.cat([place.new_zeros(random_count), place[labels]]).repeat_interleave(config.views)
        random_count *= config.views
        if config.views > 1:
            self.shown = self._views(torch.cat([self.background, self.buffer.images]).to(self.device), self.keys)
        fixed = config.targets != "live" or not (config.augmentation.active or config.mixup)
        targets = self._targets(teachers, positions) if fixed or self.once else None
        if self.once:
            assert targets is not None
            highest = targets[0][random_count:].masked_fill(~teachers.seen_mask, -math.inf).argmax(1)
            positions = torch.cat([positions[:random_count], highest])
            self.buffer.relabel(torch.tensor(self.units, device=self.device)[highest[:: config.views]])
        label_of = (torch.cumsum(teachers.seen_mask, 0) - 1)[positions]
        label_of[:random_count] = UNLABELLED
        if not fixed:
            targets = None
        batch_bytes = config.batch_size * math.prod(self.spec.shape) * self.buffer.images.element_size()
        block_steps = max(1, min(BLOCK_STEPS, BLOCK_BYTES // batch_bytes))
        parameters = self.optimizer.param_groups[0]
        last_written = self.step
        self.student.train()
        self.seconds[-1]["distil"] += time.perf_counter() - begun
        while self.step < config.iterations:
            started = time.perf_counter()
            steps = min(block_steps, config.iterations - self.step)
            index = torch.randint(len(positions), (steps * config.batch_size,), generator=self.generator)
            inputs = self._rows(index)
            index = index.to(self.device)
            at = positions[index]
            if config.augmentation.active:
                inputs = config.augmentation(inputs, self.bounds, self.generator)
            if config.mixup:
                inputs = blended(inputs, config.mixup, self.generator)[0]
            goal, mask = (targets[0][index], targets[1][index]) if targets is not None else teachers(inputs, at)
            batches = zip(*(t.split(config.batch_size) for t in (inputs, goal, mask, label_of[index])), strict=True)
            terms = torch.zeros(2, device=self.device)
            for batch, batch_goal, batch_mask, batch_labels in batches:
                parameters["lr"] = config.rate(self.step)
                term, ce = distillation_loss(
                    forward(self.student, batch, config.arithmetic),
                    *(batch_goal, batch_mask, batch_labels, teachers.seen, config),
                )
                self.optimizer.zero_grad(set_to_none=True)
                (term + config.lambda_ce * ce).backward()
                self.optimizer.step()
                terms += torch.stack([term.detach(), ce.detach()])
                self.step += 1
            self._record(stage, (terms / steps).tolist(), time.perf_counter() - started)
            due = self.step - last_written >= self.checkpoint_every and self.step < config.iterations
            last_written = self.step if due else last_written
            self._take_snapshot(write=due)
        self.shown = None
        if config.keeps_targets:
            assert targets is not None
            self.stored, self.heard = targets[0], targets[1] if config.targets == "experts" else None
        copied = config.init_from_first and self.expert_index == 0 and self._same_network(expert)
        if config.renormalise and not copied:
            self._renormalise()

    def _rows_of(self, places: Tensor) -> Tensor:
        """Rows of all views of the images at these places."""
        views = self.config.views
        return (places[:, None] * views + torch.arange(views)).flatten()

    def _views(self, images: Tensor, keys: Tensor) -> Tensor:
        """(N · views, C, H, W): all views of each image, one image after the other; without any, the images."""
        views = self.config.views
        if views == 1:
            return images
        shown = images.repeat_interleave(views, 0)
        generator = torch.Generator()
        for row, image in zip(range(0, len(shown), views), keys.tolist(), strict=True):
            generator.manual_seed((1_000_003 * self.seed + image) % 2**63)
            shown[row + 1 : row + views] = VIEW(shown[row + 1 : row + views], self.bounds, generator)
        return shown

    def _rows(self, index: Tensor) -> Tensor:
        """Images of the background, and after it of the buffer, on the device; or all of their views."""
        if self.shown is not None:
            return self.shown[index.to(self.device)]
        images, random_count = self.buffer.images, len(self.background)
        if not random_count:
            return images[index.to(images.device)].to(self.device)
        at = index.to(images.device)
        mine = at >= random_count
        rows = images.new_empty(len(at), *self.spec.shape)
        rows[mine], rows[~mine] = images[at[mine] - random_count], self.background[at[~mine]]
        return rows.to(self.device)

    def _targets(self, teachers: _Teachers, positions: Tensor) -> list[Tensor]:
        """Targets and mask of images as they are, (N, K)."""
        blocks = torch.arange(len(positions), device=self.device).split(BLOCK_IMAGES)
        found = [
            teachers(
                self._rows(rows),
                positions[rows],
                None if self.stored is None else self.stored[rows],
                None if self.heard is None else self.heard[rows],
            )
            for rows in blocks
        ]
        return [torch.cat(tensors) for tensors in zip(*found, strict=True)]

    @torch.no_grad()
    def _renormalise(self) -> None:
        """BatchNorms' running statistics become the mean of those of batches of the buffer's images."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        images, momenta = self.buffer.images, [norm.momentum for norm in norms]
        self.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # averages
            norm.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        for rows in order.tensor_split(max(1, len(images) // BLOCK_IMAGES)):
            self.model(images[rows.to(images.device)].to(self.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def _adjusted(self) -> nn.Module:
        """The ex-model as it is given away: ``align`` and ``debias`` change a copy, for it goes on learning."""
        if not (self.config.align or self.config.debias):
            return self.model
        model = copy.deepcopy(self.model).eval()
        layer: Any = model.get_submodule(self.classifier)
        seen = [self.position[c] for c in self.known(self.expert_index)]
        if self.config.align:
            layer.weight[seen] -= layer.weight[seen].mean(0)  # softmax does not see it
            norms = layer.weight[seen].norm(dim=1)
            factors = norms.mean() / norms
            layer.weight[seen] *= factors[:, None]
            if layer.bias is not None:
                layer.bias[seen] = (layer.bias[seen] - layer.bias[seen].mean()) * factors
        if self.config.debias:
            said = _outputs(model, self.background.to(self.device)).mean(0)[seen]
            layer.bias[seen] -= self.config.debias * (said - said.mean())
        return model

    @torch.no_grad()
    def _find_classifier(self) -> str:
        """Name of the linear layer whose outputs are the logits; ValueError if there is none."""
        example, outputs = torch.zeros(1, *self.spec.shape, device=self.device), list[Tensor]()
        model = copy.deepcopy(self.model).eval()
        try:
            layer = final_linear(model, example)
        except ValueError as error:
            raise ValueError(f"align and debias need a final linear layer: {error}") from error
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        if not torch.equal(model(example), outputs[-1]):
            raise ValueError("align and debias need a final linear layer that gives the logits, got one before others")
        if "weight" not in layer._parameters:
            raise ValueError("align and debias need a final linear layer with its own weight, got a parametrised one")
        if self.config.debias and layer.bias is None:
            raise ValueError("debias needs a final linear layer with a bias, got one without")
        return next(name for name, module in model.named_modules() if module is layer)

    def _record(self, stage: str, terms: list[float], seconds: float) -> None:
        term, ce = terms
        loss = term + self.config.lambda_ce * ce
        if not math.isfinite(loss):
            raise RuntimeError(f"{stage}: the loss is {loss} at step {self.step}; lower lr ({self.config.lr})")
        values = {"step": self.step, "loss": loss, self.config.loss: term, "ce": ce}
        for name, value in values.items():
            self.history[-1][name].append(value)
        self.seconds[-1]["distil"] += seconds
        if self.progress is not None:
            self.progress(stage, self.step, self.config.iterations, {k: v for k, v in values.items() if k != "step"})

    def _stage(self, name: str) -> str:
        return f"expert {self.expert_index + 1}/{len(self.stream)}: {name}"

    def _same_network(self, expert: Expert) -> bool:
        return (
            expert.card.architecture == self.architecture
            and expert.card.arguments == self.arguments
            and list(expert.units) == self.units
        )

    def _new_optimizer(self) -> torch.optim.Optimizer:
        config, parameters = self.config, self.model.parameters()
        if config.optimizer == "adam":
            return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )

    def known(self, experts: int) -> list[int]:
        """Classes of the first ``experts`` experts, ascending."""
        return sorted({c for classes in self.stream.experiences[:experts] for c in classes})

    def _as_expert(self) -> Expert:
        return Expert(self._adjusted(), self._card())

    def _card(self) -> Card:
        names = self.stream.class_names
        return Card(
            self.architecture,
            self.arguments,
            tuple(self.units),
            tuple(self.known(self.expert_index)),
            tuple(names.get(unit, str(unit)) for unit in self.units),
            self.spec,
            training={
                "method": "ex-model distillation",
                "strategy": self.strategy.describe(),
                "config": self.config.to_dict(),
                "experts": self.expert_index,
                "seed": self.seed,
            },
        )

    def _state(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "identity": self.identity,
            "expert_index": self.expert_index,
            "generated": self.generated,
            "step": self.step,
            "initial": self.initial,
            "model": _clone(self.model.state_dict()),
            "previous": None if self.previous is None else self.previous.state_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "buffer": self.buffer.state_dict(),
            "stored": self.stored,
            "heard": self.heard,
            "keys": self.keys,
            "measured": None if self.measured is None else list(self.measured),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
            "history": copy.deepcopy(self.history),
            "evaluations": copy.deepcopy(self.evaluations),
            "seconds": copy.deepcopy(self.seconds),
            "peak_mb": copy.deepcopy(self.peak_mb),
        }

    def _take_snapshot(self, write: bool = False) -> None:
        """Remember the state for Ctrl-C: in the middle of a step it would not be consistent."""
        if self.path is not None:
            self._snapshot = self._state()
            if write:
                self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Save the last snapshot."""
        if self.path is not None and self._snapshot is not None:
            save_checkpoint(self.path, self._snapshot)

    def _restore(self, state: dict[str, Any]) -> None:
        begun = state["expert_index"] + state["generated"]
        value: Any
        for name, value in self.identity.items():
            was: Any = state["identity"].get(name)
            if name == "config":  # of a version that had fewer fields
                was = DistillationConfig.from_dict(was).to_dict()
            if name == "experts":  # those to come may have been mended, and more may have come
                was, value = was[:begun], value[:begun]
            if was != value:
                raise ValueError(
                    f"{self.path} is of another run: {name} was {was!r}, is {value!r}; "
                    "delete it or give another checkpoint folder"
                )
        self.expert_index, self.generated, self.step = state["expert_index"], state["generated"], state["step"]
        self.initial = state["initial"]
        self.model.load_state_dict(state["model"])
        if state["previous"] is not None:
            self.previous = copy.deepcopy(self.student).eval().requires_grad_(False)
            self.previous.load_state_dict(state["previous"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.load_state_dict(state["buffer"] | {"labels": state["buffer"]["labels"].to(self.buffer_device)})
        self.stored, self.heard = state["stored"], state["heard"]
        self.measured = None if state["measured"] is None else Measured(*state["measured"])
        self.keys = state["keys"].cpu()
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["global_generator"].cpu())
        if state["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"].cpu(), self.device)
        self.history, self.evaluations = state["history"], state["evaluations"]
        self.seconds, self.peak_mb = state["seconds"], state["peak_mb"]


class _Teachers:
    """The previous ex-model and the current expert, each asked only about the images that need it."""

    def __init__(self, run: _Run, expert: Expert) -> None:
        self.config, self.previous, self.expert = run.config, run.previous, _by_our_ops(expert)
        count, device = len(run.units), run.device
        current = [run.position[c] for c in expert.classes]
        earlier = [run.position[c] for c in run.known(run.expert_index)]
        self.current_known = torch.zeros(count, dtype=torch.bool, device=device)
        self.current_known[current] = True
        self.previous_known = torch.zeros(count, dtype=torch.bool, device=device)
        self.previous_known[earlier] = True
        self.seen_mask = self.current_known | self.previous_known
        self.seen = torch.nonzero(self.seen_mask)[:, 0]
        self._spec = run.spec
        self._heads = _heads(run) if run.config.task_labels else None
        self._from = expert.positions(expert.classes)
        self._to = torch.tensor(current, device=device)
        self._calibration, self._measured = run.calibration, run.measured

    @torch.no_grad()
    def __call__(
        self, images: Tensor, positions: Tensor, stored: Tensor | None = None, heard: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Eq. 6 to 8 for normalised images whose labels are at ``positions``: targets and mask, (N, K).

        ``stored`` (N, K): earlier targets of the images in place of the previous ex-model's outputs; ``heard`` (N, K):
        units that an expert spoke of there, all known ones if None.
        """
        previous_known = self.previous_known if heard is None else self.previous_known & heard
        how = self.config.normalize
        shape = (len(images), len(self.current_known))
        current, previous = images.new_zeros(shape), images.new_zeros(shape)
        every = self.config.combine == "per_unit"
        rows = self._rows(self.current_known, positions, every)
        mapped = images.new_zeros((len(rows), shape[1]))
        seen = self.expert.input_spec.convert(images[rows], self._spec)
        if self._calibration is None or self._measured is None:
            mapped[:, self._to] = self.expert.logits(seen)[:, self._from]
        else:
            mapped[:, self._to] = self._calibration.responses(self.expert, seen, self._measured)
        current[rows] = normalize(mapped, self.current_known, how)
        if self.previous is not None:
            rows = self._rows(self.previous_known, positions, every)
            outputs = _outputs(self.previous, images[rows]) if stored is None else stored[rows]
            known = previous_known if previous_known.dim() == 1 else previous_known[rows]
            previous[rows] = normalize(outputs, known, how)
        target, mask = combined_targets(
            previous, current, previous_known, self.current_known, positions, self.config.combine
        )
        return (target, mask) if self._heads is None else (target, mask & self._heads[positions])

    def _rows(self, known: Tensor, positions: Tensor, every: bool) -> Tensor:
        if every:
            return torch.arange(len(positions), device=positions.device)
        return torch.nonzero(known[positions])[:, 0]


def _by_our_ops(expert: Expert) -> Expert:
    """To be asked for answers; a strategy gets the network as it is, which the engine takes apart itself."""
    return Expert(twin(expert.model), expert.card)


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(chunk) for chunk in images.split(BLOCK_IMAGES)])


def _heads(run: _Run) -> Tensor:
    """(K, K) bool: row j marks the units of the experience that class j belongs to."""
    heads = torch.zeros(len(run.units), len(run.units), dtype=torch.bool, device=run.device)
    for number, classes in enumerate(run.stream.experiences):
        members = torch.tensor([run.position[c] for c in classes], device=run.device)
        if shared := [run.units[j] for j in members.tolist() if heads[j].any()]:
            raise ValueError(
                f"task_labels: expert {number + 1} shares the classes {shared} with an earlier one, and so they do "
                "not tell the task"
            )
        heads[members[:, None], members] = True
    return heads


def _clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
