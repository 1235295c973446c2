"""Image data sets in memory, and what a network expects of its input."""

from exml_fast.data.sets import ImageData, Split, load, some_images
from exml_fast.data.spec import InputSpec

__all__ = ["ImageData", "InputSpec", "Split", "load", "some_images"]
