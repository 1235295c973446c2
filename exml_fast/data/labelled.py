"""Labelled images as a data set of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["LabelledImages"]


class LabelledImages(Dataset[tuple[Any, Any]]):
    """A map-style data set of ``(image, label)``, as those of torchvision; its DataLoader may have workers.

    Args:
        images: (N, C, H, W).
        labels: int64 (N,), which are given as Python integers, or soft labels (N, K), which are given as tensors (K,).
        transform: applied to each image (C, H, W), such as one of ``torchvision.transforms``.

    Attributes:
        images, labels, transform: as given.

    Raises:
        ValueError: if there is not one label for each image.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Any] | None = None) -> None:
        if len(labels) != len(images):
            raise ValueError(f"labels must be one for each of {len(images)} images, got {len(labels)}")
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.images[index], self.labels[index]
        return image if self.transform is None else self.transform(image), label if label.dim() else int(label)
