"""Random crops of one or a few photographs, strongly augmented (Asano 2022, arXiv 2112.00725)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from exml_fast.checkpoint import fingerprint
from exml_fast.data.image_files import IMAGE_SUFFIXES, read_image
from exml_fast.data.procedural import Blocks
from exml_fast.data.spec import LUMA, InputSpec, to_float
from exml_fast.validation import NonNegative, Positive, Share, require, settings, to_dict, with_changes

__all__ = ["Crops", "Photographs"]

# Each level of the pyramid has half the height and width of the level before, down to this shorter side.
SMALLEST_LEVEL = 16
# A picture whose pixels deviate less than this from their mean, of values in [0, 1], shows nothing.
LEAST_DEVIATION = 0.01


@settings
class Crops:
    """How crops are cut out of a photograph and changed. Every crop draws its own values, uniformly.

    The defaults are those of Asano 2022 and its published code but for two. Crops are of the whole photograph: the code
    first cuts out a square of half the shorter side, of pictures with five megapixels and many things on them, and our
    crops of ordinary photographs meet a network's statistics better without it. Corners outside are mirrored (black
    there).

    Attributes:
        scale: smallest and largest area, as shares of the largest square in the photograph.
        ratio: smallest and largest ratio of width to height; its logarithm is uniform.
        rotation: greatest rotation, in degrees.
        shear: greatest shear, in degrees.
        flip: probability of a horizontal flip.
        jitter: probability that the colours are changed.
        brightness, contrast, saturation: greatest change of the factor 1; ``saturation`` needs colours.
        hue: greatest rotation of the hue, as a share of the colour circle; it needs colours.

    Raises:
        ValueError: naming the field that is outside its range.
    """

    scale: tuple[Positive, Positive] = (0.002, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    rotation: Annotated[float, Field(ge=0, le=180)] = 30.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 30.0
    flip: Share = 0.5
    jitter: Share = 0.5
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1

    def check(self) -> None:
        """ValueError if a range has its larger number first, or a crop is larger than the photograph."""
        for name in ("scale", "ratio"):
            ends = getattr(self, name)
            require(ends[0] <= ends[1], name, "two ascending numbers", ends)
        require(self.scale[1] <= 1, "scale", "at most 1, the largest square of the photograph", self.scale)


class Photographs(Blocks):
    """An image source: random crops of one or a few photographs that have nothing to do with the classes.

    A crop is sampled bilinearly from the level of an image pyramid whose pixels are about as large as those of the
    crop, so that small crops of large photographs are not aliased.

    Args:
        photographs: image files, folders of image files, or tensors (C, h, w) of 1 or 3 channels, uint8 or float in
            [0, 1]; one of these, or several in a list.
        crops: how crops are cut out and changed; ``overrides`` are fields of it, as ``rotation=0``.

    Raises:
        ValueError: naming the photograph: a missing file, a file that is no image, a folder without images, another
            shape or dtype, values that are not finite or not in [0, 1], a picture of one colour.
    """

    def __init__(
        self,
        photographs: str | os.PathLike[str] | Tensor | Sequence[str | os.PathLike[str] | Tensor],
        crops: Crops | None = None,
        **overrides: Any,
    ) -> None:
        self.crops = with_changes(crops or Crops(), overrides)
        given = [photographs] if isinstance(photographs, str | os.PathLike | Tensor) else list(photographs)
        found = [picture for each in given for picture in _pictures(each)]
        if not found:
            raise ValueError("photographs must hold at least one photograph, got none")
        self._pyramids = [_pyramid(picture) for picture in found]

    @property
    def domain(self) -> str:
        """The number of photographs, as "one photograph"."""
        count = len(self._pyramids)
        return "one photograph" if count == 1 else f"{count} photographs"

    def describe(self) -> dict[str, Any]:
        """The settings, and the number and the hash of the photographs, as JSON values."""
        known = {"photographs": len(self._pyramids), "sha256": self._sha256}
        return {"source": type(self).__name__, **known, **to_dict(self.crops)}

    @cached_property
    def _sha256(self) -> str:
        pictures = [pyramid[0] for pyramid in self._pyramids]
        return fingerprint(pictures, [list(picture.shape) for picture in pictures])

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """As :meth:`ImageSource.draw`. ValueError if a photograph is smaller than the input."""
        for number, pyramid in enumerate(self._pyramids):
            size = tuple(pyramid[0].shape[1:])
            if size[0] < spec.size[0] or size[1] < spec.size[1]:
                expected = f"at least {spec.size[0]} × {spec.size[1]} pixels, as the input"
                raise ValueError(f"photographs[{number}] must have {expected}, got {size[0]} × {size[1]}")
        return super().draw(count, spec, generator)

    def _pixels(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self._pyramids), (count,), generator=generator)
        sizes = torch.tensor([pyramid[0].shape[1:] for pyramid in self._pyramids])[which]
        spans, places = self._places(sizes, generator)
        step = torch.linalg.det(spans).abs().sqrt() / math.sqrt(math.prod(spec.size))  # photograph's pixels a pixel
        level = step.log2().round().long().clamp(min=0)
        grid = _grid(spans, places, sizes, spec.size)
        pixels = torch.empty(count, 3, *spec.size)
        for number, pyramid in enumerate(self._pyramids):
            for height, picture in enumerate(pyramid):
                last = height == len(pyramid) - 1
                rows = torch.nonzero((which == number) & ((level >= height) if last else (level == height)))[:, 0]
                if len(rows):
                    pixels[rows] = _sampled(picture, grid[rows])
        pixels = self._recoloured(pixels, generator)
        return pixels if spec.channels == 3 else _grey(pixels).expand(-1, spec.channels, -1, -1)

    def _places(self, sizes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The parallelogram of each crop: its sides as columns (N, 2, 2), x first, and its centre (N, 2), in pixels."""
        crops, count = self.crops, len(sizes)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        side = sizes.amin(1) * uniform(*crops.scale).sqrt()
        ratio = uniform(math.log(crops.ratio[0]), math.log(crops.ratio[1])).exp().sqrt()
        angle = math.radians(crops.rotation) * uniform(-1, 1)
        shear = (math.radians(crops.shear) * uniform(-1, 1)).tan()
        mirrored = 1 - 2 * (torch.rand(count, generator=generator) < crops.flip).float()
        cos, sin = angle.cos(), angle.sin()
        across = torch.stack([cos, sin], 1) * (side * ratio * mirrored)[:, None]
        down = torch.stack([shear * cos - sin, shear * sin + cos], 1) * (side / ratio)[:, None]
        spans = torch.stack([across, down], 2)
        # Uniform among the centres from which the crop stays inside the photograph; its middle if there is none.
        room, half = sizes.flip(1), spans.abs().sum(2) / 2
        free = (room - 2 * half).clamp(min=0)
        return spans, room / 2 + free * (torch.rand(count, 2, generator=generator) - 0.5)

    def _recoloured(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Brightness, contrast, saturation and hue in one linear map of the colours, then clipped to [0, 1]."""
        crops, count = self.crops, len(pixels)

        def factor(most: float) -> Tensor:
            return (1 + most * (2 * torch.rand(count, generator=generator) - 1)).clamp(min=0)[:, None, None]

        luma, identity = torch.tensor(LUMA), torch.eye(3)
        grey = luma.expand(3, 3)
        brightness, contrast, saturation = factor(crops.brightness), factor(crops.contrast), factor(crops.saturation)
        turned = _hue_rotation(2 * math.pi * crops.hue * (2 * torch.rand(count, generator=generator) - 1))
        changed = torch.rand(count, generator=generator)[:, None, None] < crops.jitter
        colours = brightness * (saturation * identity + (1 - saturation) * grey) @ turned
        # Contrast stretches around the mean brightness of the crop.
        middle = (luma @ (colours @ pixels.mean((2, 3))[:, :, None]))[:, :, None]
        matrix = torch.where(changed, contrast * colours, identity)
        offset = torch.where(changed, (1 - contrast) * middle, 0.0)
        flat = torch.baddbmm(offset.expand(count, 3, 1), matrix, pixels.flatten(2))
        return flat.clamp_(0, 1).view_as(pixels)


def _pictures(given: str | os.PathLike[str] | Tensor) -> list[Tensor]:
    """Float pictures (3, h, w) in [0, 1] of a tensor, a file, or all files of a folder."""
    if isinstance(given, Tensor):
        return [_checked(given, f"photographs of shape {tuple(given.shape)}")]
    require(isinstance(given, str | os.PathLike), "photographs", "paths or tensors", given)
    place = Path(given)
    if not place.is_dir():
        return [_read(place)]
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"photographs: the folder {place} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [_read(file) for file in files]


def _read(file: Path) -> Tensor:
    if not file.is_file():
        raise ValueError(f"photographs: there is no file {file}")
    try:
        picture = read_image(file, grey=False, size=None)
    except ValueError as error:
        raise ValueError(f"photographs: {file} is no image that can be read: {error}") from error
    return _checked(picture, f"photographs: {file}")


def _checked(picture: Tensor, name: str) -> Tensor:
    if picture.dim() != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(f"{name} must be (C, h, w) of 1 or 3 channels, got {tuple(picture.shape)}")
    if picture.dtype != torch.uint8 and not picture.is_floating_point():
        raise ValueError(f"{name} must be uint8, or float in [0, 1], got {picture.dtype}")
    picture = to_float(picture.detach().cpu()).float()
    if not bool(((picture >= 0) & (picture <= 1)).all()):
        low, high = picture.aminmax()
        raise ValueError(f"{name} must be in [0, 1], got values from {float(low):g} to {float(high):g}")
    if picture.numel() == 0 or float(picture.flatten(1).std(1).amax()) < LEAST_DEVIATION:
        raise ValueError(f"{name} must be a photograph, got a picture of one colour")
    return picture.expand(3, -1, -1).contiguous()


def _pyramid(picture: Tensor) -> list[Tensor]:
    """The picture, and means of 2×2 pixels of the level before."""
    levels = [picture]
    while min(levels[-1].shape[1:]) >= 2 * SMALLEST_LEVEL:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def _grid(spans: Tensor, places: Tensor, sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the pixels of each crop are read: (N, H, W, 2), in the coordinates of ``grid_sample``."""
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
    to_unit = 2 / sizes.flip(1)  # x, y
    spans, places = spans * to_unit[:, :, None], places * to_unit - 1
    across = columns[:, None] * spans[:, None, None, :, 0]
    down = rows[:, None, None] * spans[:, None, None, :, 1]
    return across + (down + places[:, None, None])


def _sampled(picture: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples (N, 3, H, W) of one picture (3, h, w); places outside it are mirrored."""
    count, height, width, _ = grid.shape
    # One tall crop: a batch of crops would need as many copies of the picture.
    tall = F.grid_sample(picture[None], grid.reshape(1, -1, width, 2), padding_mode="reflection", align_corners=False)
    return tall.view(-1, count, height, width).transpose(0, 1)


def _hue_rotation(angle: Tensor) -> Tensor:
    """Colour matrices (N, 3, 3) that turn chrominance by ``angle`` (N,) and keep the luma (in YIQ)."""
    to_yiq = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    turn = torch.zeros(len(angle), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq


def _grey(pixels: Tensor) -> Tensor:
    return (pixels * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
