"""Labelled images in memory: a split, and a data set of a training and a test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exml_fast.data.foreign import class_names_of, images_and_labels
from exml_fast.data.spec import InputSpec
from exml_fast.validation import require

__all__ = ["ImageData", "Split", "measured_spec"]


@dataclass(frozen=True)
class Split:
    """Labelled images in memory.

    Args:
        images: (N, C, H, W), uint8 or float32 in [0, 1].
        labels: int64 (N,), the class of each image.
        groups: int64 (N,), the session or scene in which each image was recorded; None if the data set has none.

    Raises:
        ValueError: naming the tensor of the wrong shape or dtype.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if self.groups is not None and (self.groups.dtype != torch.int64 or self.groups.shape != self.labels.shape):
            raise ValueError(
                f"groups must be int64 of shape ({len(self.labels)},), "
                f"got {self.groups.dtype} of shape {tuple(self.groups.shape)}"
            )

    @classmethod
    def of(cls, source: Any, *, count: int | None = None, size: int | None = None, name: str = "images") -> Split:
        """The images of a data set or loader (:func:`exml_fast.data.images_and_labels`); a Split is returned itself.

        Args:
            source: with labels, and images of bytes or in [0, 1]: without a transform that normalises them.
            count: greatest number of images.
            size: height and width to which PIL images are resized.
            name: of the argument, for messages.

        Raises:
            ValueError: for images without labels, or of other values.
        """
        if isinstance(source, cls):
            return source
        images, labels = images_and_labels(source, count=count, size=size, name=name)
        if labels is None:
            raise ValueError(f"{name}: the items of {type(source).__name__} must have a class as label")
        if images.is_floating_point():
            images = images.float()
            low, high = (float(bound) for bound in images.aminmax())
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"{name}: floating-point images must be in [0, 1], got {low:g} to {high:g}: leave out "
                    "the transform that normalises them"
                )
        return cls(images, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Split:
        """The samples at ``index``, which is int64 positions or a bool mask (N,). Labels do not change."""
        return Split(self.images[index], self.labels[index], None if self.groups is None else self.groups[index])

    def of_classes(self, classes: Sequence[int]) -> Split:
        """The samples whose label is in ``classes``, in their order. Labels do not change."""
        return self.subset(torch.isin(self.labels, torch.tensor(list(classes), dtype=torch.int64)))

    def normalized(self, spec: InputSpec, index: Tensor | slice | None = None) -> Tensor:
        """The samples at ``index`` (default: all) as the input of a network: float32, of the shape of ``spec``."""
        return spec.prepare(self.images if index is None else self.images[index])

    def batches(self, spec: InputSpec, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``size`` consecutive samples at a time: the input of a network with ``spec``, and labels."""
        for start in range(0, len(self), size):
            chunk = slice(start, start + size)
            yield self.normalized(spec, chunk), self.labels[chunk]


@dataclass(frozen=True)
class ImageData:
    """A data set.

    ``class_names[c]`` is the name of label c. ``spec`` has the size of the images and the usual normalisation of the
    data set.
    """

    name: str
    train: Split
    test: Split
    class_names: list[str]
    spec: InputSpec

    @classmethod
    def of(
        cls,
        train: Any,
        test: Any,
        *,
        name: str = "data",
        class_names: Sequence[str] | None = None,
        spec: InputSpec | None = None,
        size: int | None = None,
    ) -> ImageData:
        """A data set of two of another library: torch, torchvision, Hugging Face, WebDataset, or DataLoaders.

        Args:
            train, test: :meth:`Split.of` reads them into memory.
            name: for results and messages.
            class_names: the name of each label; those of ``train``, or else the labels, when None.
            spec: size and normalisation; measured on the training images when None.
            size: height and width to which PIL images are resized.

        Raises:
            ValueError: for what :meth:`Split.of` refuses, images of different shapes, or a label without a name.
        """
        parts = Split.of(train, size=size, name="train"), Split.of(test, size=size, name="test")
        shapes = [tuple(part.images.shape[1:]) for part in parts]
        if shapes[0] != shapes[1]:
            raise ValueError(f"test: images must be {shapes[0]}, as those of train, got {shapes[1]}")
        highest = max(int(part.labels.max()) for part in parts)
        names = list(class_names or class_names_of(train) or map(str, range(highest + 1)))
        if highest >= len(names):
            raise ValueError(f"class_names must name all labels up to {highest}, got {len(names)} names")
        return cls(name, *parts, names, spec or measured_spec(parts[0].images))

    @property
    def classes(self) -> list[int]:
        """All labels, 0 to K − 1."""
        return list(range(len(self.class_names)))

    def with_held_out(self, count: int) -> ImageData:
        """The last ``count`` training images of each class are the test images; the data itself where it is 0.

        Settings are chosen on such images. ValueError if a class has no more than ``count``.
        """
        if not count:
            return self
        rows = [torch.nonzero(self.train.labels == label)[:, 0] for label in self.classes]
        least = min(map(len, rows))
        require(0 < count < least, "held_out", f"less than the {least} images of a class", count)
        test = self.train.subset(torch.cat([each[-count:] for each in rows]))
        train = self.train.subset(torch.cat([each[:-count] for each in rows]))
        return dataclasses.replace(self, train=train, test=test)


def measured_spec(images: Tensor) -> InputSpec:
    """A specification with the mean and the standard deviation of each channel, rounded to four decimals."""
    channels, height, width = images.shape[1:]
    mean, std = [], []
    for channel in range(channels):
        values = images[:, channel].double()
        values = values / 255 if images.dtype == torch.uint8 else values
        mean.append(round(float(values.mean()), 4))
        std.append(max(round(float(values.std(correction=0)), 4), 1e-3))
    return InputSpec(channels, (height, width), tuple(mean), tuple(std))
