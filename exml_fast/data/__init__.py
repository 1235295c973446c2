"""Image data sets in memory, images drawn without data, and what a network expects of its input."""

from exml_fast.data.augmentation import Augmentation
from exml_fast.data.procedural import SOURCES, DeadLeaves, ImageSource, NaturalFields, PenStrokes
from exml_fast.data.sets import load, some_images
from exml_fast.data.spec import InputSpec
from exml_fast.data.split import ImageData, Split

__all__ = [
    "SOURCES",
    "Augmentation",
    "DeadLeaves",
    "ImageData",
    "ImageSource",
    "InputSpec",
    "NaturalFields",
    "PenStrokes",
    "Split",
    "load",
    "some_images",
]
