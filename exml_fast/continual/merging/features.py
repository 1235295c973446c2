"""The activations of several networks on the same images, feature by feature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual.merging.graph import OUTPUT, Group
from exml_fast.continual.merging.images import BATCH_IMAGES

__all__ = ["correlations", "features", "layer_inputs"]


@torch.no_grad()
def features(
    models: Sequence[nn.Module], groups: Sequence[Group], images: Tensor
) -> Iterator[tuple[int, list[Tensor]]]:
    """The values of all features where layers read them, batch by batch and group by group.

    Yields:
        The number of a group, and for each model the values float64 (n, samples) of its features on the CPU. A sample
        is an image, or a pixel of an activation map.
    """
    names = {name for group in groups for name in group.readers}
    for batch in images.split(BATCH_IMAGES):
        inputs = [layer_inputs(model, names, batch) for model in models]
        for number, group in enumerate(groups):
            yield (
                number,
                [torch.cat([_samples(of[name], places) for name, places in group.readers.items()], 1) for of in inputs],
            )


@torch.no_grad()
def layer_inputs(model: nn.Module, names: Iterable[str], batch: Tensor) -> dict[str, Tensor]:
    """The inputs of the layers ``names``, and the network's output under :data:`OUTPUT`, for a batch of images."""
    found: dict[str, Tensor] = {}

    def seen_by(name: str) -> Callable[..., None]:
        def see(_layer: nn.Module, given: Any) -> None:
            found[name] = given[0]

        return see

    with ExitStack() as stack:
        for name in names:
            if name != OUTPUT:
                stack.callback(model.get_submodule(name).register_forward_pre_hook(seen_by(name)).remove)
        found[OUTPUT] = model.eval()(batch.to(next(model.parameters()).device))
    return found


def _samples(values: Tensor, places: Tensor) -> Tensor:
    """(N, C, …) to (n, samples): the values of each feature, whose channels are the rows of ``places`` (n, r)."""
    own = values.cpu().double().movedim(1, 0)[places]
    return own.flatten(1)


def correlations(models: Sequence[nn.Module], groups: Sequence[Group], images: Tensor) -> list[Tensor]:
    """For each group the correlations (k·n, k·n) of the features of all k models.

    Two constant features, as units that no image activates, have a correlation of 1. A constant feature and another
    have 0.
    """
    count, sums, squares = [0] * len(groups), [torch.zeros(())] * len(groups), [torch.zeros(())] * len(groups)
    for number, of_models in features(models, groups, images):
        values = torch.cat(of_models)
        count[number] += values.shape[1]
        sums[number] = sums[number] + values.sum(1)
        squares[number] = squares[number] + values @ values.T
    found = []
    for n, first, second in zip(count, sums, squares, strict=True):
        covariance = second / n - (first / n).outer(first / n)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        constant = deviation <= 1e-6 * deviation.max()
        scale = torch.where(constant, 1.0, deviation)
        both = constant[:, None] & constant
        either = constant[:, None] | constant
        found.append(torch.where(either, both.double(), covariance / scale.outer(scale)))
    return found
