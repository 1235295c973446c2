"""The images that a student is taught with: given ones, and rounds of new ones (Yin 2020, A.1)."""

from __future__ import annotations

import copy
import dataclasses
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
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike
from exml_fast.training import Batch, Training
from exml_fast.training.batches import PreparedBatches
from exml_fast.transfer.makers import Made, Maker
from exml_fast.validation import Count, Natural, Precision, settings, to_dict

__all__ = ["Generation", "Pool", "places", "require_room"]

UNBOUNDED = 2**62
# Images of a round that the student is asked about, for the record.
ASKED_IMAGES = 1024
# Defaults of a round: Yin 2020's for images that are optimised. Images that are drawn are seen four times on average,
# and the pool holds those of four rounds.
INVERTED_PER_ROUND = 256
DRAWN_SEEN, DRAWN_ROUNDS = 4, 4


@settings
class Generation:
    """Images that are made while the student learns (Yin 2020, A.1).

    Attributes:
        generate_every: steps between two rounds.
        per_round: images of a round. The next step learns from them alone; they join the pool, from which all other
            steps draw. When None, 256 images that are optimised, or as many drawn by a source that steps see an image
            four times on average.
        rounds: how many at most; without end when None. The first round of images drawn by a source fills the pool.
        pool_size: images kept, balanced over the classes, of all rounds and those given. When None, all images, but
            with a source those of four rounds.
        engine_precision: of the teacher during the inversion (:class:`exml_fast.FrozenTeacher`).
        shared_statistics: over several ranks (:class:`exml_fast.ranks.Ranks`), optimise each batch of a recipe on all
            of them, with BatchNorm statistics of the whole batch. Otherwise each rank makes batches of its own.
    """

    generate_every: Count = 50
    per_round: Count | None = None
    rounds: Natural | None = None
    pool_size: Count | None = None
    engine_precision: Precision = "auto"
    shared_statistics: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Generation(**value)`` is the inverse."""
        return to_dict(self)

    def resolved(self, batch_size: int, cheap: bool) -> Generation:
        """These settings with the numbers that None stands for; ``cheap`` as :class:`exml_fast.transfer.Maker`."""
        if not cheap:
            return dataclasses.replace(self, per_round=self.per_round or INVERTED_PER_ROUND)
        per_round = self.per_round or max(batch_size, self.generate_every * batch_size // DRAWN_SEEN)
        return dataclasses.replace(self, per_round=per_round, pool_size=self.pool_size or DRAWN_ROUNDS * per_round)


class Pool(PreparedBatches):
    """Images to learn from: those given, and all rounds of new ones; a source of batches.

    Args:
        config, spec, device, generator: as :class:`exml_fast.training.PreparedBatches`.
        generation: without None (:meth:`Generation.resolved`).
        units: class id of each logit.
        student: is asked to classify new images, for the record.
        maker: of new images; None for the images alone that are given.
        folder: for the images' file.
        ranks: processes that train one student. All have the same pool; each learns from its share of every batch.
    """

    def __init__(
        self,
        config: Training,
        generation: Generation,
        spec: InputSpec,
        units: Sequence[int],
        device: torch.device,
        generator: torch.Generator,
        student: nn.Module,
        maker: Maker | None,
        folder: PathLike | None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(config, spec, device, generator, ranks)
        self.generation, self.student, self.maker = generation, student, maker
        self.buffer = ImageBuffer(generation.pool_size or UNBOUNDED, folder)
        self.record: list[dict[str, float]] = []
        self.checkpoint_dir: PathLike | None = None
        self.seconds = 0.0
        self._in_memory = folder is None
        self.place = places(units)

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """Batches drawn from the pool; the first after a round is of its images alone."""
        fresh = None
        if self.maker is not None:
            every = self.generation.generate_every
            fresh = self._generate(self.maker, step) if self._due(step) else None
            limit = min(limit, every - step % every)
        for _ in range(limit):
            rows = None
            if fresh is None:
                rows = self.ranks.share(self.buffer.draw_rows(self.config.batch_size, self.generator))
                images, labels = self.buffer.images[rows], self.buffer.labels[rows]
                rows = rows.to(self.device)
            else:
                (images, labels), fresh = map(self.ranks.share, fresh), None
            yield self.prepared(Batch(images.to(self.device), self.place[labels].to(self.device), rows=rows))

    def kept(self) -> tuple[Tensor, Tensor]:
        """All images (N, C, H, W) and their class ids (N,)."""
        return self.buffer.images, self.buffer.labels

    def identity(self) -> tuple[list[Tensor], Any]:
        """Tensors and JSON values that decide the images, those given apart: see :class:`Maker`."""
        tensors, made = ([], []) if self.maker is None else self.maker.identity()
        return [self.place, *tensors], made

    def add(self, images: Tensor, labels: Tensor) -> None:
        """The pool keeps at most its size, old and new, balanced over the classes."""
        room = self.buffer.capacity - len(images)
        if len(self.buffer) > room:
            self.buffer.subsample(room, self.generator)
        self.buffer.add(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`exml_fast.training.Batches`."""
        # The file of a bounded pool is written anew by later rounds: the checkpoint has to hold its images. Without
        # rounds the pool has what was given, and is given it again.
        images = self._in_memory or self.generation.pool_size is not None
        return {
            "buffer": None if self.maker is None else self.buffer.state_dict(images=images),
            "generator": self.generator.get_state(),
            "rounds": copy.deepcopy(self.record),
            "maker": None if self.maker is None else self.maker.state_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`exml_fast.training.Batches`."""
        if self.maker is not None:
            if "last" in state["buffer"] and self._in_memory:
                raise ValueError("pool_dir must be given again: the checkpoint's images are in the file in that folder")
            self.buffer.load_state_dict(state["buffer"])
            self.maker.load_state_dict(state["maker"])
        self.generator.set_state(state["generator"])
        self.record = state["rounds"]
        self.seconds = state["seconds"]

    def _made(self, maker: Maker, count: int) -> Made:
        """New images, the same on all ranks."""
        ranks = self.ranks
        if ranks.count == 1:
            return maker.make(count, self.generator, self.checkpoint_dir)
        ranks.take_first(self.student.buffers())  # a student that competes must be the same on all ranks
        # A killed run repeats the round: ranks that continued at different steps would wait for each other.
        if maker.splits:
            made = maker.make(-(-count // ranks.count), self.own_generator(), None)
            return Made(ranks.gather(made.images)[:count], ranks.gather(made.labels)[:count], made.record)
        made = maker.make(count, self.generator, None)
        ranks.take_first([made.images, made.labels])
        return made

    def _due(self, step: int) -> bool:
        if step % self.generation.generate_every:
            return False
        return self.generation.rounds is None or len(self.record) < self.generation.rounds

    def _generate(self, maker: Maker, step: int) -> tuple[Tensor, Tensor]:
        """A round of new images, which join the pool; at most a batch of them to learn from at once."""
        begun = time.monotonic()
        generation = self.generation
        assert generation.per_round is not None
        count = generation.per_round
        if maker.cheap and not self.record and generation.pool_size is not None:
            count = max(count, generation.pool_size - len(self.buffer))
        made = self._made(maker, count)
        asked = made.images[:ASKED_IMAGES]
        with frozen(self.student) as student, torch.no_grad():
            named = [student(part.to(self.device)).argmax(1).cpu() for part in asked.split(512)]
        right = (torch.cat(named) == self.place[made.labels[:ASKED_IMAGES]]).double().mean()
        self.add(made.images, made.labels)
        seconds = time.monotonic() - begun
        self.seconds += seconds
        self.record.append(
            {"step": step, "images": len(made.images), "seconds": seconds, "student": float(right), **made.record}
        )
        chosen = torch.randperm(len(made.images), generator=self.generator)[: self.config.batch_size]
        return made.images[chosen], made.labels[chosen]


def places(units: Sequence[int]) -> Tensor:
    """The logit position of each class id, int64 (max(units) + 1,); -1 for an id without a logit."""
    place = torch.full((max(units) + 1,), -1)
    place[torch.tensor(units)] = torch.arange(len(units))
    return place


def require_room(
    config: Training,
    generation: Generation,
    spec: InputSpec,
    given: int,
    generates: bool,
    pool_dir: PathLike | None = None,
    *,
    cheap: bool = False,
) -> None:
    """ValueError, before any step, if the images do not fit, or if there are none.

    Args:
        config: steps and batches of the student.
        generation: without None (:meth:`Generation.resolved`) if new images are made.
        spec: of the images.
        given: number of images given.
        generates: whether new images are made.
        pool_dir: folder for the images' file; None for memory.
        cheap: of the maker of the images, as :class:`exml_fast.transfer.Maker`.
    """
    if generation.pool_size is not None and given > generation.pool_size:
        raise ValueError(f"pool_size {generation.pool_size} is smaller than the {given} images given")
    if not generates:
        return
    if generation.rounds == 0 and given == 0:
        raise ValueError("rounds is 0 and there are no images: there is nothing to learn from")
    per_round = generation.per_round
    assert per_round is not None
    if generation.pool_size is not None and generation.pool_size < per_round and generation.rounds != 0:
        raise ValueError(f"pool_size must hold a round, per_round = {per_round}, got {generation.pool_size}")
    rounds = -(-config.steps // generation.generate_every)
    made = given + per_round * min(rounds, rounds if generation.rounds is None else generation.rounds)
    made = max(made, generation.pool_size or 0) if cheap else made
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
