"""ZipIt (Stoica 2024, "ZipIt! Merging Models from Different Tasks without Training", arXiv 2305.03053).

Features that correlate are averaged into one, whether they belong to different experts or to the same one. The first
layers of all experts become one trunk. Layers after the trunk stay as they are, one head for each expert.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from exml_fast.continual.baselines import CannotMerge
from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.features import correlations
from exml_fast.continual.merging.graph import OUTPUT, FeatureGraph, Group, State, trace
from exml_fast.continual.merging.images import Images, MergeImages
from exml_fast.continual.merging.merged import CommonNetwork, Merged, opened
from exml_fast.continual.stream import ExpertStream
from exml_fast.training.running_statistics import reset_batch_norms
from exml_fast.validation import require, require_count

__all__ = ["ZipIt", "Zipped", "zip_features"]

MIXED = -1


class ZipIt(Merged):
    """All experts zipped into one network, or into one trunk with a head for each expert.

    All experts are in memory at once.

    Args:
        experts: of one architecture; their units may differ. Each unit is averaged over the experts that have it.
        images: on which features are correlated and BatchNorms are measured anew (:class:`MergeImages`). Every expert
            sees the images of all.
        depth: how many convolutions and linear layers the trunk has at most. None zips all layers but the last, whose
            rows are averaged, so that the result is one network of the experts' architecture.
        alpha: α in (0, 1] by which a correlation is multiplied each time that a feature is merged again.
        beta: β in [0, 1], the share of merges within each expert that is allowed. The paper's code has α = 0.3 and
            β = 0.125. A larger β was better for experts of different classes, by the accuracy on digits that the
            experts were trained on.
        reset: measure the running statistics of the BatchNorms on the images.
        count: number of images that are drawn, or made from each expert.
        seed: of the images.

    Raises:
        DifferentNetworks: for experts of different architectures.
        CannotMerge: for a network whose features cannot be followed, or that cannot be cut at ``depth``.
    """

    def __init__(
        self,
        experts: Iterable[Expert] | ExpertStream,
        images: Images,
        *,
        depth: int | None = None,
        alpha: float = 0.3,
        beta: float = 1.0,
        reset: bool = True,
        count: int = 500,
        seed: int = 0,
    ) -> None:
        require(0 < alpha <= 1, "alpha", "a number in (0, 1]", alpha)
        require(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
        if depth is not None:
            require_count("depth", depth)
        stream, seen = opened(experts), MergeImages(images, count, seed)
        network, held = CommonNetwork(stream), list(stream)
        pool = [seen.of(number, expert) for number, expert in enumerate(held)]
        seen_by_all = torch.cat(pool if seen.from_experts else pool[:1])
        facts = {"method": "zipit", "alpha": alpha, "beta": beta, "depth": depth}

        def zipped(models: Sequence[nn.Module], graph: FeatureGraph) -> list[Tensor]:
            found = correlations(models, graph.groups, seen_by_all)
            return [zip_features(table, len(models), alpha, beta) for table in found]

        if depth is None:
            slots = zipped([expert.model for expert in held], network.graph)
            total = _zipped([network.state(expert) for expert in held], network.graph.groups, slots)
            mean = network.mean(total, len(held), network.owners())
            self.expert = network.expert(mean, facts, seen if reset else None)
            return
        trunks, heads = zip(*(_cut(expert.model, depth, network.head) for expert in held), strict=True)
        graph = FeatureGraph.of(trunks[0], network.example, fixed_outputs=False)
        slots = zipped(trunks, graph)
        total = _zipped([_floating(trunk) for trunk in trunks], graph.groups, slots)
        like = trunks[0].state_dict()
        trunks[0].load_state_dict(like | {name: (v / len(held)).to(like[name].dtype) for name, v in total.items()})
        model = Zipped(trunks[0], heads, _columns(trunks[0](network.example).shape[1], graph.groups, slots), network)
        if reset:
            reset_batch_norms(model, seen.batches())
        self.expert = Expert(model.eval(), network.card(facts, seen))


class Zipped(nn.Module):
    """A trunk, and a head for each expert.

    Args:
        trunk: images to features (N, C, …).
        heads: features to the logits of each expert.
        columns: (k, C) int64, the trunk's feature that takes the place of each feature of each expert.
        network: the units of the experts.
    """

    columns: Tensor
    owners: Tensor

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Module], columns: Tensor, network: CommonNetwork) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)
        self.rows = [network.rows(card) for card in network.cards]
        self.register_buffer("columns", columns)
        self.register_buffer("owners", network.owners().float())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, units), each the mean over the experts that have the unit."""
        seen = self.trunk(images)
        total = seen.new_zeros(len(images), len(self.owners))
        for head, columns, rows in zip(self.heads, self.columns, self.rows, strict=True):
            total = total.index_add(1, rows.to(total.device), head(seen[:, columns]))
        return total / self.owners


