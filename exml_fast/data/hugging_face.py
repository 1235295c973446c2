"""Synthetic images as a data set of Hugging Face, which can be saved and shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from exml_fast.data.shards import Shards
from exml_fast.data.spec import InputSpec
from exml_fast.validation import require

__all__ = ["to_hugging_face"]


def to_hugging_face(
    images: Any, *, spec: InputSpec | None = None, class_names: Mapping[int, str] | Sequence[str] | None = None
) -> Any:
    """A ``datasets.Dataset`` with the columns "image" (PNG), "label" (ClassLabel) and "class_id".

    Args:
        images: pairs of normalised images (C, H, W) and class ids, such as a Result, :class:`Shards`, or another
            map-style data set of them.
        spec: of the images; their own ``spec`` when None.
        class_names: names by class id; those of Shards, or else the ids, when None. "label" counts the classes from 0
            in the order of the ids.

    Raises:
        ImportError: without ``datasets``.
        ValueError: for images without a specification.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("a data set of Hugging Face needs datasets: pip install 'exml_fast[datasets]'") from error
    spec = getattr(images, "spec", None) if spec is None else spec
    require(isinstance(spec, InputSpec), "spec", "given for images that carry none", spec)
    assert spec is not None
    pairs = images if isinstance(images, Shards) or not hasattr(images, "as_dataset") else images.as_dataset()
    names = getattr(images, "class_names", None) if class_names is None else class_names
    known = dict(names if isinstance(names, Mapping) else enumerate(names or []))
    ids = sorted(set(images.classes)) if isinstance(images, Shards) else sorted({int(y) for _, y in _pairs(pairs)})
    place = {class_id: number for number, class_id in enumerate(ids)}
    named = [str(known.get(class_id, class_id)) for class_id in ids]
    if len(set(named)) < len(named):  # as ImageNet's two cranes
        named = [f"{text} ({class_id})" for text, class_id in zip(named, ids, strict=True)]
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=named),
        class_id=datasets.Value("int64"),
    )

    def rows() -> Iterator[dict[str, Any]]:
        for image, label in _pairs(pairs):
            pixels = (spec.denormalize(image).clamp(0, 1) * 255).round().byte()
            yield {"image": to_pil_image(pixels), "label": place[int(label)], "class_id": int(label)}

    return datasets.Dataset.from_list(list(rows()), features=features)


def _pairs(source: Any) -> Iterator[tuple[Tensor, int]]:
    for index in range(len(source)):
        yield source[index]
