"""The images that a student is taught with: given ones, and rounds of new ones (Yin 2020, A.1)."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.data.buffer import ImageBuffer
from exml_fast.engine.freezing import frozen
from exml_fast.engine.memory import available_bytes
from exml_fast.inversion import Result, Synthesizer
from exml_fast.progress import Progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, Training
from exml_fast.training.batches import PreparedBatches
from exml_fast.validation import Count, Natural, Precision, settings, to_dict

__all__ = ["Generation", "Pool", "Rounds", "require_room"]

UNBOUNDED = 2**62


@settings
class Generation:
    """Images that are made while the student learns (Yin 2020, A.1).

    Attributes:
        generate_every: steps between two rounds.
        per_round: images of a round. The next step learns from them alone; they join the pool, from which all other
            steps draw.
        rounds: how many at most; without end when None.
        pool_size: images kept, balanced over the classes, of all rounds and those given; all when None.
        engine_precision: of the teacher during the inversion (:class:`exml_fast.FrozenTeacher`).
    """

    generate_every: Count = 50
    per_round: Count = 256
    rounds: Natural | None = None
    pool_size: Count | None = None
    engine_precision: Precision = "auto"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Generation(**value)`` is the inverse."""
        return to_dict(self)


class Rounds:
    """Rounds of new images, in which the student as it then is may compete."""

    def __init__(
        self,
        synthesizers: Sequence[Synthesizer],
        classes: Sequence[int],
        student: nn.Module,
        progress: Progress | None,
    ) -> None:
        self.synthesizers, self.classes = synthesizers, torch.tensor(classes)
        self.student, self.progress = student, progress
        self.record: list[dict[str, float]] = []

    def check_classes(self, units: Sequence[int]) -> None:
        """ValueError now for classes that the first round would complain about."""
        if missing := sorted(set(self.classes.tolist()) - set(units)):
            raise ValueError(f"classes {missing} are not among the teacher's {len(units)}")

    def make(self, count: int, generator: torch.Generator, checkpoint_dir: PathLike | None) -> tuple[Result, int]:
        """``count`` images, balanced over the classes; and the index of the recipe used."""
        which = 0
        if len(self.synthesizers) > 1:
            which = int(torch.randint(len(self.synthesizers), (), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        turns = -(-count // len(self.classes))
        orders = [torch.randperm(len(self.classes), generator=generator) for _ in range(turns)]
        labels = self.classes[torch.cat(orders)[:count]]
        result = self.synthesizers[which].run(
            labels, seed=seed, classes=self.classes.tolist(), student=self.student, progress=self.progress,
            checkpoint_dir=checkpoint_dir,
        )  # fmt: skip
        return result, which


class Pool(PreparedBatches):
    """Images to learn from: those given, and all rounds of new ones; a source of batches."""

    def __init__(
        self,
        config: Training,
        generation: Generation,
        spec: InputSpec,
        units: Sequence[int],
        device: torch.device,
        generator: torch.Generator,
        folder: PathLike | None,
    ) -> None:
        super().__init__(config, spec, device, generator)
        self.generation = generation
        self.buffer = ImageBuffer(generation.pool_size or UNBOUNDED, folder)
        self.rounds: Rounds | None = None
        self.checkpoint_dir: PathLike | None = None
        self.seconds = 0.0
        self._in_memory = folder is None
        self.place = torch.full((max(units) + 1,), -1)
        self.place[torch.tensor(units)] = torch.arange(len(units))

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """Batches drawn from the pool; the first after a round is of its images alone."""
        fresh = None
        if self.rounds is not None:
            every = self.generation.generate_every
            fresh = self._generate(self.rounds, step) if self._due(step) else None
            limit = min(limit, every - step % every)
        for _ in range(limit):
            images, labels = fresh or self.buffer.sample(self.config.batch_size, self.generator)
            fresh = None
            yield self.prepared(Batch(images.to(self.device), self.place[labels].to(self.device)))

    def add(self, images: Tensor, labels: Tensor) -> None:
        """The pool keeps at most its size, old and new, balanced over the classes."""
        room = self.buffer.capacity - len(images)
        if len(self.buffer) > room:
            self.buffer.subsample(room, self.generator)
        self.buffer.add(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`exml_fast.training.Batches`."""
        # The file of a bounded pool is written anew by later rounds: the checkpoint has to hold its images.
        return {
            "buffer": self.buffer.state_dict(images=self._in_memory or self.generation.pool_size is not None),
            "generator": self.generator.get_state(),
            "rounds": [] if self.rounds is None else copy.deepcopy(self.rounds.record),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`exml_fast.training.Batches`."""
        if "last" in state["buffer"] and self._in_memory:
            raise ValueError("pool_dir must be given again: the checkpoint's images are in the file in that folder")
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(state["generator"])
        if self.rounds is not None:
            self.rounds.record = state["rounds"]
        self.seconds = state["seconds"]

    def _due(self, step: int) -> bool:
        if self.rounds is None or step % self.generation.generate_every:
            return False
        return self.generation.rounds is None or len(self.rounds.record) < self.generation.rounds

    def _generate(self, rounds: Rounds, step: int) -> tuple[Tensor, Tensor]:
        """A round of new images, which join the pool; at most a batch of them to learn from at once."""
        begun = time.monotonic()
        result, which = rounds.make(self.generation.per_round, self.generator, self.checkpoint_dir)
        with frozen(rounds.student) as student, torch.no_grad():
            named = [student(part.to(self.device)).argmax(1).cpu() for part in result.images.split(512)]
        right = (torch.cat(named) == self.place[result.labels]).double().mean()
        self.add(result.images, result.labels)
        seconds = time.monotonic() - begun
        self.seconds += seconds
        rounds.record.append(
            {"step": step, "images": len(result), "recipe": which, "seconds": seconds, "student": float(right),
             "teacher": result.summary["teacher_accuracy"]}
        )  # fmt: skip
        chosen = torch.randperm(len(result), generator=self.generator)[: self.config.batch_size]
        return result.images[chosen], result.labels[chosen]


def require_room(
    config: Training,
    generation: Generation,
    spec: InputSpec,
    given: int,
    generates: bool,
    pool_dir: PathLike | None = None,
) -> None:
    """ValueError, before any step, if the images do not fit, or if there are none."""
    if generation.pool_size is not None and given > generation.pool_size:
        raise ValueError(f"pool_size {generation.pool_size} is smaller than the {given} images given")
    if not generates:
        return
    if generation.rounds == 0 and given == 0:
        raise ValueError("rounds is 0 and there are no images: there is nothing to learn from")
    if generation.pool_size is not None and generation.pool_size < generation.per_round and generation.rounds != 0:
        raise ValueError(f"pool_size must hold a round, per_round = {generation.per_round}, got {generation.pool_size}")
    rounds = -(-config.steps // generation.generate_every)
    made = given + generation.per_round * min(rounds, rounds if generation.rounds is None else generation.rounds)
    kept = min(made, generation.pool_size or made)
    needed = 4 * math.prod(spec.shape) * kept
    if pool_dir is None:
        what, free = "fewer rounds, a pool_size or a pool_dir must be given", available_bytes(torch.device("cpu"))
    else:
        what = f"fewer rounds, a pool_size or a pool_dir with room must be given, not {pool_dir}"
        free = _room(Path(pool_dir))
    if free is not None and needed > free:
        raise ValueError(
            f"{what}: {kept} images of this run are {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def _room(folder: Path) -> int:
    """Free bytes on the disk where ``folder`` is, or would be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free
