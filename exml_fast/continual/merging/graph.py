"""Which features of a network may be permuted together: torch.fx follows every channel through the network.

Each channel of an activation has a feature id. A layer's output has new ids. Activations, poolings and BatchNorms keep
the ids, additions join the ids of their operands, and flattening repeats them. A feature is then known by the positions
that it has on the axes of all parameters, and the features with the same axes form a group.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exml_fast.continual.baselines import CannotMerge

__all__ = ["OUTPUT", "Axis", "FeatureGraph", "Group", "State", "trace"]

Axis = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions: 0 for outputs, 1 for inputs."""
State = dict[str, Tensor]

OUTPUT = ""
"""The name of the network's output among the readers of a group."""
NOTHING = -1
"""The id of channels that are always zero, as those of a shortcut that pads."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FLATTENING = ("flatten", "view", "reshape")


@dataclass(frozen=True)
class Group:
    """Features that may change places with each other.

    Attributes:
        size: number of features n.
        places: for each axis the positions (n, r) int64 of every feature; r > 1 after a flattening.
        readers: for each convolution or linear layer that reads the features, their positions (n, r) in its input; and
            under :data:`OUTPUT` their positions in the network's output, if it consists of features.
    """

    size: int
    places: dict[Axis, Tensor]
    readers: dict[str, Tensor]

    def permute(self, state: State, order: Tensor) -> None:
        """Put feature ``order[i]`` in the place of feature i, in all tensors of ``state``."""
        for (name, dim), places in self.places.items():
            index = torch.arange(state[name].shape[dim])
            index[places] = places[order]
            state[name] = state[name].index_select(dim, index)


@dataclass(frozen=True)
class FeatureGraph:
    """The groups of a network, in the order in which they first appear.

    Attributes:
        groups: every group whose features are neither image channels nor logits.
        head: the names of the parameters whose dimension 0 is the logits.
    """

    groups: list[Group]
    head: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, *, fixed_outputs: bool = True) -> FeatureGraph:
        """Find the groups, and check them: a network with permuted features gives the same outputs.

        Args:
            model: a network in evaluation mode. It is not changed.
            example: images (N, C, H, W) that it takes.
            fixed_outputs: the outputs are logits. Otherwise they are features, which may be permuted, too.

        Raises:
            CannotMerge: naming the operation that is not understood.
        """
        model = copy.deepcopy(model).double().cpu()
        labels = _Labels(trace(model))
        with torch.no_grad():
            outputs = labels.run(example.double().cpu())
        if not isinstance(outputs, Tensor):
            raise CannotMerge(f"the network must return one tensor, got {type(outputs).__name__}")
        graph = labels.graph_of(fixed_outputs)
        graph._verify(model, example.double().cpu(), outputs)
        return graph

    def _verify(self, model: nn.Module, example: Tensor, outputs: Tensor) -> None:
        generator, state = torch.Generator().manual_seed(0), dict(model.state_dict())
        index = torch.arange(outputs.shape[1])
        for group in self.groups:
            order = torch.randperm(group.size, generator=generator)
            group.permute(state, order)
            if OUTPUT in group.readers:
                places = group.readers[OUTPUT]
                index[places] = places[order]
        model.load_state_dict(state)
        with torch.no_grad():
            permuted = model(example)
        if not torch.allclose(permuted, outputs[:, index], rtol=1e-6, atol=1e-8 * float(outputs.abs().max())):
            raise CannotMerge("the features of the network cannot be permuted: a permuted copy gives other outputs")


def trace(model: nn.Module) -> fx.GraphModule:
    """``model`` as a graph; CannotMerge if torch.fx cannot trace it."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # whatever the network's own code raises while it is traced
        reason = " ".join(str(error).split())[:200]
        raise CannotMerge(f"torch.fx cannot trace the network {type(model).__name__}: {reason}") from error


