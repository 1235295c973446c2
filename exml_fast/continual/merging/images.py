"""The images on which a merge measures features: inverted from each expert, drawn at random, or given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.ex_model.strategies import Strategy
from exml_fast.continual.expert import Expert
from exml_fast.data import ImageSource
from exml_fast.inversion import Result
from exml_fast.validation import require, require_count

__all__ = ["BATCH_IMAGES", "Images", "MergeImages"]

Images = Tensor | Result | ImageSource | Strategy | Sequence[Tensor]
BATCH_IMAGES = 32
"""Images that pass all networks at once, when features are measured."""
NORM_IMAGES = 256
"""Images from which a BatchNorm takes a mean and a variance. Those of several batches are averaged."""


class MergeImages:
    """Images for every expert of a stream.

    Args:
        source: normalised images (N, C, H, W) or a Result of :func:`exml_fast.invert` for all experts, a sequence of
            such tensors, one for each expert, an ImageSource that draws images for all experts, or a Strategy that
            makes images of each expert.
        count: how many images a source draws, and a strategy makes for each expert.
        seed: of sources and strategies.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, source: Images, count: int, seed: int) -> None:
        require_count("count", count)
        self.source, self.count = source, count
        self.generator = torch.Generator().manual_seed(seed)
        self.known = _known(source)
        """In words, where the images come from."""
        self._drawn: dict[int, Tensor] = {}

    @property
    def from_experts(self) -> bool:
        """Whether each expert has images of its own."""
        return isinstance(self.source, Sequence) or (isinstance(self.source, Strategy) and not self.source.once)

    def of(self, number: int, expert: Expert) -> Tensor:
        """The images (N, C, H, W) of expert ``number``; the same at each call."""
        number = number if self.from_experts else 0
        if number not in self._drawn:
            images = self._draw(number, expert)
            if images.dim() != 4 or len(images) == 0:
                raise ValueError(f"images must be (N, C, H, W) with N > 0, got shape {tuple(images.shape)}")
            self._drawn[number] = images.detach().cpu()
        return self._drawn[number]

    def _draw(self, number: int, expert: Expert) -> Tensor:
        source: Any = self.source
        if isinstance(source, Tensor):
            return source
        if isinstance(source, Result):
            return source.images
        if isinstance(source, Strategy):
            return source.samples(expert, self.count, self.generator)[0]
        if isinstance(source, Sequence):
            if number >= len(source):
                raise ValueError(f"images must be a tensor for each expert, got {len(source)} tensors")
            return source[number]
        return source.draw(self.count, expert.input_spec, self.generator)

    def batches(self) -> Iterator[Tensor]:
        """All images that were drawn, in an order in which the experts are mixed."""
        pool = torch.cat([self._drawn[number] for number in sorted(self._drawn)])
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        for rows in order.tensor_split(-(-len(order) // NORM_IMAGES)):
            yield pool[rows]


def _known(source: Any) -> str:
    if isinstance(source, Tensor | Result):
        return "given images"
    if isinstance(source, Strategy):
        return str(source.describe()["strategy"]).replace("_", " ")
    if isinstance(source, Sequence) and source and all(isinstance(each, Tensor) for each in source):
        return "images given for each expert"
    require(hasattr(source, "draw"), "images", "a tensor, a Result, an ImageSource or a Strategy", source)
    return f"random images, what is known: {source.domain}"
