"""Exemplars: images of earlier tasks that a learner keeps (Rebuffi 2017, Alg. 4 and 5; Lardizzone 2020, 3.4, 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exml_fast.data import Split
from exml_fast.validation import named, require_count

__all__ = ["COLLAGES", "ExemplarMemory", "collages", "herded"]

COLLAGES = ("resized", "random-crop", "center-crop")


def herded(features: Tensor, count: int) -> Tensor:
    """Which images come first where the mean of the chosen ones shall stay close to the mean of all.

    (Rebuffi 2017, Alg. 4.) Features are scaled to norm 1. No image is chosen twice.

    Args:
        features: (N, D) of the images of one class.
        count: how many; all N where there are fewer.

    Returns:
        int64 (min(count, N),), the most important first.
    """
    features = F.normalize(features.double(), dim=1)
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / k).square().sum(1)
        best = int(distance.masked_fill(~left, torch.inf).argmin())
        chosen.append(best)
        left[best] = False
        total = total + features[best]
    return torch.tensor(chosen, dtype=torch.int64)


def collages(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Four images in one (Lardizzone 2020, sec. 5.1): images 4k to 4k + 3 are the quarters of collage k.

    Args:
        images: (4 M, C, H, W) uint8, with even H and W.
        kind: how an image becomes a quarter: "resized" to half its size, a "random-crop" or the "center-crop" of half
            its height and width.
        generator: of the crops' places.

    Returns:
        (M, C, H, W) uint8.

    Raises:
        ValueError: for another kind, number or size of images.
    """
    named("kind", kind, dict.fromkeys(COLLAGES))
    if images.dim() != 4 or len(images) % 4 or images.shape[2] % 2 or images.shape[3] % 2:
        raise ValueError(f"images must be (4 M, C, H, W) with even H and W, got {tuple(images.shape)}")
    height, width = images.shape[2] // 2, images.shape[3] // 2
    if kind == "resized":
        quarters = F.interpolate(images.float(), (height, width), mode="area").round().to(images.dtype)
    else:
        tops = torch.full((len(images),), height // 2)
        lefts = torch.full((len(images),), width // 2)
        if kind == "random-crop":
            tops = torch.randint(height + 1, (len(images),), generator=generator)
            lefts = torch.randint(width + 1, (len(images),), generator=generator)
        places = zip(images, tops.tolist(), lefts.tolist(), strict=True)
        quarters = torch.stack([image[:, y : y + height, x : x + width] for image, y, x in places])
    four = quarters.unflatten(0, (-1, 4))
    return torch.cat([torch.cat([four[:, 0], four[:, 1]], 3), torch.cat([four[:, 2], four[:, 3]], 3)], 2)


class ExemplarMemory:
    """At most ``total`` images, equally many of each class, the most important first.

    Images are kept as uint8, on the CPU.
    """

    def __init__(self, total: int) -> None:
        require_count("total", total)
        self.total = total
        self._images: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._images))

    @property
    def classes(self) -> int:
        """Number of classes that have exemplars; class k is that of logit k."""
        return len(self._images)

    def quota(self, classes: int) -> int:
        """Images of each class where ``classes`` share the memory; ValueError where there is no room for one each."""
        if self.total < classes:
            raise ValueError(f"total must be at least the number of classes, {classes}, got {self.total}")
        return self.total // classes

    def reduce(self, quota: int) -> None:
        """Keep the ``quota`` most important images of each class (Rebuffi 2017, Alg. 5)."""
        self._images = [images[:quota].clone() for images in self._images]

    def add(self, images: Tensor) -> None:
        """Images (m, C, H, W) uint8 of the next class, the most important first."""
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0:
            raise ValueError(
                f"images must be uint8 (m, C, H, W) with m of at least 1, got {images.dtype} {tuple(images.shape)}"
            )
        self._images.append(images.cpu().clone())

    def of_class(self, unit: int) -> Tensor:
        """The exemplars of logit ``unit``."""
        return self._images[unit]

    def split(self) -> Split | None:
        """All exemplars; labels are logit positions. None where there are none."""
        if not self._images:
            return None
        labels = torch.repeat_interleave(torch.tensor([len(images) for images in self._images]))
        return Split(torch.cat(self._images), labels)

    @property
    def nbytes(self) -> int:
        """Size of the images."""
        return sum(images.nbytes for images in self._images)

    def state_dict(self) -> dict[str, Any]:
        """The images of each class."""
        return {str(unit): images for unit, images in enumerate(self._images)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._images = [state[str(unit)].cpu() for unit in range(len(state))]
