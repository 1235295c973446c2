"""Image data sets, random images, random changes of images, and the description of a network's input."""

from exml_fast.data.augmentation import Augmentation
from exml_fast.data.photographs import Crops, Photographs
from exml_fast.data.procedural import SOURCES, DeadLeaves, ImageSource, NaturalFields, PenStrokes
from exml_fast.data.sets import load, some_images
from exml_fast.data.spec import InputSpec
from exml_fast.data.split import ImageData, Split

__all__ = [
    "SOURCES",
    "Augmentation",
    "Crops",
    "DeadLeaves",
    "ImageData",
    "ImageSource",
    "InputSpec",
    "NaturalFields",
    "PenStrokes",
    "Photographs",
    "Split",
    "load",
    "some_images",
]
