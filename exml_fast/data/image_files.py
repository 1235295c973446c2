"""Images from files."""

from __future__ import annotations

import os

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

__all__ = ["IMAGE_SUFFIXES", "read_image"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_image(file: str | os.PathLike[str], grey: bool, size: int | None) -> Tensor:
    """An image as uint8 (1 or 3, H, W), resized to ``size`` by ``size`` pixels if given."""
    with Image.open(file) as opened:
        image = opened.convert("L" if grey else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    tensor: Tensor = pil_to_tensor(image)
    return tensor
