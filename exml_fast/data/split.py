"""A split of labelled images in memory, and a data set of two splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exml_fast.data.spec import InputSpec

__all__ = ["ImageData", "Split"]


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or float32 in [0, 1], labels (N,) int64, and what they were recorded in (N,) int64."""

    images: Tensor
    labels: Tensor
    groups: Tensor | None = None
    """The session, scene or source of each image, where the data set tells."""

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
        """The samples at ``index`` (int64 positions, or bool (N,)), labels as they are."""
        return Split(self.images[index], self.labels[index], None if self.groups is None else self.groups[index])

    def of_classes(self, classes: Sequence[int]) -> Split:
        """The samples whose label is in ``classes``, in their order; labels stay the global ids."""
        return self.subset(torch.isin(self.labels, torch.tensor(list(classes), dtype=torch.int64)))

    def normalized(self, spec: InputSpec, index: Tensor | slice | None = None) -> Tensor:
        """Network input for ``spec`` (float32) of the samples at ``index`` (default: all)."""
        return spec.prepare(self.images if index is None else self.images[index])

    def batches(self, spec: InputSpec, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """(network input, labels) of consecutive samples, ``size`` at a time."""
        for start in range(0, len(self), size):
            chunk = slice(start, start + size)
            yield self.normalized(spec, chunk), self.labels[chunk]


@dataclass(frozen=True)
class ImageData:
    """A named data set; ``class_names[c]`` is the name of label c, ``spec`` fits the images as they are."""

    name: str
    train: Split
    test: Split
    class_names: list[str]
    spec: InputSpec

    @property
    def classes(self) -> list[int]:
        """All global class ids, 0 to K - 1."""
        return list(range(len(self.class_names)))
