"""The images of an inversion after some of its steps, to step through on the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Film", "picture_of"]

# Size of an image in a frame, and the size from which frames are stored as JPEG.
LARGEST, JPEG_FROM = 96, 64


class Film:
    """A progress callback that keeps some images of the first batch of each stage.

    Args:
        most_images: number of images that are kept.
        most_frames: greatest number of frames of a stage. Beyond it, every second frame is dropped.

    Attributes:
        frames: for each stage the steps, and the images (N, C, H, W) in [0, 1] after them.
    """

    def __init__(self, most_images: int = 8, most_frames: int = 16) -> None:
        self.frames: dict[str, list[tuple[int, Tensor]]] = {}
        self._most_images, self._most_frames = most_images, most_frames
        self._every: dict[str, int] = {}
        self._finished: set[str] = set()

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        """Nothing: only images are kept."""

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        """Keep the images if they are of the first batch and one of the frames; see :data:`Progress`."""
        if stage in self._finished:
            return
        frames = self.frames.setdefault(stage, [])
        if step >= total:
            self._finished.add(stage)
        if step >= total or not frames or step - frames[-1][0] >= self._every.get(stage, 1):
            frames.append((step, _small(_spread(make(), self._most_images))))
        if len(frames) > self._most_frames:
            frames[:] = frames[::2] + frames[-1:] * (step >= total and len(frames) % 2 == 0)
            self._every[stage] = frames[1][0] - frames[0][0]

    def pictures(self) -> list[tuple[str, str]]:
        """The frames in their order: a caption, and the images side by side as a data URI."""
        return [
            (f"{stage}, step {step}", picture_of(images))
            for stage, frames in self.frames.items() for step, images in frames
        ]  # fmt: skip


def _spread(images: Tensor, count: int) -> Tensor:
    """At most ``count`` of the images, evenly spaced, so that all classes of a batch have a chance."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def _small(images: Tensor) -> Tensor:
    size = max(images.shape[2:])
    if size <= LARGEST:
        return images
    return F.interpolate(images, scale_factor=LARGEST / size, mode="area")


def picture_of(images: Tensor) -> str:
    """Images (N, C, H, W) in [0, 1] side by side, as the data URI of a PNG, or of a JPEG if they are large."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    picture = to_pil_image(make_grid(images.float().clamp(0, 1), nrow=max(len(images), 1), padding=1, pad_value=0.5))
    picture = picture.convert("L") if images.shape[1] == 1 else picture
    buffer, large = io.BytesIO(), max(images.shape[2:]) >= JPEG_FROM
    picture.save(buffer, "JPEG" if large else "PNG", **({"quality": 85} if large else {"optimize": True}))
    kind = "jpeg" if large else "png"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
