"""RegMean (Jin 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv 2212.09849).

Every layer of the merged network should give the outputs that the experts' layers give on their own inputs. For a
linear layer this is a least-squares problem, which the Gram matrices of the inputs solve. A convolution is a linear
layer of patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.features import layer_inputs
from exml_fast.continual.merging.graph import State
from exml_fast.continual.merging.images import BATCH_IMAGES, Images, MergeImages
from exml_fast.continual.merging.merged import CommonNetwork, Merged, opened
from exml_fast.continual.stream import ExpertStream
from exml_fast.validation import require

__all__ = ["RegMean"]

# Keeps the sum of Gram matrices invertible, relative to its mean diagonal: inputs that no image reaches keep the mean.
RIDGE = 1e-8


class RegMean(Merged):
    """One network whose linear and convolutional layers are W = (Σ G̃ᵢ)⁻¹ Σ G̃ᵢ Wᵢ (Jin 2023, sec. 3).

    Gᵢ = XᵢᵀXᵢ / n is the Gram matrix of the inputs Xᵢ of expert i's layer on its own images, and G̃ᵢ = α Gᵢ +
    (1 − α) diag(Gᵢ). A bias is one more row of W, whose input is 1. All other parameters are averaged, as in grouped
    convolutions and BatchNorms. One expert is in memory at a time, beside the sums of each layer.

    Args:
        experts: of one architecture; their units may differ. Each unit is solved for the experts that have it.
        images: the images of each expert (:class:`MergeImages`).
        alpha: α in [0, 1], by which elements outside the diagonal are scaled. The paper takes 0.9, or 0.1 for T5. 0.1
            was better by the accuracy on digits that the experts were trained on, so that is the default.
        reset: measure the running statistics of the BatchNorms on the images.
        count: number of images that are drawn, or made from each expert.
        seed: of the images.

    Raises:
        DifferentNetworks: for experts of different architectures.
        CannotMerge: for a network whose logits come from no single layer (:class:`CommonNetwork`).
    """

    def __init__(
        self,
        experts: Iterable[Expert] | ExpertStream,
        images: Images,
        *,
        alpha: float = 0.1,
        reset: bool = True,
        count: int = 500,
        seed: int = 0,
    ) -> None:
        require(0 <= alpha <= 1, "alpha", "a number in [0, 1]", alpha)
        stream = opened(experts)
        network, seen = CommonNetwork(stream), MergeImages(images, count, seed)
        layers = {name: module for name, module in network.template.named_modules() if _is_solved(module)}
        total: State = {}
        solutions = {name: _Solution(name == network.head) for name in layers}
        for number, expert in enumerate(stream):
            state = network.state(expert)
            total = {name: value + total.get(name, 0) for name, value in state.items()}
            grams = _grams(expert.model, layers, seen.of(number, expert))
            for name, solution in solutions.items():
                gram = alpha * grams[name] + (1 - alpha) * grams[name].diagonal().diag()
                solution.add(gram, _matrix(state, name), network.owns(expert.card))
        mean = network.mean(total, len(stream), network.owners())
        for name, solution in solutions.items():
            _set_matrix(mean, name, solution.solve(_matrix(mean, name)))
        self.expert = network.expert(mean, {"method": "regmean", "alpha": alpha}, seen if reset else None)


class _Solution:
    """The sums of one layer. The Gram matrices of the head are kept, as each unit has experts of its own."""

    def __init__(self, head: bool) -> None:
        self.head = head
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, gram: Tensor, matrix: Tensor, owns: Tensor) -> None:
        """``gram`` (in, in) and ``matrix`` (in, out) of an expert; ``owns`` (out,) marks the units of a head."""
        one = (gram, gram @ matrix, owns if self.head else torch.ones(1))
        if self.parts and torch.equal(self.parts[-1][2], one[2]):
            last = self.parts.pop()
            one = (last[0] + one[0], last[1] + one[1], one[2])
        self.parts.append(one)

    def solve(self, mean: Tensor) -> Tensor:
        """W (in, out); ``mean`` (in, out) is the average of the experts' matrices."""
        owners = torch.stack([owns for _, _, owns in self.parts])
        if owners.shape[1] == 1:
            return _solved(self.parts[0][0], self.parts[0][1], mean)
        columns = []
        for unit in range(mean.shape[1]):
            known = [(gram, product[:, unit]) for gram, product, owns in self.parts if owns[unit]]
            gram, product = (torch.stack(each).sum(0) for each in zip(*known, strict=True))
            columns.append(_solved(gram, product[:, None], mean[:, unit : unit + 1]))
        return torch.cat(columns, 1)


def _solved(gram: Tensor, product: Tensor, mean: Tensor) -> Tensor:
    ridge = RIDGE * gram.diagonal().mean().clamp(min=1e-30)
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), product + ridge * mean)


def _is_solved(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _grams(model: nn.Module, layers: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
    """XᵀX / n of the inputs of each layer, float64 (in, in); an input of 1 goes with a bias."""
    totals: dict[str, Any] = dict.fromkeys(layers, 0)
    counts = dict.fromkeys(layers, 0)
    for batch in images.split(BATCH_IMAGES):
        inputs = layer_inputs(model, layers, batch)
        for name, layer in layers.items():
            rows = _patches(layer, inputs.pop(name))
            if layer.bias is not None:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            totals[name] = totals[name] + (rows.T @ rows).cpu().double()
            counts[name] += len(rows)
    return {name: total / counts[name] for name, total in totals.items()}


def _patches(layer: nn.Conv2d | nn.Linear, given: Tensor) -> Tensor:
    """The rows (samples, in) that the matrix of ``layer`` multiplies."""
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    patches = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def _matrix(state: State, name: str) -> Tensor:
    """Weight and bias of a layer as one matrix (in, out)."""
    weight, bias = state[f"{name}.weight"].flatten(1), state.get(f"{name}.bias")
    return (weight if bias is None else torch.cat([weight, bias[:, None]], 1)).T


def _set_matrix(state: State, name: str, matrix: Tensor) -> None:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    if bias is not None:
        state[f"{name}.bias"], matrix = matrix[-1], matrix[:-1]
    state[f"{name}.weight"] = matrix.T.reshape(weight.shape)
