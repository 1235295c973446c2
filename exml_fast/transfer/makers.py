"""Who makes the new images that join the pool of :func:`exml_fast.transfer.distill`.

The inversion, a meta-generator, or a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from exml_fast.data import ImageSource, InputSpec
from exml_fast.generators import FastSynthesis
from exml_fast.inversion import SetStatistics, Synthesizer
from exml_fast.progress import Progress
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike
from exml_fast.training import network_input

__all__ = ["Adapted", "Drawn", "Inverted", "Made", "Maker"]

# Images that the teacher labels at once.
LABELLED_IMAGES = 512


@dataclass(frozen=True)
class Made:
    """New images, normalised: float32 (N, C, H, W) on the CPU."""

    images: Tensor
    labels: Tensor
    """(N,) int64 class ids."""
    record: dict[str, float]
    """What the result reports about this round, with the same names in every round."""


class Maker(Protocol):
    """Makes images while a student learns. All its randomness comes from the generator that it is given."""

    cheap: ClassVar[bool]
    """Whether an image costs much less than a training step on it: the first round then fills the pool, and the
    defaults of :class:`exml_fast.transfer.Generation` are many fresh images in place of few that stay."""

    @property
    def splits(self) -> bool:
        """Whether each of several ranks may make a part of a round: nothing passes from one round to the next."""
        ...

    def make(self, count: int, generator: torch.Generator, checkpoint_dir: PathLike | None) -> Made:
        """``count`` new images; long work may keep its state in the folder."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What changes from round to round."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        ...

    def identity(self) -> tuple[list[Tensor], Any]:
        """Tensors and JSON values that decide the images: a checkpoint of another maker is refused."""
        ...


class Inverted:
    """Images optimised until the teacher recognises balanced classes (Yin 2020, A.1); the student may compete.

    With a recipe's ``bn_memory``, the images of all its rounds are one set.

    Args:
        synthesizers: of the teacher; of several each round takes one, all equally probable.
        classes: ids of the classes.
        units: the teacher's classes, among which ``classes`` must be.
        student: the network that learns, as it is at the time of a round.
        progress: of the inversion.
        ranks: processes over which each batch is spread (:meth:`exml_fast.Synthesizer.run`).

    Raises:
        ValueError: for classes that the teacher does not have.
    """

    cheap: ClassVar[bool] = False

    def __init__(
        self,
        synthesizers: Sequence[Synthesizer],
        classes: Sequence[int],
        units: Sequence[int],
        student: nn.Module,
        progress: Progress | None,
        ranks: Ranks | None = None,
    ) -> None:
        if missing := sorted(set(classes) - set(units)):
            raise ValueError(f"classes {missing} are not among the teacher's {len(units)}")
        self.synthesizers, self.classes = synthesizers, torch.tensor(classes)
        self.student, self.progress, self.ranks = student, progress, ranks or Ranks()
        memories = [synthesizer.recipe.matching.bn_memory for synthesizer in synthesizers]
        self.memories = [SetStatistics(memory) if memory else None for memory in memories]

    @property
    def splits(self) -> bool:
        """See :class:`Maker`."""
        return self.ranks.count == 1 and not any(self.memories)

    def make(self, count: int, generator: torch.Generator, checkpoint_dir: PathLike | None) -> Made:
        """See :class:`Maker`. "recipe" is the index of the synthesizer, "teacher" the share that it recognises."""
        which = 0
        if len(self.synthesizers) > 1:
            which = int(torch.randint(len(self.synthesizers), (), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        turns = -(-count // len(self.classes))
        orders = [torch.randperm(len(self.classes), generator=generator) for _ in range(turns)]
        labels = self.classes[torch.cat(orders)[:count]]
        result = self.synthesizers[which].run(
            labels, seed=seed, classes=self.classes.tolist(), student=self.student, memory=self.memories[which],
            progress=self.progress, checkpoint_dir=checkpoint_dir, ranks=self.ranks,
        )  # fmt: skip
        return Made(result.images, result.labels, {"recipe": which, "teacher": result.summary["teacher_accuracy"]})

    def state_dict(self) -> dict[str, Any]:
        """The statistics of the images so far; the student is saved by the loop that trains it."""
        return {"memories": [memory and memory.state_dict() for memory in self.memories]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Maker`."""
        for memory, saved in zip(self.memories, state["memories"], strict=True):
            if memory is not None:
                memory.load_state_dict(saved)

    def identity(self) -> tuple[list[Tensor], Any]:
        """See :class:`Maker`."""
        given = [t for s in self.synthesizers[:1] if isinstance(t := s.networks.statistics, Tensor)]
        settings = [[s.recipe.to_dict(), s.networks.layers, s.networks.precision] for s in self.synthesizers]
        return [self.classes, *given], settings


class Adapted:
    """Images of a meta-generator that some steps adapt to each batch (Fang 2022); the student may compete.

    Args:
        synthesis: of the teacher.
        student: the network that learns, as it is at the time of a round.
    """

    cheap: ClassVar[bool] = False
    splits = False

    def __init__(self, synthesis: FastSynthesis, student: nn.Module) -> None:
        self.synthesis, self.student = synthesis, student

    def make(self, count: int, generator: torch.Generator, checkpoint_dir: PathLike | None) -> Made:
        """See :class:`Maker`. "teacher" is the share that the teacher recognises."""
        images, labels = self.synthesis.make(count, self.student, generator)
        return Made(images, labels, {"teacher": self.synthesis.recognised})

    def state_dict(self) -> dict[str, Any]:
        """The meta-generator and the statistics of the images so far."""
        return self.synthesis.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Maker`."""
        self.synthesis.load_state_dict(state)

    def identity(self) -> tuple[list[Tensor], Any]:
        """See :class:`Maker`."""
        networks = self.synthesis.networks
        given = [networks.statistics] if isinstance(networks.statistics, Tensor) else []
        settings = [self.synthesis.settings.to_dict(), networks.layers, networks.precision]
        return [torch.tensor(self.synthesis.classes), *given], settings


class Drawn:
    """Images that a source draws, labelled by the teacher.

    Args:
        source: draws the images.
        spec: of the teacher's input.
        teacher: gives logits (N, K) of images on ``device``.
        units: class id of each logit.
    """

    cheap: ClassVar[bool] = True
    splits = True

    def __init__(
        self,
        source: ImageSource,
        spec: InputSpec,
        teacher: Callable[[Tensor], Tensor],
        units: Sequence[int],
        device: torch.device,
    ) -> None:
        self.source, self.spec, self.device = source, spec, device
        self.teacher, self.units = teacher, torch.tensor(units)

    def make(self, count: int, generator: torch.Generator, checkpoint_dir: PathLike | None) -> Made:
        """See :class:`Maker`. ValueError naming the source if it draws anything but ``count`` images of the input."""
        name = f"images drawn by {type(self.source).__name__}"
        images, _ = network_input(self.source.draw(count, self.spec, generator), self.spec, name)
        if len(images) != count:
            raise ValueError(f"{name} must be {count}, got {len(images)}")
        with torch.no_grad():
            parts = images.split(LABELLED_IMAGES)
            named = [self.teacher(part.to(self.device)).argmax(1).cpu() for part in parts]
        return Made(images.cpu(), self.units[torch.cat(named)], {})

    def state_dict(self) -> dict[str, Any]:
        """A source has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Maker`."""

    def identity(self) -> tuple[list[Tensor], Any]:
        """See :class:`Maker`."""
        return [], self.source.describe()