def _zipped(states: Sequence[State], groups: Sequence[Group], slots: Sequence[Tensor]) -> State:
    """The sum over the experts of k·Mᵢ Wᵢ Uᵢ (Stoica 2024, sec. 4), for k experts.

    Mᵢ averages the features of a slot over all experts, Uᵢ gives every feature the value of its slot.
    """
    total: State = {}
    for number, state in enumerate(states):
        moved = dict(state)
        for group, of_models in zip(groups, slots, strict=True):
            share = len(states) / torch.bincount(of_models.flatten()).double()
            slot = of_models[number]
            for (name, dim), places in group.places.items():
                value = moved[name]
                target, scale = torch.arange(value.shape[dim]), value.new_ones(value.shape[dim])
                target[places] = places[slot]
                if dim == 0:
                    scale[places] = share[slot][:, None]
                scaled = value * scale.view(-1, *(1,) * (value.dim() - dim - 1))
                moved[name] = torch.zeros_like(value).index_add_(dim, target, scaled)
        total = {name: value + total.get(name, 0) for name, value in moved.items()}
    return total


def _columns(channels: int, groups: Sequence[Group], slots: Sequence[Tensor]) -> Tensor:
    """(k, channels): the channel of the zipped trunk that replaces each channel of each expert's trunk."""
    columns = torch.arange(channels).repeat(len(slots[0]), 1)
    for group, of_models in zip(groups, slots, strict=True):
        if OUTPUT in group.readers:
            places = group.readers[OUTPUT]
            for number, slot in enumerate(of_models):
                columns[number, places] = places[slot]
    return columns


def _cut(model: nn.Module, depth: int, head: str) -> tuple[nn.Module, nn.Module]:
    """The first ``depth`` convolutions and linear layers with all that follows them, and the rest of the network.

    The cut is where one tensor alone passes. In a block with a shortcut that is after the block.
    """
    traced = trace(model)
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    layers, best = 0, None
    for i, node in enumerate(nodes):
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        layers += isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if layers > depth or node.target == head:
            break
        crossing = {given for later in nodes[i + 1 :] for given in later.all_input_nodes} & set(nodes[: i + 1])
        if layers and crossing == {node}:
            best = i
    if best is None:
        raise CannotMerge(f"the network cannot be cut after at most {depth} layers: a shortcut passes every place")
    trunk, rest, cut = fx.Graph(), fx.Graph(), nodes[best]
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: best + 1]:
        copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(copies[cut])
    copies = {cut: rest.placeholder("features")}
    for node in (*nodes[best + 1 :], *(n for n in traced.graph.nodes if n.op == "output")):
        copies[node] = rest.node_copy(node, copies.__getitem__)
    # Copies, as the experts' own networks must not change.
    return tuple(copy.deepcopy(fx.GraphModule(traced, graph)).cpu().eval() for graph in (trunk, rest))  # type: ignore[return-value]


def _floating(model: nn.Module) -> State:
    return {k: v.detach().cpu().double() for k, v in model.state_dict().items() if v.is_floating_point()}


def zip_features(correlation: Tensor, models: int, alpha: float = 0.3, beta: float = 1.0) -> Tensor:
    """Group the features of several models until as many groups are left as one model has features.

    The two groups with the highest correlation are joined, again and again (Stoica 2024, sec. 4). The
    correlation of a joined group with another is the lower one of both, times ``alpha`` if it is positive. Of the
    merges, 1 / ``models`` could fall on each model; at most ``beta`` of these may be within it.

    Args:
        correlation: (k·n, k·n) of the features of all ``models`` k, model after model.

    Returns:
        (k, n) int64: the number of the group, 0 to n − 1, of each feature of each model.
    """
    size = len(correlation)
    left = size // models
    table = correlation.clone().fill_diagonal_(-torch.inf)
    choice = table.clone()  # without the pairs that the budget forbids
    group = torch.arange(size)
    origin = group // left  # the model that has all features of a group, or MIXED
    budget = [int(beta * (size - left) / models)] * models

    def forbid_within(model: int) -> None:
        own = torch.nonzero(origin == model)[:, 0]
        choice[own[:, None], own] = -torch.inf

    for model in range(models):
        if budget[model] == 0:
            forbid_within(model)
    for _ in range(size - left):
        first, second = sorted(divmod(int(choice.argmax()), size))
        model = int(origin[first])
        within = model != MIXED and model == int(origin[second])
        joined = torch.minimum(table[first], table[second])
        joined = torch.where(joined > 0, alpha * joined, joined)
        joined[[first, second]] = -torch.inf
        for each in (table, choice):
            each[first] = each[:, first] = joined
            each[second] = each[:, second] = -torch.inf
        group[group == group[second]] = group[first].clone()
        origin[second] = MIXED
        if within:
            budget[model] -= 1
            if budget[model] == 0:
                forbid_within(model)
        else:
            origin[first] = MIXED
    return torch.unique(group, return_inverse=True)[1].view(models, left)
