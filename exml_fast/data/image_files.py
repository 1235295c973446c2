"""Reads image files."""

from __future__ import annotations

import os

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

__all__ = ["IMAGE_SUFFIXES", "read_image"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_image(file: str | os.PathLike[str], grey: bool, size: int | None) -> Tensor:
    """Read an image file.

    Args:
        file: path of the image.
        grey: convert to one channel instead of three.
        size: height and width to which the image is resized; None keeps its own.

    Returns:
        uint8 (1 or 3, H, W).

    Raises:
        OSError: if the file is missing or is not an image.
    """
    with Image.open(file) as opened:
        image = opened.convert("L" if grey else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    tensor: Tensor = pil_to_tensor(image)
    return tensor
