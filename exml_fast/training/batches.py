"""Where the batches of the training loop come from: images, real or synthetic, a generator, or a mixture of these."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from exml_fast.data import DataSource, ImageSource, InputSpec, network_images
from exml_fast.data.foreign import is_source
from exml_fast.inversion import Result
from exml_fast.ranks import Ranks
from exml_fast.training.config import Training
from exml_fast.training.mixup import mixed
from exml_fast.validation import require

__all__ = [
    "Batch",
    "Batches",
    "DrawnImages",
    "ImageBatches",
    "Mixture",
    "PreparedBatches",
    "network_input",
    "unlabelled_batches",
]

# Input beyond so many times the bounds of its specification is hardly normalised; random noise is within them.
FAR = 10.0

B_co = TypeVar("B_co", covariant=True)


class Batch(NamedTuple):
    """Images of one step, augmented and mixed, on the network's device."""

    images: Tensor
    """(N, C, H, W) float, network input."""
    labels: Tensor | None = None
    """(N,) int64, logit positions; None for images without labels."""
    share: Tensor | None = None
    """(N,) or None. Where images are mixed, each image is mixed with the row before it; this is its own weight, with
    CutMix its share of the pixels."""
    rows: Tensor | None = None
    """(N,) int64, rows of the source."""
    others: Tensor | None = None
    """(N,) int64, where labelled images are mixed: the label of the image that each is mixed with."""


class Batches(Protocol[B_co]):
    """A source of batches. Its state can be saved between two blocks of steps."""

    def block(self, step: int, limit: int) -> Iterator[B_co]:
        """Batches for the steps ``step``, ``step`` + 1, …; at least one and at most ``limit``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of the source; a source that is not given it starts again."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        ...


class PreparedBatches:
    """Augmentation, mixup and CutMix as ``config`` says, drawn from ``generator``.

    Over several ``ranks`` the generator is in the same state on all of them, and each rank draws its own changes.
    """

    def __init__(
        self,
        config: Training,
        spec: InputSpec,
        device: torch.device,
        generator: torch.Generator,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.generator, self.device = config, generator, device
        self.ranks = ranks or Ranks()
        self._bounds = spec.bounds(device)

    def own_generator(self) -> torch.Generator:
        """The generator; over several ranks a new one of this rank, and the common one moves on by one draw."""
        if self.ranks.count == 1:
            return self.generator
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator().manual_seed(seed + self.ranks.rank)

    def prepared(self, batch: Batch) -> Batch:
        """The batch as teacher and student shall see it."""
        mixes = bool(self.config.mixup or self.config.cutmix)
        if not self.config.augmentation.active and not mixes:
            return batch
        generator = self.own_generator()
        if self.config.augmentation.active:
            batch = batch._replace(images=self.config.augmentation(batch.images, self._bounds, generator))
        if mixes:
            images, share = mixed(batch.images, self.config.mixup, self.config.cutmix, generator)
            others = None if batch.labels is None else batch.labels.roll(1)
            batch = batch._replace(images=images, share=share, others=others)
        return batch


class ImageBatches(PreparedBatches):
    """Every image once an epoch, in random order; the incomplete batch at an epoch's end is left out.

    Args:
        images: (M, C, H, W); network input, or anything that ``prepare`` makes network input of, batch by batch.
        labels: (M,) int64 logit positions; None for images without labels.
        config: batch size, augmentation, mixup.
        spec: of the network input.
        generator: decides order, augmentation and mixup; on the CPU.
        device: where the batches are wanted; the images are taken there at once.
        prepare: of rows of images, as :meth:`exml_fast.InputSpec.prepare`.

    Raises:
        ValueError: for no images, values that are not finite, or another number of labels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        config: Training,
        spec: InputSpec,
        generator: torch.Generator,
        device: torch.device,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(config, spec, device, generator)
        if len(images) == 0:
            raise ValueError("images must hold at least one image")
        if images.is_floating_point() and not images.isfinite().all():
            raise ValueError("images hold NaN or infinity")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be ({len(images)},), one for each image, got {tuple(labels.shape)}")
        self.images = images.to(device)
        self.labels = None if labels is None else labels.to(device)
        self._prepare = prepare
        self._size = min(config.batch_size, len(images))
        self._order, self._at = torch.empty(0, dtype=torch.int64), 0

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """See :class:`Batches`."""
        for _ in range(limit):
            index = self._next().to(self.device)
            images = self.images[index]
            labels = None if self.labels is None else self.labels[index]
            images = images if self._prepare is None else self._prepare(images)
            yield self.prepared(Batch(images, labels, rows=index))

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Batches`."""
        return {"order": self._order.clone(), "at": self._at, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Batches`."""
        self._order, self._at = state["order"].cpu(), state["at"]
        self.generator.set_state(state["generator"].cpu())

    def _next(self) -> Tensor:
        if self._at == len(self._order):
            whole = len(self.images) // self._size * self._size
            self._order, self._at = torch.randperm(len(self.images), generator=self.generator)[:whole], 0
        self._at += self._size
        return self._order[self._at - self._size : self._at]


class DrawnImages(PreparedBatches):
    """Images made anew for each step, as by a generator network or a procedure.

    Args:
        draw: ``draw(count, generator)``: images (count, C, H, W), network input, and labels (count,) or None.
        config, spec, generator, device: as :class:`ImageBatches`.
    """

    def __init__(
        self,
        draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
        config: Training,
        spec: InputSpec,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__(config, spec, device, generator)
        self._draw = draw

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """See :class:`Batches`."""
        for _ in range(limit):
            images, labels = self._draw(self.config.batch_size, self.generator)
            labels = None if labels is None else labels.to(self.device)
            yield self.prepared(Batch(images.to(self.device), labels))

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Batches`."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Batches`."""
        self.generator.set_state(state["generator"].cpu())


