"""Groups of filters that can only be removed together, and what each filter is worth.

torch-pruning finds the groups: a filter takes its BatchNorm channel with it, the input channel of every layer behind
it, and in a residual network the filters that are added to it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exml_fast.models import final_linear, is_depthwise
from exml_fast.training.loop import forked

__all__ = ["FilterGroup", "Taylor", "filter_groups", "layer_name", "layers_of_training", "pruning"]

Convolution = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm


class Member(NamedTuple):
    """A layer of a group."""

    module: nn.Module
    channels: list[int]
    """Its channels that belong to the group."""
    of: list[int]
    """The group's channel of each; a linear layer behind a flattened feature map has several for each."""


def pruning() -> Any:
    """The package torch_pruning; ImportError that says how to install it."""
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError("pruning needs torch-pruning: pip install 'exml_fast[prune]'") from error
    return torch_pruning


@dataclass
class FilterGroup:
    """Layers whose channels are removed together. Channel c of the group is a channel of each of its layers."""

    name: str
    """Of the layer from which the group was found."""
    channels: int
    producers: list[Member]
    """Layers that lose output channels."""
    consumers: list[Member]
    """Layers that lose input channels."""
    gates: list[Member]
    """BatchNorms of the group, by whose weights its filters are ranked; the producers where there is none."""
    remove: Any = field(repr=False)
    """``remove(channels)`` removes channels of the group from all layers."""


def layer_name(model: nn.Module, module: nn.Module) -> str:
    """The name of a layer of ``model``."""
    return next(name for name, own in model.named_modules() if own is module)


def filter_groups(
    model: nn.Module, example: Tensor, known: Sequence[str] | None = None
) -> tuple[list[FilterGroup], dict[str, str]]:
    """All groups of filters that can be removed, and the layers that cannot with the reason.

    The final linear layer keeps its logits. Each group is tried out on a copy.

    Args:
        model: in evaluation mode, on its device.
        example: network input (1, C, H, W).
        known: names of the groups that were found before, which are not tried out again; others are left out.
    """
    package, fixed = pruning(), dict[str, str]()
    try:
        graph = package.DependencyGraph().build_dependency(model, example)
        groups = list(graph.get_all_groups(ignored_layers=[final_linear(model, example)]))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model, a {type(model).__name__}, has layers that torch-pruning cannot follow: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
    found = []
    for members in groups:
        root, out = members[0].dep.target.module, graph.is_out_channel_pruning_fn
        name = layer_name(model, root)
        if known is not None and name not in known:
            continue
        producers, consumers, norms = list[Member](), list[Member](), list[Member]()
        for part in members:
            member = Member(part.dep.target.module, list(part.idxs), list(part.root_idxs))
            if isinstance(member.module, BatchNorm) and member.module.affine:
                norms.append(member)
            elif isinstance(member.module, Convolution | nn.Linear):
                (producers if out(part.dep.handler) else consumers).append(member)

        def remove(channels: Sequence[int], root: nn.Module = root, handler: Any = members[0].dep.handler) -> None:
            graph.get_pruning_group(root, handler, sorted(channels)).prune()

        group = FilterGroup(name, graph.get_out_channels(root), producers, consumers, norms or producers, remove)
        if known is None and (reason := _cannot(model, example, group)) is not None:
            fixed[name] = reason
        else:
            found.append(group)
    return found, fixed


def layers_of_training(model: nn.Module, example: Tensor) -> list[str]:
    """Layers with weights that run in training mode, but not in evaluation mode."""
    called, network = {True: set[str](), False: set[str]()}, copy.deepcopy(model)
    for name, module in network.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: called[network.training].add(name))
    with torch.no_grad(), forked(example.device):
        for mode in called:
            network.train(mode)(example.expand(2, *example.shape[1:]))
    return [name for name, _ in model.named_modules() if name in called[True] - called[False]]


def _cannot(model: nn.Module, example: Tensor, group: FilterGroup) -> str | None:
    """Why the filters of a group cannot be removed; None if they can.

    A copy without some of them must compute what a copy computes whose later layers do not read them.
    """
    lost = sorted({0, group.channels // 2})
    if group.channels <= len(lost):
        return f"it has {group.channels} filters"
    names = {id(module): name for name, module in model.named_modules()}
    for member in (*group.producers, *group.consumers):
        if getattr(member.module, "groups", 1) > 1 and not is_depthwise(member.module):
            return f"{names[id(member.module)]!r} is a grouped convolution"
    # Both share the tensors that stay as they are: pruning replaces tensors.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    without, zeroed = (copy.deepcopy(model, dict(shared)) for _ in range(2))
    for consumer in group.consumers:
        unread = [channel for channel, of in zip(consumer.channels, consumer.of, strict=True) if of in lost]
        reader = zeroed.get_submodule(names[id(consumer.module)])
        weight = reader.get_parameter("weight").detach().clone()
        weight[:, unread] = 0
        reader.register_parameter("weight", nn.Parameter(weight))
    layer = without.get_submodule(group.name)
    graph = pruning().DependencyGraph().build_dependency(without, example)
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    try:
        graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, lost).prune()
        with torch.no_grad():
            found, wanted = without(images), zeroed(images)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"the network does not run without some of its filters: {str(error).splitlines()[0][:120]}"
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std())):
        return "the filters of other layers that belong to its filters are not known"
    return None


class Taylor:
    """Importance of each channel of BatchNorms, convolutions and linear layers: the mean over batches of (g z)².

    z = 1 is a gate behind the layer and g the gradient of the loss with respect to it, which is Σ weight · gradient
    over the parameters of a channel (Yin 2020, Eq. 12; Molchanov 2019, Eq. 8). It estimates the squared change of the
    loss without the channel.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._sums: dict[nn.Module, Tensor] = {}
        self._pending: dict[nn.Module, Tensor] = {}

    @contextmanager
    def watching(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Each backward pass in the block counts as a batch once :meth:`count` is called."""
        handles = []
        for layer in layers:
            for parameter in layer.parameters(recurse=False):
                if parameter.requires_grad:
                    hook = self._hook(layer)
                    handles.append(parameter.register_post_accumulate_grad_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: nn.Module) -> Any:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            product = (parameter.detach() * parameter.grad).reshape(len(parameter), -1).sum(1)
            seen = self._pending.get(layer)
            self._pending[layer] = product if seen is None else seen + product

        return add

    def count(self) -> None:
        """The backward pass of a batch is over; does nothing where there was none."""
        if not self._pending:
            return
        for layer, product in self._pending.items():
            squared = product.double().square()
            self._sums[layer] = self._sums[layer] + squared if layer in self._sums else squared
        self._pending.clear()
        self.batches += 1

    def of(self, group: FilterGroup) -> Tensor:
        """Importance (channels,) of a group: the sum over its gates. RuntimeError if it is not finite."""
        total = torch.zeros(group.channels, dtype=torch.float64)
        for gate in group.gates:
            total.index_add_(0, torch.tensor(gate.of), self._sums[gate.module].cpu()[gate.channels] / self.batches)
        if not bool(total.isfinite().all()):
            raise RuntimeError(f"the importance of the filters of {group.name!r} is not finite; lower lr")
        return total

    def forget(self) -> None:
        """Begin again."""
        self.batches = 0
        self._sums.clear()
        self._pending.clear()
