"""What all merges share: the network of the experts, a head with the units of all, and BatchNorm statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual.baselines import CannotMerge, require_same
from exml_fast.continual.expert import Card, Expert
from exml_fast.continual.merging.graph import FeatureGraph, State
from exml_fast.continual.merging.images import MergeImages
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.training.running_statistics import reset_batch_norms

__all__ = ["CommonNetwork", "Merged", "opened"]

EXAMPLES = 2


class Merged:
    """One network made from all experts; a subclass makes :attr:`expert`."""

    expert: Expert

    @property
    def input_spec(self) -> InputSpec:
        """The input all experts share."""
        return self.expert.input_spec

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,) of normalised images; ``task`` is ignored."""
        return self.expert.predict(images)


def opened(experts: Iterable[Expert] | ExpertStream) -> ExpertStream:
    """The experts as a stream, which reads them one at a time and several times."""
    if isinstance(experts, ExpertStream):
        return experts
    listed = list(experts)
    if not listed:
        raise ValueError("experts must hold at least one expert")
    return ExpertStream(listed)


class CommonNetwork:
    """The network that all experts of a stream have, with a logit for every unit of any expert.

    Attributes:
        units: the first expert's units if all experts have the same, otherwise the sorted units of all.
        graph: the features that may be permuted.
        head: name of the layer that gives the logits.
        has_batch_norm: whether there are statistics that can be measured anew.

    Raises:
        DifferentNetworks: if the architecture, its arguments (except the number of logits) or the input differ.
        CannotMerge: if the features of the network cannot be followed, or the logits come from no single layer.
    """

    def __init__(self, stream: ExpertStream) -> None:
        self.cards = stream.cards
        for number, card in enumerate(self.cards[1:], 2):
            require_same(_shared(self.cards[0]), _shared(card), number)
        first = stream[0]
        same = all(card.units == first.units for card in self.cards)
        self.units = first.units if same else tuple(stream.units)
        self.template = copy.deepcopy(first.model).cpu()
        images = torch.randn(EXAMPLES, *first.input_spec.shape, generator=torch.Generator().manual_seed(0))
        self.example = images
        self.graph = FeatureGraph.of(self.template, images)
        self.weights = [name for name, _ in self.template.named_parameters()]
        layers = {name.rpartition(".")[0] for name in self.graph.head}
        if len(layers) != 1:
            raise CannotMerge(f"the logits must come from one layer, got {sorted(layers)}")
        (self.head,) = layers
        self.class_names = stream.class_names
        self.has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.template.modules())

    def rows(self, card: Card) -> Tensor:
        """Places (len(card.units),) of the expert's logits among :attr:`units`."""
        place = {unit: j for j, unit in enumerate(self.units)}
        return torch.tensor([place[unit] for unit in card.units])

    def owners(self) -> Tensor:
        """How many experts have each unit, float64 (len(units),)."""
        return torch.stack([self.owns(card) for card in self.cards]).sum(0)

    def owns(self, card: Card) -> Tensor:
        """1 for each unit that the expert has, otherwise 0, float64 (len(units),)."""
        return torch.zeros(len(self.units), dtype=torch.float64).index_fill_(0, self.rows(card), 1)

    def state(self, expert: Expert) -> State:
        """Its weights and floating-point buffers in float64; logits that it does not have are zero."""
        state = {k: v.detach().cpu().double() for k, v in expert.model.state_dict().items() if v.is_floating_point()}
        for name in self.graph.head:
            own = state[name]
            state[name] = own.new_zeros(len(self.units), *own.shape[1:]).index_copy_(0, self.rows(expert.card), own)
        return state

    def mean(self, total: State, count: int, owners: Tensor) -> State:
        """The mean of a sum of ``count`` states; logits are averaged over their ``owners``."""
        mean = {name: value / count for name, value in total.items()}
        for name in self.graph.head:
            share = owners.clamp(min=1).view(-1, *(1,) * (total[name].dim() - 1))
            mean[name] = total[name] / share
        return mean

    def expert(self, state: State, facts: Mapping[str, Any], images: MergeImages | None) -> Expert:
        """The network with these weights; its BatchNorms are measured on ``images``, if any."""
        model = copy.deepcopy(self.template)
        head = model.get_submodule(self.head)
        if isinstance(head, nn.Linear) and head.out_features != len(self.units):
            bias = head.bias is not None
            model.set_submodule(self.head, nn.Linear(head.in_features, len(self.units), bias).eval())
        like = model.state_dict()
        model.load_state_dict(like | {name: value.to(like[name].dtype) for name, value in state.items()})
        if images is not None:
            reset_batch_norms(model, images.batches())
        return Expert(model.eval(), self.card(facts, images))

    def card(self, facts: Mapping[str, Any], images: MergeImages | None) -> Card:
        """The card of a merged network."""
        first = self.cards[0]
        arguments = dict(first.arguments)
        if "num_classes" in arguments:
            arguments["num_classes"] = len(self.units)
        known = {c for card in self.cards for c in card.classes}
        return Card(
            first.architecture, arguments, self.units, tuple(u for u in self.units if u in known),
            tuple(self.class_names[u] for u in self.units), first.input_spec,
            {**facts, "experts": len(self.cards), "images": "none" if images is None else images.known},
        )  # fmt: skip


def _shared(card: Card) -> dict[str, Any]:
    arguments = {name: value for name, value in card.arguments.items() if name != "num_classes"}
    return {"architecture": card.architecture, "arguments": arguments, "input_spec": card.input_spec}