def unlabelled_batches(
    images: Tensor | ImageSource, config: Training, spec: InputSpec, generator: torch.Generator, device: torch.device
) -> ImageBatches | DrawnImages:
    """Batches without labels: of images (N, C, H, W), network input, in random order, or of a source, drawn anew.

    The other arguments are those of :class:`ImageBatches`.
    """
    if isinstance(images, Tensor):
        return ImageBatches(images, None, config, spec, generator, device)
    source = images
    return DrawnImages(lambda count, own: (source.draw(count, spec, own), None), config, spec, generator, device)


class Mixture:
    """Batches of several sources, one after the other in each step: real images and synthetic ones, say.

    Each source keeps its own batch size, augmentation and mixup. ``rows`` are those of each source; labels and rows
    are given if all sources have them. Where one source mixes its images, the share of unmixed images is 1.
    """

    def __init__(self, sources: Sequence[Batches[Batch]]) -> None:
        if not sources:
            raise ValueError("sources must hold at least one source of batches")
        self.sources = list(sources)

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """See :class:`Batches`."""
        for taken in range(limit):
            # One batch of each: no source runs ahead of another whose block is shorter.
            yield _joined([next(source.block(step + taken, 1)) for source in self.sources])

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Batches`."""
        return {str(k): source.state_dict() for k, source in enumerate(self.sources)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Batches`."""
        for k, source in enumerate(self.sources):
            source.load_state_dict(state[str(k)])


def network_input(
    images: Result | Tensor | DataSource, spec: InputSpec | None, name: str = "images"
) -> tuple[Tensor, InputSpec]:
    """Images of a result or a data set, or network input (N, C, H, W) as it is, in float32, and its specification.

    Images of a data set or DataLoader are read into memory (:func:`exml_fast.data.network_images`).

    ValueError naming the argument where no specification is given, the shape or dtype is another, or a value is not
    finite.
    """
    if isinstance(images, Result):
        spec = spec or images.spec
        images = images.images
    elif is_source(images):
        require(spec is not None, "spec", f"given where {name} are a data set", spec)
        assert spec is not None
        images = network_images(images, spec, name=name)
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{name} must be a tensor, a data set or the result of exml_fast.invert, got {type(images).__name__}"
        )
    if spec is None:
        raise ValueError(f"spec must be given where {name} are a tensor")
    if images.dim() != 4 or tuple(images.shape[1:]) != spec.shape or len(images) == 0:
        raise ValueError(f"{name} must be (N, {', '.join(map(str, spec.shape))}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating point, network input and no bytes, got {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity")
    lowest, highest = images.aminmax()  # no copy of what may be a whole data set
    largest, usual = max(-float(lowest), float(highest)), max(float(bound.abs().max()) for bound in spec.bounds())
    if largest > FAR * usual:
        warnings.warn(
            f"{name} reach {largest:.0f}, the largest input of spec is {usual:.1f}: network input is normalised, "
            "spec.normalize takes pixels in [0, 1]",
            stacklevel=3,
        )
    return images.float(), spec


def _joined(parts: list[Batch]) -> Batch:
    def of_all(tensors: list[Tensor | None]) -> Tensor | None:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known) if len(known) == len(tensors) else None

    share = others = None
    if any(part.share is not None for part in parts):
        share = torch.cat(
            [part.images.new_ones(len(part.images)) if part.share is None else part.share for part in parts]
        )
        others = of_all([part.labels if part.others is None else part.others for part in parts])
    labels, rows = of_all([part.labels for part in parts]), of_all([part.rows for part in parts])
    return Batch(torch.cat([part.images for part in parts]), labels, share, rows, others)
