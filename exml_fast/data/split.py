"""Labelled images in memory: a split, and a data set of a training and a test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exml_fast.data.spec import InputSpec

__all__ = ["ImageData", "Split"]


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

    @property
    def classes(self) -> list[int]:
        """All labels, 0 to K − 1."""
        return list(range(len(self.class_names)))
