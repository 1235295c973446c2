"""Ex-Model Distillation with its settings (Carta 2022); the algorithm itself is in ``run.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exml_fast.continual.ex_model.result import ExModelResult
from exml_fast.continual.ex_model.run import Run
from exml_fast.continual.ex_model.setup import Setup
from exml_fast.continual.expert import Expert
from exml_fast.continual.stream import ExpertStream
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training.loop import seeded
from exml_fast.validation import require_count

__all__ = ["ExModelDistillation"]


class ExModelDistillation(Setup):
    """Alg. 1: for each expert, new images from the strategy, a rebalanced buffer, and distillation steps.

    Args:
        strategy: where images come from (:mod:`exml_fast.continual.ex_model.strategies`).
        config: the settings.
        model, units: the ex-model, of which a copy learns, and the global class id of each of its logits. By default
            the architecture of the first expert, with a unit for every unit that occurs in the stream. An
            :class:`Expert` as ``model`` brings its units, input, architecture and arguments.
        architecture, arguments: how :func:`exml_fast.models.create` makes ``model``; they go to the ex-model's card.
            Without them the card names the model's class, and ``init_from_first`` finds no equal expert.
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

    @reports_progress
    def run(
        self,
        stream: ExpertStream | PathLike | Sequence[PathLike] | Sequence[Expert],
        *,
        progress: ProgressOption = None,
        checkpoint_dir: PathLike | None = None,
        evaluate: Callable[[Expert], Any] | None = None,
        checkpoint_every: int = 5000,
    ) -> ExModelResult:
        """Learn from the whole stream.

        Args:
            stream: the experts, or what :class:`ExpertStream` makes them from: a folder, folders or experts.
            progress: called as ``progress(stage, step, total, terms)`` once a block of steps.
            checkpoint_dir: where the state is saved after each expert, after its images are there, at least every
                ``checkpoint_every`` steps, and on Ctrl-C (which is raised on). A run that finds a checkpoint of
                the same stream, configuration and seed continues from it and ends bit for bit as if never stopped;
                ValueError naming what differs otherwise.
            evaluate: called with the ex-model after each expert; returns a number, or a dict or list of numbers.
                ``evaluate`` must copy the network to keep it; training continues in place.

        Raises:
            ValueError: if a class of an expert is not among ``units``, or if two experts share a class although the
                task decides the head (``task_labels``).
            RuntimeError: if the loss is not finite.
            ValueError, OSError: for an expert that cannot be read, or a full disk. A note says how much was learned
                and is kept; the same call continues from there once the expert is mended or replaced. Experts that were
                not learned yet may change, and more may have come.
        """
        progress = callback_of(progress)
        require_count("checkpoint_every", checkpoint_every)
        stream = stream if isinstance(stream, ExpertStream) else ExpertStream(stream)
        with seeded(self.seed, self.device):
            run = Run(self, stream, progress, checkpoint_dir, checkpoint_every)
            try:
                with run.checkpoint:
                    return run.finish(evaluate)
            except (ValueError, OSError) as error:
                error.add_note(run.kept())
                raise
