"""Random images with properties that natural images or pen drawings share, made without any data."""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from exml_fast.data.spec import InputSpec

__all__ = ["SOURCES", "DeadLeaves", "ImageSource", "NaturalFields", "Noise", "PenStrokes"]

# Largest number of images, and of pixel values, drawn at once. They bound the memory. Changing either changes the
# images of a seed.
BLOCK_IMAGES, BLOCK_VALUES = 1000, 2**22
# Statistics close to those of ImageNet. They are used if the normalisation cannot be that of pixels in [0, 1], such as
# mean 0 and standard deviation 1.
USUAL_MEAN, USUAL_STD = 0.45, 0.25
# Largest number of strokes of a drawing.
STROKES = 2


@runtime_checkable
class ImageSource(Protocol):
    """Anything that draws random images."""

    @property
    def domain(self) -> str:
        """The images whose properties it imitates, for reports."""
        ...

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """Draw ``count`` images normalised for ``spec``: float32 (count, C, H, W), on the CPU."""
        ...

    def describe(self) -> dict[str, Any]:
        """The name and the settings of the source, as JSON values."""
        ...


def images_at_once(spec: InputSpec) -> int:
    """How many images of this size are drawn at once, so that the memory stays bounded."""
    return max(1, min(BLOCK_IMAGES, BLOCK_VALUES // math.prod(spec.shape)))


class Blocks(abc.ABC):
    """Base class that draws block by block; a subclass draws the pixels of one block."""

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """As :meth:`ImageSource.draw`. ValueError if ``count`` is negative."""
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        block = images_at_once(spec)
        sizes = [min(block, count - start) for start in range(0, count, block)]
        blocks = [spec.normalize(self._pixels(size, spec, generator)) for size in sizes]
        return torch.cat(blocks) if blocks else torch.empty(0, *spec.shape)

    @abc.abstractmethod
    def _pixels(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """Pixels (count, C or 1, H, W) in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """The name and the settings of the source, as JSON values."""
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"source": type(self).__name__, **settings}


@dataclass(frozen=True)
class Noise:
    """Independent normal values of mean 0 and deviation 1 in normalised units, which share nothing with images."""

    domain: ClassVar[str] = "noise"

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """As :meth:`ImageSource.draw`."""
        return torch.randn(count, *spec.shape, generator=generator)

    def describe(self) -> dict[str, Any]:
        """The name of the source."""
        return {"source": "Noise"}


@dataclass(frozen=True)
class NaturalFields(Blocks):
    """Gaussian random fields with the amplitude spectrum 1/f^γ of natural images (Field 1987: γ near 1).

    Each image draws its own γ. The fields are scaled, shifted and clipped to [0, 1] so that each channel has the mean
    and the standard deviation of the input's normalisation. The normalisation is the only knowledge of the domain.

    Args:
        exponents: smallest and largest γ.
        correlation: share of the variance, in [0, 1], that the channels of an image have in common.
        detrended: share of the images, in [0, 1], that contain no waves longer than the image.

    Raises:
        ValueError: naming the setting that is outside its range.
    """

    exponents: tuple[float, float] = (1.0, 2.5)
    correlation: float = 0.9
    detrended: float = 0.5

    domain: ClassVar[str] = "natural images"

    def __post_init__(self) -> None:
        if not 0 <= self.exponents[0] <= self.exponents[1]:
            raise ValueError(f"exponents must be two ascending numbers from 0 upwards, got {self.exponents!r}")
        for name in ("correlation", "detrended"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)!r}")

    def _pixels(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        height, width = spec.size
        rows, columns = 2 * height, 2 * width  # keep a quarter: the field is periodic, and its opposite edges match
        frequency = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None])
        frequency[0, 0] = math.inf  # removes the mean
        low, high = self.exponents
        gamma = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
        amplitude = frequency**-gamma
        detrended = torch.rand(count, 1, 1, 1, generator=generator) < self.detrended
        amplitude = amplitude * ~(detrended & (frequency * max(height, width) < 1))
        noise = torch.randn(count, spec.channels, rows, columns, generator=generator)
        if spec.channels > 1:
            shared = torch.randn(count, 1, rows, columns, generator=generator)
            noise = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * noise
        field = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(rows, columns))[..., :height, :width]
        field = field - field.mean((2, 3), keepdim=True)
        field = field / field.std((2, 3), keepdim=True)
        fits = [_clipping(mean, std) for mean, std in zip(spec.mean, spec.std, strict=True)]
        gain, offset = torch.tensor(fits).T[:, None, :, None, None]
        return (gain * field + offset).clamp(0, 1)


@functools.lru_cache(maxsize=256)
def _clipping(mean: float, std: float) -> tuple[float, float]:
    """Gain and offset after which a standard normal variable, clipped to [0, 1], has this mean and deviation."""
    if not (0 < mean < 1 and std**2 < 0.99 * mean * (1 - mean)):
        mean, std = USUAL_MEAN, USUAL_STD
    points = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weights = torch.softmax(-points.square() / 2, 0)

    def moments(gain: float, offset: float) -> tuple[float, float]:
        values = (gain * points + offset).clamp(0, 1)
        first = (weights * values).sum()
        return float(first), float((weights * (values - first).square()).sum().sqrt())

    def offset_for(gain: float) -> float:
        low, high = -6 * gain - 1, 6 * gain + 1
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if moments(gain, middle)[0] < mean else (low, middle)
        return low

    low, high = 1e-4, 1e3
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if moments(middle, offset_for(middle))[1] < std else (low, middle)
    return low, offset_for(low)


@dataclass(frozen=True)
class DeadLeaves(Blocks):
    """Opaque disks that cover one another, with radii distributed as r⁻³ as in scale-invariant images (Lee 2001).

    Each disk has one colour whose channels are similar.

    Args:
        disks: number of disks of an image, at least 1.
        radii: smallest and largest radius, as shares of the image's longer side.

    Raises:
        ValueError: naming the setting that is outside its range.
    """

    disks: int = 60
    radii: tuple[float, float] = (0.04, 0.6)

    domain: ClassVar[str] = "natural images"

    def __post_init__(self) -> None:
        if self.disks < 1:
            raise ValueError(f"disks must be at least 1, got {self.disks!r}")
        if not 0 < self.radii[0] < self.radii[1]:
            raise ValueError(f"radii must be two ascending positive numbers, got {self.radii!r}")

    def _pixels(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        height, width = spec.size

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        smallest, largest = (r**-2 for r in self.radii)
        radius = max(height, width) * (smallest + (largest - smallest) * uniform(self.disks, count)) ** -0.5
        x, y = width * uniform(self.disks, count), height * uniform(self.disks, count)
        grey, hue = uniform(self.disks, count, 1), uniform(self.disks, count, spec.channels)
        colour = grey if spec.channels == 1 else (grey + 0.4 * (hue - 0.5)).clamp(0, 1)
        image = uniform(count, 1, 1, 1).expand(count, spec.channels, height, width).clone()
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        for r, cx, cy, c in zip(radius, x, y, colour, strict=True):
            across, down = (columns - cx[:, None]).square(), (rows - cy[:, None]).square()
            inside = (across[:, None, :] + down[:, :, None] < r[:, None, None].square())[:, None]
            image = torch.where(inside, c[:, :, None, None], image)
        return image


@dataclass(frozen=True)
class PenStrokes(Blocks):
    """One or two pen strokes: cubic B-splines whose control points follow a random walk.

    A drawing fills a centred box, as the digits of MNIST do. The strokes are bright on a dark background. The source
    uses knowledge about pen drawings, so results made with it must say so.

    Args:
        points: control points of a stroke, at least 2.
        second: probability of a second stroke.
        box: longer side of the drawing, as a share in (0, 1] of the image's shorter side.
        pen: smallest and largest radius of the pen, as shares of the image's shorter side.
        invert: draw dark strokes on a bright background.

    Raises:
        ValueError: naming the setting that is outside its range.
    """

    points: int = 6
    second: float = 0.35
    box: float = 20 / 32
    pen: tuple[float, float] = (0.8 / 32, 1.5 / 32)
    invert: bool = False

    domain: ClassVar[str] = "pen drawings"

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points must be at least 2, got {self.points!r}")
        if not 0 <= self.second <= 1:
            raise ValueError(f"second must be a probability, got {self.second!r}")
        if not 0 < self.box <= 1:
            raise ValueError(f"box must be more than 0 and at most 1, got {self.box!r}")
        if not 0 < self.pen[0] <= self.pen[1]:
            raise ValueError(f"pen must be two ascending positive numbers, got {self.pen!r}")

    def parameters(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """Draw the parameters of ``count`` random drawings, (count, P), for :meth:`render`.

        A row holds, in this order: the control points (x, y) of each stroke, from −1 to 1 across the image; for
        each stroke 1 if it is drawn and 0 if not; the logarithm of the pen's radius, which is a share of the image's
        shorter side.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        # The direction turns at a constant rate plus noise, which gives arcs, loops and zigzags.
        turns = 0.8 * normal(count, STROKES, 1) + 0.7 * normal(count, STROKES, self.points - 1)
        angle = 2 * math.pi * uniform(count, STROKES, 1) + turns.cumsum(2)
        length = 0.3 + 0.7 * uniform(count, STROKES, self.points - 1)
        steps = torch.stack([angle.cos(), angle.sin()], 3) * length[..., None]
        control = torch.cat([torch.zeros(count, STROKES, 1, 2), steps.cumsum(2)], 2)
        control = control - control.mean(2, keepdim=True) + 0.6 * normal(count, STROKES, 1, 2)
        drawn = torch.stack([torch.ones(count), (uniform(count) < self.second).float()], 1)

        path = _b_spline(control.flatten(0, 1), _dots(spec)).view(count, STROKES, -1, 2)
        there = drawn[:, :, None, None] > 0
        low = torch.where(there, path, math.inf).amin((1, 2), keepdim=True)
        high = torch.where(there, path, -math.inf).amax((1, 2), keepdim=True)
        side = min(spec.size)
        scale = self.box * side / (high - low).amax(3, keepdim=True).clamp(min=0.3)
        height, width = spec.size
        control = 2 * (control - (low + high) / 2) * scale / torch.tensor([width, height])
        radius = self.pen[0] + (self.pen[1] - self.pen[0]) * uniform(count, 1)
        return torch.cat([control.flatten(1), drawn, radius.log()], 1)

    def limits(self, spec: InputSpec) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each of the P parameters, two tensors (P,), for optimising drawings.

        Control points stay within 1.2 times the box, and the pen's radius close to ``pen``. A random drawing rarely
        has a control point outside these limits.
        """
        places = torch.full((STROKES * self.points * 2,), 1.2 * self.box)
        drawn = torch.tensor([0.0, 1.0]).expand(STROKES, 2)
        radius = torch.tensor([[0.75 * self.pen[0], 1.2 * self.pen[1]]]).log()
        low, high = torch.cat([torch.stack([-places, places], 1), drawn, radius]).T.contiguous()
        return low, high

    def render(self, parameters: Tensor, spec: InputSpec) -> Tensor:
        """Normalised images (N, C, H, W) of drawings (N, P). Differentiable, except in the flags of the strokes."""
        # Python numbers instead of tensors: a CUDA graph cannot contain a copy from the host.
        pixels = self._drawing(parameters, spec)
        return torch.cat([(pixels - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)], 1)

    def _pixels(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        return self._drawing(self.parameters(count, spec, generator), spec).expand(count, *spec.shape)

    def _drawing(self, parameters: Tensor, spec: InputSpec) -> Tensor:
        """Pixels (N, 1, H, W) in [0, 1]."""
        height, width = spec.size
        control, drawn, radius = parameters.split([STROKES * self.points * 2, STROKES, 1], 1)
        count, drawn = len(parameters), drawn.detach()
        path = _b_spline(control.reshape(count * STROKES, self.points, 2), _dots(spec)).view(count, STROKES, -1, 2)
        path = torch.stack([(path[..., 0] + 1) / 2 * width, (path[..., 1] + 1) / 2 * height], -1)
        # The ink is a row of Gaussian dots along the path. Each dot holds as much ink as the distance to the next.
        way = torch.linalg.vector_norm(path[:, :, 1:] - path[:, :, :-1], dim=3)
        pen = min(height, width) * radius.exp()[..., None]
        ink = torch.cat([way, way[:, :, -1:]], 2) * drawn[:, :, None] / pen
        columns = _bell(path[..., 0].flatten(1), width, pen)
        rows = _bell(path[..., 1].flatten(1), height, pen) * ink.flatten(1)[..., None]
        image = torch.tanh(1.3 * rows.transpose(1, 2) @ columns)[:, None]
        return 1 - image if self.invert else image


SOURCES: dict[str, type[NaturalFields] | type[DeadLeaves] | type[PenStrokes]] = {
    "natural-fields": NaturalFields,
    "dead-leaves": DeadLeaves,
    "pen-strokes": PenStrokes,
}


def _dots(spec: InputSpec) -> int:
    return max(32, *spec.size)


def _b_spline(control: Tensor, count: int) -> Tensor:
    """``count`` points (N, count, 2) on uniform cubic B-splines with control points (N, K, 2), clamped at both ends."""
    first, last = control[:, :1], control[:, -1:]
    knots = torch.cat([first, first, control, last, last], 1)
    segments = knots.shape[1] - 3
    at = torch.linspace(0, segments * (1 - 1e-6), count, device=control.device)
    segment = at.long().clamp(max=segments - 1)
    u = (at - segment)[:, None]
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    return sum((w * knots[:, segment + i] for i, w in enumerate(weights)), knots.new_zeros(())) / 6


def _bell(centres: Tensor, pixels: int, radius: Tensor) -> Tensor:
    """Gaussians of ``radius`` (N, 1, 1) around ``centres`` (N, M), sampled at pixel centres: (N, M, pixels)."""
    distance = torch.arange(pixels, device=centres.device) + 0.5 - centres[..., None]
    return torch.exp(-0.5 * (distance / radius).square())