class _Labels(fx.Interpreter):
    """Runs a network and gives every channel of every activation a feature id."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # it would be added to the messages of errors
        self.modules = dict(traced.named_modules())
        self.features: dict[fx.Node, Tensor] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.axes: dict[Axis, Tensor] = {}
        self.readers: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.outputs = torch.empty(0, dtype=torch.int64)
        self.parents: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
            self.features[n] = self._labelled(n, value)
        return value

    def _labelled(self, node: fx.Node, value: Tensor) -> Tensor:
        if node.op == "placeholder":
            self.inputs.append(self._new(value.shape[1]))
            return self.inputs[-1]
        if node.op == "output":
            self.outputs = self.features[node.args[0]]  # type: ignore[index]  # a tensor is a node's
            return self.outputs
        if node.op == "get_attr":
            raise CannotMerge(f"the network uses the tensor {node.target} outside of a layer that can be merged")
        if node.op == "call_module":
            return self._of_layer(str(node.target), node, value)
        return self._of_operation(node, value)

    def _of_layer(self, name: str, node: fx.Node, value: Tensor) -> Tensor:
        layer = self.modules[name]
        tensors = [key for key, tensor in layer.state_dict().items() if tensor.dim()]
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            raise CannotMerge(f"{name} is a {type(layer).__name__}, whose features cannot be permuted")
        if not tensors:
            return self._of_operation(node, value)
        (given,) = (self.features[n] for n in node.all_input_nodes)
        depthwise = isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or depthwise:
            for key in tensors:
                self._axis((f"{name}.{key}", 0), given)
            return given
        linear = isinstance(layer, nn.Linear) and value.dim() == 2
        if not (linear or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1)):
            raise CannotMerge(f"{name} is a {type(layer).__name__} of a kind that cannot be merged")
        made = self._new(value.shape[1])
        for key in tensors:
            self._axis((f"{name}.{key}", 0), made)
        self._axis((f"{name}.weight", 1), given)
        self.readers[name] = given
        return made

    def _of_operation(self, node: fx.Node, value: Tensor) -> Tensor:
        given = [n for n in node.all_input_nodes if n in self.features]
        labels, name = [self.features[n] for n in given], getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module":
            name = type(self.modules[str(node.target)]).__name__.lower()
        channels = value.shape[1] if value.dim() > 1 else None
        if name == "cat":
            labels = [torch.cat(labels)]
        elif node.target is F.pad:
            labels = [_padded(labels[0], node.args[1], value.dim())]  # type: ignore[arg-type]
        elif name == "getitem":
            labels = [_sliced(labels[0], node.args[1])]
        elif name in FLATTENING and value.dim() == 2 and len(self.shapes[given[0]]) > 2:
            labels = [labels[0].repeat_interleave(self.shapes[given[0]][2:].numel())]
        if not labels or any(len(each) != channels for each in labels):
            raise CannotMerge(f"the operation {name} ({node.name}) of the network cannot be merged")
        joined = labels[0]
        for other in labels[1:]:
            joined = self._join(joined, other)
        return joined

    def _new(self, count: int) -> Tensor:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return torch.arange(first, first + count)

    def _axis(self, axis: Axis, features: Tensor) -> None:
        self.axes[axis] = self._join(self.axes.get(axis, features), features)

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a != NOTHING and b != NOTHING:
                self.parents[self._root(b)] = self._root(a)
        return torch.where(first == NOTHING, second, first)

    def _root(self, feature: int) -> int:
        while self.parents[feature] != feature:
            feature = self.parents[feature]
        return feature

    def graph_of(self, fixed_outputs: bool) -> FeatureGraph:
        """The groups of what was run."""
        fixed = {self._root(i) for labels in self.inputs for i in labels.tolist()}
        if fixed_outputs:
            fixed |= {self._root(i) for i in self.outputs.tolist() if i != NOTHING}
        found: dict[int, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
        readers = self.readers if fixed_outputs else self.readers | {OUTPUT: self.outputs}
        for axis, labels in (*self.axes.items(), *readers.items()):
            for position, feature in enumerate(labels.tolist()):
                if feature != NOTHING and self._root(feature) not in fixed:
                    found[self._root(feature)][axis].append(position)
        alike: dict[Any, list[dict[Any, list[int]]]] = defaultdict(list)
        for root in sorted(found):
            alike[tuple((axis, len(positions)) for axis, positions in found[root].items())].append(found[root])
        logits = {self._root(i) for i in self.outputs.tolist() if i != NOTHING}
        head = tuple(
            name for (name, dim), labels in self.axes.items()
            if dim == 0 and fixed_outputs and {self._root(i) for i in labels.tolist() if i != NOTHING} == logits
        )  # fmt: skip
        return FeatureGraph([_group(members) for members in alike.values()], head)


def _group(members: Sequence[Mapping[Any, list[int]]]) -> Group:
    positions = {key: torch.tensor([member[key] for member in members]) for key in members[0]}
    places = {key: found for key, found in positions.items() if isinstance(key, tuple)}
    return Group(len(members), places, {key: found for key, found in positions.items() if isinstance(key, str)})


def _padded(labels: Tensor, pad: Sequence[int], dims: int) -> Tensor:
    """``pad`` is as of F.pad: pairs from the last dimension backwards."""
    before, after = (*pad, *(2 * dims - len(pad)) * (0,))[2 * (dims - 2) : 2 * (dims - 1)]
    nothing = labels.new_full((max(before, after),), NOTHING)
    return torch.cat([nothing[:before], labels, nothing[:after]])


def _sliced(labels: Tensor, index: Any) -> Tensor:
    chosen = index[1] if isinstance(index, tuple) and len(index) > 1 else slice(None)
    return labels[chosen] if isinstance(chosen, slice) else labels[:0]
