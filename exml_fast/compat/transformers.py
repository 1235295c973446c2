"""Image classifiers of Hugging Face as teachers and students::

from exml_fast.compat.transformers import image_classifier

teacher = image_classifier("microsoft/resnet-18")
result = xf.invert(teacher, classes=[1, 933], per_class=32)
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.validation import require

__all__ = ["ImageClassifier", "image_classifier", "spec_of"]


class ImageClassifier(nn.Module):
    """A model of transformers as a network that returns its logits alone.

    Args:
        model: an image-classification model, such as ``ResNetForImageClassification``; the same object is kept.
        spec: its input.

    Attributes:
        model: as given.
        input_spec: its input, which :func:`exml_fast.invert` and :func:`exml_fast.distill` read.
        class_names: the name of each logit, by its configuration.
    """

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model, self.input_spec = model, spec
        names = getattr(getattr(model, "config", None), "id2label", None) or {}
        self.class_names = tuple(str(names[number]) for number in sorted(names))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def image_classifier(source: Any, *, processor: Any = None, spec: Any = None) -> ImageClassifier:
    """A teacher or student of an image-classification model of Hugging Face.

    Args:
        source: a model of transformers, which is copied, or the name or folder of one for
            ``AutoModelForImageClassification.from_pretrained``. Code of the repository is not run.
        processor: the image processor, which decides size and normalisation; that of ``source`` by its name when None.
        spec: an InputSpec, or what :meth:`InputSpec.of` reads, instead of a processor.

    Returns:
        The network in evaluation mode. ``xf.Expert.wrap(network, network.input_spec, classes)`` makes an expert of it.

    Raises:
        ImportError: without ``transformers``.
        OSError: for a name that is neither a folder nor can be downloaded.
        ValueError: for a model without an image processor or ``spec``, or one that is no image classifier.
    """
    if isinstance(source, nn.Module):
        model: Any = copy.deepcopy(source)
        name = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    else:
        name = str(source)
        model = _opened(name, "AutoModelForImageClassification")
    require(_classifies_images(model), "source", "an image-classification model of transformers", type(model).__name__)
    if spec is None:
        if processor is None and not name:
            raise ValueError("processor or spec must be given for a model without a name: nothing says what it takes")
        processor = _opened(name, "AutoImageProcessor") if processor is None else processor
        spec = spec_of(processor, channels=getattr(model.config, "num_channels", 3))
    return ImageClassifier(model, InputSpec.of(spec)).eval()


def spec_of(processor: Any, *, channels: int = 3) -> InputSpec:
    """The input that an image processor of transformers makes: its crop or size, mean and standard deviation.

    ValueError for a processor that keeps images in their own size.
    """
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = getattr(processor, "size", None) if size is None else size
    if isinstance(size, int):
        height = width = size
    else:
        sides = {key: _entry(size, key) for key in ("height", "width", "shortest_edge")}
        height = sides["height"] or sides["shortest_edge"] or 0
        width = sides["width"] or sides["shortest_edge"] or 0
    require(height > 0 and width > 0, "processor", "one that gives its images one size", size)
    if not getattr(processor, "do_normalize", True):
        return InputSpec(channels, (height, width), (0.0,) * channels, (1.0,) * channels)
    mean, std = (_values(getattr(processor, name), channels) for name in ("image_mean", "image_std"))
    return InputSpec(channels, (height, width), mean, std)


def _entry(size: Any, key: str) -> int | None:
    found = size.get(key) if hasattr(size, "get") else getattr(size, key, None)
    return None if found is None else int(found)


def _values(given: Any, channels: int) -> tuple[float, ...]:
    values = [float(given)] if isinstance(given, int | float) else [float(value) for value in given]
    return tuple(values * channels) if len(values) == 1 else tuple(values)


def _classifies_images(model: Any) -> bool:
    config = getattr(model, "config", None)
    return isinstance(model, nn.Module) and hasattr(config, "id2label") and hasattr(model, "num_labels")


def _opened(name: str, kind: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("models of Hugging Face need transformers: pip install 'exml_fast[transformers]'") from error
    try:
        return getattr(transformers, kind).from_pretrained(name)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"{name!r} is neither a folder of a model nor can be downloaded ({reason}); what the cache of Hugging Face "
            "holds is found with HF_HUB_OFFLINE=1"
        ) from error
