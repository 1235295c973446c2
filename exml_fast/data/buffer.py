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
    """Choose ``count`` samples at random, with equally many of each class where possible.

    A class with fewer samples than its share gives all of them, and the other classes share the remainder. If the
    remainder does not divide evenly, randomly chosen classes give one sample more.

    Args:
        labels: (N,) integers.
        count: between 0 and N.
        generator: source of the random draws, on the CPU.

    Returns:
        Ascending indices, int64 (count,), on the CPU.

    Raises:
        ValueError: if ``count`` is negative or greater than N.
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
    """At most ``capacity`` normalised images (C, H, W) with global class labels.

    A buffer with a ``folder`` keeps its images in a file in that folder and maps the file into memory, so the
    operating system can drop pages it has no room for. Adding images appends to the file. Subsampling writes a second
    file and then replaces the first. Both kinds of buffer return the same images bit for bit.

    Args:
        capacity: greatest number of images, at least 1.
        folder: where to keep the images; None keeps them in memory.

    Raises:
        ValueError: if ``capacity`` is not a positive integer.
        OSError: from any method that writes, if the disk is full. The buffer is then unchanged.
    """

    def __init__(self, capacity: int, folder: PathLike | None = None) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ValueError(f"capacity must be a positive integer, got {capacity!r}")
        self.capacity = capacity
        self._file = None if folder is None else Path(folder) / IMAGES_FILE
        if self._file is not None:
            for left in self._file.parent.glob(f".*.{IMAGES_FILE}"):
                left.unlink()  # written by a process that was killed
        self._images: Tensor | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def images(self) -> Tensor:
        """The images, float (N, C, H, W). ValueError if none was ever added."""
        if self._images is None:
            raise ValueError("the buffer is empty")
        return self._images

    @property
    def labels(self) -> Tensor:
        """The global class of each image, int64 (N,)."""
        return self._labels

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Append copies of images.

        Args:
            images: float (N, C, H, W), with the C, H and W of the images already in the buffer.
            labels: int64 (N,).

        Raises:
            ValueError: if a shape or dtype is wrong, or the capacity would be exceeded.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
        if len(self) + len(images) > self.capacity:
            raise ValueError(
                f"{len(images)} images do not fit: {len(self)} of {self.capacity} places are taken; subsample first"
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
        """Keep ``count`` random images, balanced over the classes by :func:`balanced_indices`, in their order.

        Returns:
            The former positions of the images that were kept, int64 (count,).

        Raises:
            ValueError: if ``count`` is negative or greater than the number of images.
        """
        keep = balanced_indices(self._labels, count, generator).to(self._labels.device)
        if self._images is not None:
            images, at = self._images, keep.to(self._images.device)
            self._images = self._stored(images[part] for part in at.split(WRITE_IMAGES)) if len(at) else images[:0]
        self._labels = self._labels[keep]
        return keep

    def relabel(self, labels: Tensor) -> None:
        """Replace the labels of all images. ValueError unless ``labels`` is int64 (N,)."""
        if labels.dtype != torch.int64 or labels.shape != self._labels.shape:
            raise ValueError(f"labels must be int64 ({len(self)},), got {labels.dtype} {tuple(labels.shape)}")
        self._labels = labels.detach().to(self._labels.device)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw images with replacement: (batch_size, C, H, W), labels (batch_size,). ValueError if there are none."""
        index = self.draw_rows(batch_size, generator)
        return self.images[index], self._labels[index]

    def draw_rows(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Positions of images, drawn with replacement: int64 (count,). ValueError if there are none."""
        images = self.images
        return torch.randint(len(self), (count,), generator=generator).to(images.device)

    def state_dict(self, images: bool = True) -> dict[str, Any]:
        """The contents, for a checkpoint.

        With ``images=False`` the images stay in the folder's file, and the checkpoint holds the last image only, to
        recognise the file. Such a checkpoint can be loaded as long as images have only been added since.

        Raises:
            ValueError: for ``images=False`` if the buffer has no folder.
        """
        state = {"capacity": self.capacity, "labels": self._labels}
        if images or self._images is None:
            return {**state, "images": self._images}
        if self._file is None:
            raise ValueError("images=False needs a buffer with a folder: its images would be in no file")
        return {**state, "last": self._images[-1:].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: if the capacity differs, or the folder's file does not hold the checkpoint's images.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(f"capacity must be {state['capacity']}, as in the checkpoint, got {self.capacity}")
        if "last" in state:
            self._images = self._reopened(len(state["labels"]), state["last"])
        else:
            images = state["images"]
            self._images = images if images is None or self._file is None else self._stored([images])
        self._labels = state["labels"]

    def _stored(self, parts: Iterable[Tensor]) -> Tensor:
        """The concatenated ``parts``, in memory or in a new file that replaces the old one."""
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
        """Map the first ``count`` images of the file, the last of which must equal ``last``; remove any after it."""
        if self._file is None:
            raise ValueError("the checkpoint leaves its images in a file: give ImageBuffer the folder of that file")
        size = count * last.nbytes
        if not self._file.is_file() or self._file.stat().st_size < size:
            raise ValueError(f"{self._file} does not hold the checkpoint's {count} images")
        images = self._mapped(count, last.shape[1:], last.dtype)
        if not torch.equal(images[-1:], last):
            raise ValueError(f"{self._file} does not hold the checkpoint's images: its image {count} differs")
        os.truncate(self._file, size)
        return images

    def _mapped(self, count: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if count == 0:
            return torch.empty(0, *shape, dtype=dtype)
        return torch.from_file(str(self._file), size=count * shape.numel(), dtype=dtype).view(count, *shape)


def _write(images: Tensor, file: BinaryIO) -> None:
    for chunk in images.split(WRITE_IMAGES):
        file.write(chunk.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
