"""The description of a network's input: channels, size and normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import FailFast, Field
from torch import Tensor

from exml_fast.validation import settings, to_dict

__all__ = ["InputSpec"]

# Rec. 601 luma, the weights of PIL and torchvision.
LUMA = (0.299, 0.587, 0.114)
# Images that lack at most this many pixels on each side are padded instead of resized (MNIST's 28 to LeNet-5's 32).
MAX_PADDING = 4
# What float32 can normalise with, and sizes of images that exist.
Channels = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=1, le=65_536)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Std = Annotated[float, Field(ge=1e-6, le=1e6)]


@settings
class InputSpec:
    """The input of an image classifier: ``(x - mean) / std`` per channel, for pixels x in [0, 1] (N, C, H, W).

    Args:
        channels: number of channels C, 1 to 4096.
        size: (height, width), in pixels, each 1 to 65,536.
        mean: one number per channel, from -10⁶ to 10⁶.
        std: one number per channel, from 10⁻⁶ to 10⁶.

    Raises:
        ValueError: naming the field that is wrong.
    """

    channels: Channels
    size: tuple[Side, Side]
    mean: Annotated[tuple[Mean, ...], FailFast()]
    std: Annotated[tuple[Std, ...], FailFast()]

    def check(self) -> None:
        """ValueError unless ``mean`` and ``std`` have one number for each channel."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"{name} must have one number per channel ({self.channels}), got {values!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    def normalize(self, x: Tensor) -> Tensor:
        """Convert pixels (..., C, H, W), float in [0, 1] or uint8, to the float input of the network."""
        pixels = to_float(x)
        return (pixels - self._column(self.mean, pixels)) / self._column(self.std, pixels)

    def denormalize(self, x: Tensor) -> Tensor:
        """Convert input (..., C, H, W) to pixels, which lie in [0, 1] if ``x`` lies within :meth:`bounds`."""
        return x * self._column(self.std, x) + self._column(self.mean, x)

    def bounds(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Lowest and highest valid input, each (C, 1, 1): ``-mean / std``, ``(1 - mean) / std`` (Yin 2020, Eq. 16)."""
        zero = torch.zeros(self.channels, 1, 1, device=device)
        return self.normalize(zero), self.normalize(zero + 1)

    def fit(self, images: Tensor) -> Tensor:
        """Convert images to the channels and the size of this specification.

        One channel is repeated. Three channels become one by their luma (Rec. 601). Images that lack at most 4 pixels
        on each side are padded with black; other sizes are resized (bilinear, antialiased).

        Args:
            images: (N, c, h, w), uint8 or float in [0, 1].

        Returns:
            Float pixels (N, C, H, W) in [0, 1].

        Raises:
            ValueError: for a tensor of another rank or dtype, or channels that cannot be converted.
        """
        if images.dim() != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
        pixels = to_float(images)
        if pixels.shape[1] != self.channels:
            pixels = _convert_channels(pixels, self.channels)
        missing = [want - have for want, have in zip(self.size, pixels.shape[-2:], strict=True)]
        if any(missing):
            if all(0 <= m <= 2 * MAX_PADDING for m in missing):
                top, left = missing[0] // 2, missing[1] // 2
                pixels = F.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
            else:
                pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        return pixels.clamp(0, 1)

    def prepare(self, images: Tensor) -> Tensor:
        """:meth:`fit`, then :meth:`normalize`."""
        return self.normalize(self.fit(images))

    def convert(self, x: Tensor, source: InputSpec) -> Tensor:
        """Convert normalised images (N, C, H, W) of the specification ``source`` to this specification.

        Equal specifications return ``x`` itself. Otherwise the pixels are clamped to [0, 1] on the way.
        """
        return x if source == self else self.prepare(source.denormalize(x))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for :meth:`from_dict`."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> InputSpec:
        """Read what :meth:`to_dict` returns, or a timm ``pretrained_cfg`` (``input_size``, ``mean``, ``std``).

        Raises:
            ValueError: naming the key that is missing or wrong.
        """
        if "input_size" in value:
            channels, *size = value["input_size"]
            value = {"channels": channels, "size": size, "mean": value.get("mean"), "std": value.get("std")}
        expected = ("channels", "size", "mean", "std")
        for key in expected:
            if value.get(key) is None:
                raise ValueError(f"input specification: {key!r} is missing, got the keys {sorted(value)}")
        return cls(**{key: value[key] for key in expected})

    @classmethod
    def of(cls, source: Any) -> InputSpec:
        """Find the specification of ``source``.

        Args:
            source: an InputSpec, an object with an ``input_spec`` (an Expert, a card), a torchvision weights enum, a
                timm model or its ``pretrained_cfg``, or a dict as :meth:`from_dict` reads it.

        Raises:
            ValueError: for anything else.
        """
        if isinstance(source, InputSpec):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        own = getattr(source, "input_spec", None)
        if own is not None:
            return cls.of(own)
        if hasattr(source, "transforms") and hasattr(source, "meta"):
            preset = source.transforms()
            crop = getattr(preset, "crop_size", None)
            if crop is not None:
                size = [crop] if isinstance(crop, int) else list(crop)
                size = size * 2 if len(size) == 1 else size
                mean, std = tuple(preset.mean), tuple(preset.std)
                return cls(len(mean), (size[0], size[1]), mean, std)
        config = getattr(source, "pretrained_cfg", None)
        if config is None and hasattr(source, "input_size"):
            config = source
        if config is not None:
            fields = ("input_size", "mean", "std")
            found = config if isinstance(config, Mapping) else {f: getattr(config, f, None) for f in fields}
            if all(found.get(f) is not None for f in fields):
                return cls.from_dict(found)
        raise ValueError(
            f"cannot read an input specification from {type(source).__name__}: give "
            "InputSpec(channels=3, size=(224, 224), mean=(...), std=(...)), an Expert, a torchvision weights enum, "
            "a timm model, or a dict with channels, size, mean and std"
        )

    def _column(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1]. Float pixels are returned unchanged, other dtypes raise ValueError."""
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be uint8 in [0, 255] or float in [0, 1], got {pixels.dtype}")
    return pixels


def _convert_channels(pixels: Tensor, channels: int) -> Tensor:
    have = pixels.shape[1]
    if have == 1:
        return pixels.expand(-1, channels, -1, -1)
    if have == 3 and channels == 1:
        weights = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)
        return (pixels * weights[:, None, None]).sum(1, keepdim=True)
    raise ValueError(f"images of {have} channels cannot be converted to {channels}: only 1 to any number, and 3 to 1")
