"""M^ex of Alg. 1: the bounded images that an ex-model learns from, with what experts said of them (Carta 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.ex_model.head import Head
from exml_fast.continual.ex_model.losses import UNLABELLED
from exml_fast.data import Augmentation, InputSpec
from exml_fast.data.buffer import ImageBuffer
from exml_fast.storage import PathLike

__all__ = ["VIEW", "Memory"]

# How the further views of an image differ from it.
VIEW = Augmentation(shift=2, rotation=15.0, scale=0.15, stretch=0.1, shear=0.15, elastic=0.7)


class Memory:
    """A background of random images, the strategy's images, and the targets of all of them where they are kept.

    Images are numbered: those of the background come first, then those of the buffer. Every image has ``views`` forms;
    *row* ``image · views + view`` is one of them. Labels belong to images, targets to rows.

    Args:
        capacity: most images in the buffer, without the background.
        spec: the ex-model's input.
        background: (B, C, H, W) random images that have no label and stay; no checkpoint holds them.
        views: forms of each image (:class:`exml_fast.continual.ex_model.targets.StoredTargets`).
        seed: of the views.
        device: where images and targets are that the methods return.
        folder: keep the buffer's images there instead of in memory (:class:`exml_fast.ImageBuffer`).
    """

    def __init__(
        self,
        capacity: int,
        spec: InputSpec,
        *,
        background: Tensor | None = None,
        views: int = 1,
        seed: int = 0,
        device: torch.device,
        folder: PathLike | None = None,
    ) -> None:
        self.buffer = ImageBuffer(capacity, folder)
        self.spec, self.views, self.seed, self.device = spec, views, seed, device
        self._images_on = device if folder is None else torch.device("cpu")
        background = torch.empty(0, *spec.shape) if background is None else background
        self.background = background.to(self._images_on)
        # A number for each image, from which its views are made again.
        self.keys = torch.arange(len(self.background))
        self.targets: Tensor | None = None
        """(rows, K): kept targets."""
        self.spoken: Tensor | None = None
        """(rows, K) bool: units for which an expert gave a logit; None where all known units have a target."""
        self._shown: Tensor | None = None
        self._bounds = spec.bounds(device)

    def rebalance(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Lines 4 and 5 of Alg. 1: a class-balanced subsample makes room for new images, which are then added.

        Returns the keys (N,) of the new images. Where targets are kept, :meth:`add_targets` must follow.
        """
        if len(self.buffer):
            kept = self.buffer.subsample(min(len(self.buffer), self.buffer.capacity - len(labels)), generator)
            fixed = len(self.background)
            places = torch.cat([torch.arange(fixed), fixed + kept.cpu()])
            self.keys = self.keys[places]
            if self.targets is not None:
                rows = (places[:, None] * self.views + torch.arange(self.views)).flatten().to(self.device)
                self.targets = self.targets[rows]
                self.spoken = None if self.spoken is None else self.spoken[rows]
        self.buffer.add(images.to(self._images_on), labels.to(self._images_on))
        first = 1 + int(self.keys.max()) if len(self.keys) else 0
        keys = torch.arange(first, first + len(images))
        self.keys = torch.cat([self.keys, keys])
        return keys

    def add_targets(self, targets: Tensor, spoken: Tensor | None) -> None:
        """Targets (N · views, K) of the images that were added last."""
        assert self.targets is not None
        self.targets = torch.cat([self.targets, targets])
        if self.spoken is not None and spoken is not None:
            self.spoken = torch.cat([self.spoken, spoken])

    def keep_targets(self, targets: Tensor, spoken: Tensor | None) -> None:
        """Targets (rows, K) of all images, in place of those that were kept."""
        self.targets, self.spoken = targets, spoken

    def kept_targets(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Kept targets of some rows, and the units for which an expert gave a logit; None where nothing is kept."""
        return (
            None if self.targets is None else self.targets[rows],
            None if self.spoken is None else self.spoken[rows],
        )

    def positions(self, head: Head) -> Tensor:
        """(rows,) int64: the logit of each row's label; 0 for the background, which has none."""
        own = head.positions_of(self.buffer.labels.to(self.device))
        return torch.cat([own.new_zeros(len(self.background)), own]).repeat_interleave(self.views)

    def relabel(self, positions: Tensor, best: Tensor, head: Head) -> Tensor:
        """Label each of the buffer's images with the class of its highest target; returns the new ``positions``.

        ``positions`` (rows,) of all images, ``best`` (rows,) the highest known logit of each row's target.
        """
        fixed = len(self.background) * self.views
        best = best[fixed:]
        self.buffer.relabel(head.classes_of(best[:: self.views]))
        return torch.cat([positions[:fixed], best])

    def without_background(self, labels: Tensor) -> Tensor:
        """``labels`` (rows,) with -1 for the background; changed in place."""
        labels[: len(self.background) * self.views] = UNLABELLED
        return labels

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Hold all views of all images in memory inside the block."""
        if self.views > 1:
            self._shown = self.views_of(torch.cat([self.background, self.buffer.images]).to(self.device), self.keys)
        try:
            yield
        finally:
            self._shown = None

    def rows(self, rows: Tensor) -> Tensor:
        """Images (N, C, H, W) of some rows, on the device; with several views inside :meth:`shown` only."""
        if self._shown is not None:
            return self._shown[rows.to(self.device)]
        images, fixed = self.buffer.images, len(self.background)
        if not fixed:
            return images[rows.to(images.device)].to(self.device)
        at = rows.to(images.device)
        mine = at >= fixed
        found = images.new_empty(len(at), *self.spec.shape)
        found[mine], found[~mine] = images[at[mine] - fixed], self.background[at[~mine]]
        return found.to(self.device)

    def views_of(self, images: Tensor, keys: Tensor) -> Tensor:
        """(N · views, C, H, W): all views of images (N, C, H, W), one image after the other."""
        if self.views == 1:
            return images
        shown = images.repeat_interleave(self.views, 0)
        generator = torch.Generator()
        for row, image in zip(range(0, len(shown), self.views), keys.tolist(), strict=True):
            generator.manual_seed((1_000_003 * self.seed + image) % 2**63)
            further = slice(row + 1, row + self.views)
            shown[further] = VIEW(shown[further], self._bounds, generator)
        return shown

    @property
    def bytes_per_image(self) -> int:
        """Memory of one image."""
        return math.prod(self.spec.shape) * self.buffer.images.element_size()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        return {
            "buffer": self.buffer.state_dict(), "targets": self.targets, "spoken": self.spoken, "keys": self.keys,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        buffer = state["buffer"]
        self.buffer.load_state_dict(buffer | {"labels": buffer["labels"].to(self._images_on)})
        self.targets, self.spoken, self.keys = state["targets"], state["spoken"], state["keys"].cpu()
