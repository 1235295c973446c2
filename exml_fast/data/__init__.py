"""Data sets, shards of synthetic images, random images, augmentation, and descriptions of a network's input."""

from exml_fast.data.augmentation import Augmentation
from exml_fast.data.foreign import DataSource, images_and_labels, network_images
from exml_fast.data.hugging_face import to_hugging_face
from exml_fast.data.labelled import LabelledImages
from exml_fast.data.photographs import Crops, Photographs
from exml_fast.data.procedural import SOURCES, DeadLeaves, ImageSource, NaturalFields, Noise, PenStrokes
from exml_fast.data.sets import load, some_images
from exml_fast.data.shards import Shards, ShardStream
from exml_fast.data.spec import InputSpec
from exml_fast.data.split import ImageData, Split

__all__ = [
    "SOURCES",
    "Augmentation",
    "Crops",
    "DataSource",
    "DeadLeaves",
    "ImageData",
    "ImageSource",
    "InputSpec",
    "LabelledImages",
    "NaturalFields",
    "Noise",
    "PenStrokes",
    "Photographs",
    "ShardStream",
    "Shards",
    "Split",
    "images_and_labels",
    "load",
    "network_images",
    "some_images",
    "to_hugging_face",
]
