"""The ex-model's memory: a fixed number of synthetic or auxiliary images with labels (Carta 2022, Alg. 1)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from exml_fast.storage import PathLike, appending, atomic_path

__all__ = ["ImageBuffer", "balanced_indices"]

IMAGES_FILE = "buffer.images"
WRITE_IMAGES = 256


def balanced_indices(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random indices of ``count`` samples, as equal in number a class as the classes allow.

    Classes with fewer samples than their share give all they have and the others share the rest; where it does
    not divide, random classes give one more. Ascending indices, int64, on the CPU.
    """
    labels = labels.cpu()
    if not 0 <= count <= len(labels):
        raise ValueError(f"count must be between 0 and the number of samples, {len(labels)}, got {count}")
    _, inverse, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    take = torch.zeros_like(sizes)
    while (rest := count - int(take.sum())) > 0:
        open_classes = torch.nonzero(take < sizes)[:, 0]
        share = rest // len(open_classes)
        if share == 0:
            lucky = torch.randperm(len(open_classes), generator=generator)[:rest]
            take[open_classes[lucky]] += 1
        else:
            take[open_classes] = torch.minimum(take[open_classes] + share, sizes[open_classes])
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[inverse[order] == c][:quota] for c, quota in enumerate(take.tolist())]
    return torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.int64)


class ImageBuffer:
    """At most ``capacity`` images (C, H, W), normalised float, with global labels (int64).

    ``folder``: keep the images in a file there, mapped into memory, instead of in memory: the operating system holds
    of it what it has room for. New images go to its end; subsampling writes a new file beside the old one, which it
    then replaces, so there are at most two. What comes out is the same bit for bit. OSError naming the file where the
    disk is full; the buffer is then as it was before.
    """

    def __init__(self, capacity: int, folder: PathLike | None = None) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity must be a positive integer, got {capacity!r}")
        self.capacity = capacity
        self._file = None if folder is None else Path(folder) / IMAGES_FILE
        if self._file is not None:
            for left in self._file.parent.glob(f".*.{IMAGES_FILE}"):
                left.unlink()  # of a process that was killed while it wrote
        self._images: Tensor | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W); ValueError while the buffer is empty."""
        if self._images is None:
            raise ValueError("the buffer is empty")
        return self._images

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self._labels

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Append samples; ValueError if they do not fit in, or do not match those already there."""
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
        if len(self) + len(images) > self.capacity:
            raise ValueError(
                f"{len(images)} images do not fit in: {len(self)} of {self.capacity} places are taken; subsample first"
            )
        images, labels = images.detach(), labels.detach()
        if self._images is None:
            self._images, self._labels = self._stored([images]), labels.clone()
            return
        if images.shape[1:] != self._images.shape[1:]:
            raise ValueError(
                f"images must be {tuple(self._images.shape[1:])} like those in the buffer, "
                f"got {tuple(images.shape[1:])}"
            )
        images = images.to(self._images)
        whole = self._file is None or len(self) == 0
        self._images = self._stored([self._images, images]) if whole else self._appended(images)
        self._labels = torch.cat([self._labels, labels.to(self._labels)])

    def subsample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Keep ``count`` random samples, balanced over the classes (:func:`balanced_indices`), in their order.

        Returns where they were, (count,) int64.
        """
        keep = balanced_indices(self._labels, count, generator).to(self._labels.device)
        if self._images is not None:
            images, at = self._images, keep.to(self._images.device)
            self._images = self._stored(images[part] for part in at.split(WRITE_IMAGES)) if len(at) else images[:0]
        self._labels = self._labels[keep]
        return keep

    def relabel(self, labels: Tensor) -> None:
        """Other labels for all images; ValueError unless int64 (len(self),)."""
        if labels.dtype != torch.int64 or labels.shape != self._labels.shape:
            raise ValueError(f"labels must be int64 ({len(self)},), got {labels.dtype} {tuple(labels.shape)}")
        self._labels = labels.detach().to(self._labels.device)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``batch_size`` random samples with replacement: images, labels."""
        images = self.images
        index = torch.randint(len(self), (batch_size,), generator=generator).to(images.device)
        return images[index], self._labels[index]

    def state_dict(self, images: bool = True) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint.

        Without ``images``, which then stay in the folder's file, only the last of them: the checkpoint is good as long
        as images are added alone.
        """
        state = {"capacity": self.capacity, "labels": self._labels}
        if images or self._images is None:
            return {**state, "images": self._images}
        if self._file is None:
            raise ValueError("images can only stay out of the checkpoint of a buffer that has a folder")
        return {**state, "last": self._images[-1:].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; ValueError if the capacity differs, or the images are not in the file."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"the checkpoint's buffer has capacity {state['capacity']}, this one {self.capacity}")
        if "last" in state:
            self._images = self._reopened(len(state["labels"]), state["last"])
        else:
            images = state["images"]
            self._images = images if images is None or self._file is None else self._stored([images])
        self._labels = state["labels"]

    def _stored(self, parts: Iterable[Tensor]) -> Tensor:
        """``parts`` one after the other, in memory or in the file."""
        if self._file is None:
            return torch.cat(list(parts))
        count, shape, dtype = 0, torch.Size(), torch.float32
        with atomic_path(self._file) as temporary, open(temporary, "wb") as file:
            for part in parts:
                count, shape, dtype = count + len(part), part.shape[1:], part.dtype
                _write(part, file)
        return self._mapped(count, shape, dtype)

    def _appended(self, images: Tensor) -> Tensor:
        """All that the file has, and ``images``."""
        assert self._file is not None
        with appending(self._file) as file:
            _write(images, file)
        return self._mapped(len(self) + len(images), images.shape[1:], images.dtype)

    def _reopened(self, count: int, last: Tensor) -> Tensor:
        """The first ``count`` images that are in the file, of which one is ``last``; what follows goes."""
        if self._file is None:
            raise ValueError("the checkpoint's images are in a file: give the buffer its folder")
        size = count * last.nbytes
        if not self._file.is_file() or self._file.stat().st_size < size:
            raise ValueError(f"{self._file} does not hold the checkpoint's {count} images")
        images = self._mapped(count, last.shape[1:], last.dtype)
        if not torch.equal(images[-1:], last):
            raise ValueError(f"{self._file} holds other images than the checkpoint's")
        os.truncate(self._file, size)
        return images

    def _mapped(self, count: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if count == 0:
            return torch.empty(0, *shape, dtype=dtype)
        return torch.from_file(str(self._file), size=count * shape.numel(), dtype=dtype).view(count, *shape)


def _write(images: Tensor, file: BinaryIO) -> None:
    for chunk in images.split(WRITE_IMAGES):
        file.write(chunk.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
