"""Images and labels out of data sets and loaders of other libraries.

Taken are data sets of torch and torchvision (map-style and iterable), DataLoaders, and data sets of Hugging Face and
WebDataset. An item, or a batch of a DataLoader, is an image; a tuple that begins with an image and a label; or a dict
with an image and a label under their usual names. An image is a PIL image, an array (H, W) or (H, W, C) of bytes, or a
tensor (C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from exml_fast.data.spec import InputSpec
from exml_fast.validation import require

__all__ = ["DataSource", "class_names_of", "images_and_labels", "is_source", "network_images", "network_statistics"]

DataSource = Dataset[Any] | DataLoader[Any]
"""A data set or loader; one of Hugging Face or WebDataset has no common type with these, but is taken as well."""

IMAGES = ("image", "img", "images", "pixel_values", "png", "jpg", "jpeg", "webp", "input")
LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "y")


def is_source(value: Any) -> bool:
    """Whether :func:`images_and_labels` reads ``value``."""
    return isinstance(value, Dataset | DataLoader) or _is_hugging_face(value)


def images_and_labels(
    source: Any, *, count: int | None = None, size: int | tuple[int, int] | None = None, name: str = "images"
) -> tuple[Tensor, Tensor | None]:
    """Read a data set or loader into memory, in its order.

    Args:
        source: of the kinds of :func:`is_source`.
        count: greatest number of images; all when None.
        size: height and width to which PIL images are resized; None keeps their own, which must then be equal.
        name: of the argument, for messages.

    Returns:
        Images (N, C, H, W), uint8 or floating point as the source has them, and labels (N,) int64; None for a source
        without labels.

    Raises:
        ValueError: naming the argument: no images, images of several shapes, an item that holds no image.
    """
    images, labels = list[Tensor](), list[Tensor]()
    for image, label in islice(_items(source, size, name), count):
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise ValueError(
                f"{name}: all images must be alike, got {images[0].dtype} {tuple(images[0].shape)} and {image.dtype} "
                f"{tuple(image.shape)}: give a transform that resizes them, or size"
            )
        images.append(image)
        if label is not None:
            labels.append(label)
    if not images:
        raise ValueError(f"{name}: the {type(source).__name__} holds no images")
    if labels and len(labels) != len(images):
        raise ValueError(f"{name}: {len(labels)} of {len(images)} images have a label")
    return torch.stack(images), torch.stack(labels).long() if labels else None


def network_images(source: Any, spec: InputSpec, *, count: int | None = None, name: str = "images") -> Tensor:
    """The images of ``source`` as the input of a network: float32 (N, C, H, W); a tensor is returned as it is.

    PIL images, and others of bytes, are fitted and normalised (:meth:`InputSpec.prepare`). Those of floating point are
    taken as normalised already, as a transform with ``Normalize`` leaves them.
    """
    if not is_source(source):
        tensor: Tensor = source
        return tensor
    images, _ = images_and_labels(source, count=count, size=spec.size, name=name)
    return images.float() if images.is_floating_point() else spec.prepare(images)


def network_statistics(source: Any, spec: InputSpec) -> str | Tensor:
    """The argument ``statistics`` of a teacher: "running", or what :func:`network_images` gives."""
    return source if isinstance(source, str) else network_images(source, spec, name="statistics")


def class_names_of(source: Any) -> list[str] | None:
    """The names of the classes that a data set carries (``classes`` of torchvision, ``features`` of Hugging Face)."""
    source = source.dataset if isinstance(source, DataLoader) else source
    found = getattr(source, "classes", None)
    if isinstance(found, list | tuple) and found and all(isinstance(each, str) for each in found):
        return list(found)
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        for key in LABELS:
            if (names := getattr(features.get(key), "names", None)) is not None:
                return list(names)
    inner = getattr(source, "dataset", None)  # a Subset
    return None if inner is None else class_names_of(inner)


def _is_hugging_face(value: Any) -> bool:
    return hasattr(value, "features") and hasattr(value, "column_names") and hasattr(value, "__iter__")


def _items(source: Any, size: Any, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each image (C, H, W) with its label () int64, or None."""
    require(is_source(source), name, "a data set or a DataLoader", source)
    batched = isinstance(source, DataLoader) and source.batch_size is not None
    items: Iterable[Any] = source
    if not hasattr(source, "__iter__"):  # a map-style data set
        items = (source[index] for index in range(len(source)))
    for item in items:
        image, label = _parts(item, name)
        if not batched:
            yield _tensor(image, size, name), _label(label)
            continue
        labels = [None] * len(image) if label is None else label
        for each, its in zip(image, labels, strict=True):
            yield _tensor(each, size, name), _label(its)


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """Image and label of an item, the label None if there is none."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGES if key in item), None)
        if image is None:
            raise ValueError(f"{name}: an item must have an image under one of {', '.join(IMAGES)}, got {list(item)}")
        return image, next((item[key] for key in LABELS if key in item), None)
    if isinstance(item, tuple | list):
        if not item:
            raise ValueError(f"{name}: an item must begin with an image, got an empty {type(item).__name__}")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _tensor(image: Any, size: Any, name: str) -> Tensor:
    if isinstance(image, Image.Image):
        plain = image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            plain = plain.resize((width, height), Image.Resampling.BILINEAR)
        pixels: Tensor = pil_to_tensor(plain)
        return pixels
    if isinstance(image, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(image))
        image = array[None] if array.dim() == 2 else array.permute(2, 0, 1)
    fits = isinstance(image, Tensor) and image.dim() == 3 and (image.is_floating_point() or image.dtype == torch.uint8)
    if not fits:
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"{name}: an image must be a PIL image, an array or a tensor (C, H, W) of bytes or floats, got {found}"
        )
    return image.detach().cpu()


def _label(label: Any) -> Tensor | None:
    """() int64; None for what is no class, as captions and boxes."""
    if isinstance(label, Tensor | np.ndarray | np.integer | int) and not isinstance(label, bool):
        found = torch.as_tensor(label)
        if found.dim() == 0 and not found.is_floating_point():
            return found.to("cpu", torch.int64)
    return None
