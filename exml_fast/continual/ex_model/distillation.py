"""Ex-Model Distillation with its settings (Carta 2022); the algorithm itself is in :mod:`.run`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from exml_fast.continual.ex_model.calibration import ResponseCalibration
from exml_fast.continual.ex_model.config import Background, DistillationConfig
from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.result import ExModelResult
from exml_fast.continual.ex_model.run import Run
from exml_fast.continual.ex_model.strategies import Strategy
from exml_fast.continual.ex_model.student import Student
from exml_fast.continual.expert import Expert, complete_arguments, require_fit
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.progress import Progress
from exml_fast.storage import PathLike
from exml_fast.training.loop import seeded

__all__ = ["ExModelDistillation"]


class ExModelDistillation:
    """Alg. 1: for each expert, new images from the strategy, a rebalanced buffer, and distillation steps.

    Args:
        strategy: where images come from (:mod:`exml_fast.continual.ex_model.strategies`).
        config: the settings.
        model, units: the ex-model, of which a copy learns, and the global class id of each of its logits. By default
            the architecture of the first expert, with a unit for every unit that occurs in the stream.
        spec: the ex-model's input, the first expert's by default. Experts may differ from it in architecture and
            input: they see the images converted (:meth:`exml_fast.InputSpec.convert`).
        seed: of everything random in a run.
        device: where the networks, the buffer and the steps are.
        calibration: makes the experts' logits comparable; None takes them as they are.
        background: random images that every expert sees, before those of the strategy.
        buffer_dir: folder for the buffer's images instead of memory (:class:`exml_fast.ImageBuffer`); results do not
            change.

    Raises:
        ValueError: if the settings do not go together.
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
        background: Background | None = None,
        buffer_dir: PathLike | None = None,
    ) -> None:
        if model is not None and units is None:
            raise ValueError("units must be given with model: the global class id of each logit")
        self.strategy = strategy
        self.config = config or DistillationConfig()
        self.config.require_fit(background, strategy.once)
        self.model, self.units, self.spec = model, units, spec
        self.seed = seed
        self.device = torch.device(device)
        self.calibration = calibration
        self.background = background
        self.buffer_dir = buffer_dir

    def run(
        self,
        stream: ExpertStream,
        *,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
        evaluate: Callable[[Expert], Any] | None = None,
        checkpoint_every: int = 5000,
    ) -> ExModelResult:
        """Learn from the whole stream.

        Args:
            progress: called as ``progress(stage, step, total, terms)`` once a block of steps.
            checkpoint_dir: where the state is saved after each expert, after its images are there, at least every
                ``checkpoint_every`` steps, and on Ctrl-C (which is raised on). A run that finds a checkpoint of
                the same stream, configuration and seed continues from it and ends bit for bit as if never stopped;
                ValueError naming what differs otherwise.
            evaluate: called with the ex-model after each expert, of which it keeps no copy (the network goes on
                learning); returns a number, or a dict or list of numbers.

        Raises:
            ValueError: if a class of an expert is not among ``units``, or if two experts share a class although the
                task decides the head (``task_labels``).
            RuntimeError: if the loss is not finite.
            ValueError, OSError: for an expert that cannot be read, or a full disk. A note says how much was learned
                and is kept; the same call continues from there once the expert is mended or replaced. Experts that were
                not learned yet may change, and more may have come.
        """
        with seeded(self.seed, self.device):
            run = Run(self, stream, progress, checkpoint_dir, checkpoint_every)
            try:
                with run.checkpoint:
                    return run.finish(evaluate)
            except (ValueError, OSError) as error:
                error.add_note(run.kept())
                raise

    def new_student(self, stream: ExpertStream, units: list[int], spec: InputSpec) -> Student:
        """The ex-model: a copy of the given model, or the first expert's architecture with new weights."""
        arguments: dict[str, Any] = {}
        if self.model is not None:
            model, architecture = copy.deepcopy(self.model), type(self.model).__name__
            require_fit(model.to(self.device), spec, len(units))
        else:
            first = stream.cards[0]
            architecture = first.architecture
            given = {k: v for k, v in first.arguments.items() if k != "num_classes"}
            arguments = complete_arguments(architecture, given, len(units), spec)
            model = create(architecture, **arguments)
        return Student(model, architecture, arguments, self.device)

    def new_memory(self, spec: InputSpec, experts: int) -> Memory:
        """An empty buffer, before it the background; ValueError if it has less room than one image an expert."""
        size, background = self.config.buffer_size, self.background
        fixed = 0 if background is None else round(background.share * size)
        if size - fixed < experts:
            share = 0.0 if background is None else background.share
            raise ValueError(
                f"buffer_size {size} with background_share {share} leaves {size - fixed} images for {experts} experts"
            )
        drawn = None
        if background is not None:
            drawn = background.source.draw(fixed, spec, torch.Generator().manual_seed(self.seed))
        return Memory(
            size - fixed, spec, background=drawn, views=self.config.targets.views, seed=self.seed,
            device=self.device, folder=self.buffer_dir,
        )  # fmt: skip
