"""Reads image files."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from exml_fast.reading import regular_file

__all__ = ["IMAGE_SUFFIXES", "open_image", "read_image"]

MOST_PIXELS = 2**26
"""Greatest number of pixels of an image; a file of a few kilobytes may claim many more."""
# What Pillow raises for damaged files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@contextmanager
def open_image(file: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file; errors are those of :func:`read_image`. Its pixels are read when they are used."""
    place = regular_file(Path(file))
    try:
        with Image.open(place) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has {opened.width} x {opened.height} pixels, expected at most {MOST_PIXELS}")
            yield opened
    except DAMAGE as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def read_image(file: str | os.PathLike[str], grey: bool, size: int | None) -> Tensor:
    """Read an image file.

    Args:
        file: path of the image.
        grey: convert to one channel instead of three.
        size: height and width to which the image is resized; None keeps its own.

    Returns:
        uint8 (1 or 3, H, W).

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming the file if it is no image, damaged, or has more than 2²⁶ pixels.
    """
    with open_image(file) as opened:
        image = opened.convert("L" if grey else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    tensor: Tensor = pil_to_tensor(image)
    return tensor
