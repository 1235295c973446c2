"""Networks that map latents to images (Ye 2022, Tables IV and V).

The card of a generator holds the name and the arguments of its network and may come from a stranger. Therefore
:func:`create` runs only the constructors in ``NETWORKS``; :func:`register` adds a user's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.models.registry import construct, require_plain
from exml_fast.validation import named, require, require_count

__all__ = ["NETWORKS", "DeconvolutionGenerator", "UpsampledConv2d", "UpsamplingGenerator", "create", "register"]

# Slope of LeakyReLU and size of the latents in the generator of Fang 2019 (DFAD), which Ye 2022 uses.
SLOPE, LATENT_SIZE = 0.2, 256


class UpsampledConv2d(nn.Conv2d):
    """A 3×3 convolution of the image enlarged to twice its size (nearest neighbour), at less than half of the work.

    Four pixels of the enlarged image are equal, so taps that fall on equal pixels are added first. What remains is a
    transposed convolution of stride 2 with 4×4 taps: 4 products for each pixel, channel and feature instead of 9.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, 2H, 2W)."""
        kernel = _added_taps(_added_taps(self.weight, 2), 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


def _added_taps(weight: Tensor, dim: int) -> Tensor:
    """Three taps of an enlarged row to the four of the transposed convolution of the row itself."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


class _Stem(nn.Module):
    """FC, Reshape, BN: the first row of Tables IV and V."""

    def __init__(self, latent_size: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (height, width, channels)
        self.linear = nn.Linear(latent_size, channels * height * width)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, latent_size) to (N, channels, height, width) in channels_last, which the convolutions prefer."""
        return self.norm(self.linear(latents).view(len(latents), *self.shape).permute(0, 3, 1, 2))


class _ImageGenerator(nn.Module):
    """A stem of ``side / factor`` pixels, blocks that enlarge it, a convolution to the image, Tanh, helper BN."""

    def __init__(
        self, blocks: Sequence[nn.Module], features: int, first: int, factor: int, latent_size: int, channels: int,
        size: Sequence[int], helper_bn: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        height, width = _sides(size, factor)
        require_count("latent_size", latent_size)
        require_count("channels", channels)
        require(isinstance(helper_bn, bool), "helper_bn", "true or false", helper_bn)
        self.latent_size, self.image_shape = latent_size, (channels, height, width)
        self.stem = _Stem(latent_size, first, height // factor, width // factor)
        self.blocks = nn.Sequential(*blocks)
        self.image = nn.Conv2d(features, channels, 3, padding=1)
        # No scale and no shift to learn: each channel of a batch has mean 0 and variance 1, as normalised images have.
        self.helper: nn.Module = nn.BatchNorm2d(channels, affine=False) if helper_bn else nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        """Network input (N, C, H, W) of latents (N, latent_size) from a standard normal distribution."""
        return self.helper(self.image(self.blocks(self.stem(latents))).tanh())


class UpsamplingGenerator(_ImageGenerator):
    """Two times an upsampling and a convolution, for small images (Ye 2022, Table IV).

    Args:
        latent_size: numbers in a latent.
        width: channels of the last block; 64 in the paper. The block before it has twice as many.
        channels, size: of the images; height and width are divisible by 4.
        helper_bn: a BatchNorm without parameters behind Tanh ("helper BN", sec. III.B.2). It gives the images of a
            batch mean 0 and variance 1 in each channel. Without it the images lie in [-1, 1].

    Raises:
        ValueError: naming the argument that leaves its range.
    """

    def __init__(
        self,
        latent_size: int = LATENT_SIZE,
        width: int = 64,
        channels: int = 3,
        size: Sequence[int] = (32, 32),
        helper_bn: bool = True,
    ) -> None:
        require_count("width", width)

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(UpsampledConv2d(inputs, outputs), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE))

        blocks = [block(2 * width, 2 * width), block(2 * width, width)]
        super().__init__(blocks, width, 2 * width, 4, latent_size, channels, size, helper_bn)


class DeconvolutionGenerator(_ImageGenerator):
    """Four transposed convolutions of stride 2, for large images (Ye 2022, Table V).

    Args:
        latent_size, channels, helper_bn: as :class:`UpsamplingGenerator`.
        width: channels of the last block; 64 in the paper. Each block before has twice as many as the next. The paper
            does not say how many channels the fully connected layer gives; here as many as the first block.
        size: of the images; height and width are divisible by 16.

    Raises:
        ValueError: naming the argument that leaves its range.
    """

    def __init__(
        self,
        latent_size: int = LATENT_SIZE,
        width: int = 64,
        channels: int = 3,
        size: Sequence[int] = (224, 224),
        helper_bn: bool = True,
    ) -> None:
        require_count("width", width)

        def block(inputs: int, outputs: int) -> nn.Sequential:
            conv = nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE))

        widths = [8 * width, 8 * width, 4 * width, 2 * width, width]
        blocks = [block(*pair) for pair in itertools.pairwise(widths)]
        super().__init__(blocks, width, widths[0], 16, latent_size, channels, size, helper_bn)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "upsampling": UpsamplingGenerator,
    "deconvolution": DeconvolutionGenerator,
}
BUILT_IN = frozenset(NETWORKS)


def create(architecture: str, /, **arguments: Any) -> nn.Module:
    """Create a generator network with random weights; ValueError naming a wrong architecture or argument."""
    constructor = named("architecture", architecture, NETWORKS)
    require_plain(architecture, arguments)
    return construct(architecture, constructor, arguments)


def register(name: str, factory: Callable[..., nn.Module], *, replace: bool = False) -> None:
    """Add a network of your own, so that :func:`create` and generators' cards can name it.

    Args:
        name: letters, digits, "_", "." and "-". It must not be taken.
        factory: called as ``factory(**arguments)`` with JSON values. The network maps latents (N, latent_size) to
            network input (N, C, H, W).
        replace: replace a factory that was registered before, but none of this package.

    Raises:
        ValueError: for a name that is taken or has other characters, or a factory that cannot be called.
    """
    valid = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None
    require(valid, "name", 'letters, digits, "_", "." and "-"', name)
    require(callable(factory), "factory", "a class or a function that returns a network", factory)
    if name in BUILT_IN or (name in NETWORKS and not replace):
        raise ValueError(f"name {name!r} is taken by {getattr(NETWORKS[name], '__name__', NETWORKS[name])}")
    NETWORKS[name] = factory


def _sides(size: Sequence[int], factor: int) -> tuple[int, int]:
    """Height and width; ValueError unless they are two positive multiples of ``factor``."""
    expected = f"(height, width), both positive multiples of {factor}"
    two = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
    require(two and all(side > 0 and side % factor == 0 for side in size), "size", expected, size)
    height, width = size
    return height, width
