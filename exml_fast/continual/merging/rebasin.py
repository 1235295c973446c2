"""Permutation-aligned averaging (Ainsworth 2022, "Git Re-Basin", arXiv 2209.04836).

A network computes the same function when its hidden features change places. Before the weights are averaged, the
features of each expert are put in the places of the features that they resemble.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.features import features
from exml_fast.continual.merging.graph import FeatureGraph, Group, State
from exml_fast.continual.merging.images import Images, MergeImages
from exml_fast.continual.merging.merged import CommonNetwork, Merged, opened
from exml_fast.continual.stream import ExpertStream
from exml_fast.validation import require, require_count

__all__ = ["ReBasin", "match_weights"]

SWEEPS = 100


class ReBasin(Merged):
    """One network of averaged weights, after the features of the experts were aligned by permutations.

    With ``matching="weights"`` the permutations maximise the inner product of an expert's weights with the mean weights
    of the other experts (Ainsworth 2022, sec. 3.2; "MergeMany" for more than two). One expert is in memory at a time,
    beside the sum of all. With ``matching="activations"`` they maximise the inner product of an expert's activations
    with those of the first expert (sec. 3.1); these two are in memory.

    Args:
        experts: of one architecture; their units may differ. Each unit is averaged over the experts that have it.
        images: on which activations are matched and BatchNorms are measured anew (:class:`MergeImages`); weights can be
            matched without.
        matching: "weights" or "activations".
        passes: how often each expert is aligned with the others; it ends earlier if nothing moves.
        reset: measure the running statistics of the BatchNorms on the images.
        count: number of images that are drawn, or made from each expert.
        seed: of the images, and of the order in which features are matched.

    Raises:
        DifferentNetworks: for experts of different architectures.
        CannotMerge: for a network whose features cannot be followed (:class:`FeatureGraph`).
        ImportError: without scipy, which solves the assignments.
    """

    def __init__(
        self,
        experts: Iterable[Expert] | ExpertStream,
        images: Images | None = None,
        *,
        matching: Literal["weights", "activations"] = "weights",
        passes: int = 10,
        reset: bool = True,
        count: int = 500,
        seed: int = 0,
    ) -> None:
        require(matching in ("weights", "activations"), "matching", "'weights' or 'activations'", matching)
        require_count("passes", passes)
        require(images is not None or matching == "weights", "images", "images, on which activations are matched", None)
        stream = opened(experts)
        network = CommonNetwork(stream)
        seen = None if images is None else MergeImages(images, count, seed)
        if matching == "weights" and not (reset and network.has_batch_norm):
            seen = None
        if matching == "activations":
            assert seen is not None
            total = _align_activations(stream, network, seen)
        else:
            total = _align_weights(stream, network, passes, torch.Generator().manual_seed(seed))
        if seen is not None:
            for number, expert in enumerate(stream):
                seen.of(number, expert)
        mean = network.mean(total, len(stream), network.owners())
        self.expert = network.expert(mean, {"method": f"re-basin, {matching}"}, seen if reset else None)


def _align_weights(stream: ExpertStream, network: CommonNetwork, passes: int, generator: torch.Generator) -> State:
    """The sum of the aligned experts' states (Ainsworth 2022, "MergeMany")."""
    graph = network.graph
    orders = [[torch.arange(group.size) for group in graph.groups] for _ in range(len(stream))]
    total: State = {}
    for number in range(passes):
        moved = False
        for i, expert in enumerate(stream):
            state = network.state(expert)
            for group, order in zip(graph.groups, orders[i], strict=True):
                group.permute(state, order)
            if number:
                total = {name: value - state[name] for name, value in total.items()}
            if total:
                others = [card for j, card in enumerate(network.cards) if j != i and (number or j < i)]
                owners = torch.stack([network.owns(card) for card in others]).sum(0)
                found = match_weights(
                    network.mean(total, len(others), owners), state, graph, network.weights, generator
                )
                moved |= any(not torch.equal(order, torch.arange(len(order))) for order in found)
                orders[i] = [order[new] for order, new in zip(orders[i], found, strict=True)]
            total = {name: value + total.get(name, 0) for name, value in state.items()}
        if not moved:
            break
    return total


def match_weights(
    reference: State, state: State, graph: FeatureGraph, weights: list[str], generator: torch.Generator
) -> list[Tensor]:
    """Permute ``state`` in place so that its inner product with ``reference`` grows (Ainsworth 2022, sec. 3.2).

    The groups are matched in random order until none moves. There are two starts, of which the better is kept: the
    features as they are, and features that were matched layer by layer.

    Returns:
        For each group the order (n,): feature ``order[i]`` came to the place of feature i.
    """
    best: tuple[float, State, list[Tensor]] | None = None
    for layerwise in (False, True):
        trial, orders = dict(state), [torch.arange(group.size) for group in graph.groups]
        if layerwise:
            _match_layer_by_layer(reference, trial, graph, weights, orders)
        for _ in range(SWEEPS):
            moved = False
            for number in torch.randperm(len(graph.groups), generator=generator).tolist():
                moved |= _match(reference, trial, graph.groups[number], weights, orders, number)
            if not moved:
                break
        value = sum(float((reference[name] * trial[name]).sum()) for name in weights)
        if best is None or value > best[0]:
            best = value, trial, orders
    assert best is not None
    state.update(best[1])
    return best[2]


def _match_layer_by_layer(
    reference: State, state: State, graph: FeatureGraph, weights: list[str], orders: list[Tensor]
) -> None:
    """Match each group by the weights whose other axis needs no permutation, or was matched before."""
    unmatched = {axis for group in graph.groups for axis in group.places}
    for number, group in enumerate(graph.groups):
        unmatched -= set(group.places)
        usable = [name for name in weights if not unmatched & {(name, 0), (name, 1)}]
        _match(reference, state, group, usable, orders, number)


def _match(reference: State, state: State, group: Group, weights: list[str], orders: list[Tensor], number: int) -> bool:
    """Permute the features of one group; False if they are in the best places already."""
    similarity = torch.zeros(group.size, group.size, dtype=torch.float64)
    for (name, dim), places in group.places.items():
        if name in weights:
            ours, theirs = (each[name].movedim(dim, 0)[places].flatten(1) for each in (reference, state))
            similarity += ours @ theirs.T
    order = assigned(similarity)
    better = similarity[torch.arange(group.size), order].sum() - similarity.trace()
    if better <= 1e-9 * similarity.abs().max():
        return False
    group.permute(state, order)
    orders[number] = orders[number][order]
    return True


def _align_activations(stream: ExpertStream, network: CommonNetwork, images: MergeImages) -> State:
    """The sum of the states, each aligned with the first expert by activations (Ainsworth 2022, sec. 3.1)."""
    groups, first = network.graph.groups, stream[0]
    total = network.state(first)
    for number in range(1, len(stream)):
        expert = stream[number]
        seen = [images.of(0, first)] + ([images.of(number, expert)] if images.from_experts else [])
        similarity = [torch.zeros(group.size, group.size, dtype=torch.float64) for group in groups]
        for place, (ours, theirs) in features([first.model, expert.model], groups, torch.cat(seen)):
            similarity[place] += ours @ theirs.T
        state = network.state(expert)
        for group, table in zip(groups, similarity, strict=True):
            group.permute(state, assigned(table))
        total = {name: value + state[name] for name, value in total.items()}
    return total


def assigned(similarity: Tensor) -> Tensor:
    """The order (n,) int64 that maximises the sum of ``similarity[i, order[i]]``.

    ImportError without scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("Re-Basin needs scipy: pip install 'exml_fast[eval]'") from error
    return torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1])
