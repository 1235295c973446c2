"""Networks of 8 bits by torchao: export, observers, conversion (PT2E with the X86 inductor quantizer).

Weights are int8 with a scale for each output channel, activations uint8 with one scale. BatchNorms are folded into the
convolutions before them. On processors without VNNI instructions, activations have 7 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.transfer.graph import exported, quiet
from exml_fast.validation import require

__all__ = [
    "activation_bits",
    "activation_ranges",
    "converted",
    "prepared",
    "set_activation_ranges",
    "simulated",
    "torchao",
]

LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
ON_TENSORS = ("quantize_per_tensor", "dequantize_per_tensor")


def torchao() -> Any:
    """torchao.quantization.pt2e; ImportError that says how to install it."""
    try:
        with quiet():
            import torchao.quantization.pt2e
            import torchao.quantization.pt2e.quantize_pt2e
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer
    except ImportError as error:
        raise ImportError("quantisation needs torchao: pip install 'exml_fast[quantize]'") from error
    return torchao.quantization.pt2e


def activation_bits() -> int:
    """Bits of the activations of networks that are quantised on this machine.

    Without VNNI instructions, sums of products of 8 bits would overflow 16 bits.
    """
    return 8 if torch.cpu._is_vnni_supported() else 7


def prepared(model: nn.Module, spec: InputSpec, float_layers: Sequence[str] = ()) -> torch.fx.GraphModule:
    """A graph of a copy of ``model`` with observers, except around ``float_layers``. See :func:`converted`."""
    pt2e = torchao()
    x86 = pt2e.quantizer.x86_inductor_quantizer
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=activation_bits() < 8))
    for name in float_layers:
        quantizer.set_module_name_qconfig(name, None)
    with quiet():
        images = torch.zeros(2, *spec.shape)
        graph = exported(copy.deepcopy(model), images, any_number=True).module(check_guards=False)
        made: torch.fx.GraphModule = pt2e.quantize_pt2e.prepare_pt2e(graph, quantizer)
    if not any(name.startswith("activation_post_process") for name, _ in made.named_children()):
        left = f" outside of {list(float_layers)}" if float_layers else ""
        raise ValueError(f"model has no 2d convolution or linear layer that torchao can quantise{left}")
    return made


def converted(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The quantised graph of a prepared one that has seen images. Tensors that no node reads are left out."""
    with quiet():
        made: torch.fx.GraphModule = torchao().quantize_pt2e.convert_pt2e(graph)
    read = {node.target for node in made.graph.nodes if node.op == "get_attr"}
    for name in [*dict(made.named_parameters()), *dict(made.named_buffers())]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(made.get_submodule(owner), attribute)
    torchao().allow_exported_model_train_eval(made)
    made.eval()
    return made


class Rounding(nn.Module):
    """A tensor rounded as an observer says, or left as it is."""

    scale: Tensor
    zero: Tensor

    def __init__(self, observer: Any) -> None:
        super().__init__()
        scale, zero = observer.calculate_qparams()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.int())
        self.axis = getattr(observer, "ch_axis", None) if len(scale) > 1 else None
        self.low, self.high = observer.quant_min, observer.quant_max
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        """x, of the same shape."""
        if not self.on:
            return x
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale[0], self.zero[0], self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero, self.axis, self.low, self.high)

    def switch(self, on: bool) -> None:
        """Round, or do not."""
        self.on = on


def simulated(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, dict[str, list[Rounding]]]:
    """A copy of a prepared graph that has seen images, whose observers are :class:`Rounding` modules that are off.

    The second value has those of each layer's input and weight, by the layer's name.
    """
    made, layers = copy.deepcopy(graph), dict[str, list[Any]]()
    with quiet():
        rounding = dict[nn.Module, Rounding]()  # an observer can have several names
        for name, module in list(made.named_modules(remove_duplicate=False)):
            if isinstance(module, torchao().ObserverBase):
                setattr(made, name, rounding.setdefault(module, Rounding(module)))
    for node in made.graph.nodes:
        if node.target not in LAYERS:
            continue
        observed = [made.get_submodule(str(arg.target)) for arg in node.args[:2] if arg.op == "call_module"]
        if observed:
            path = list(node.meta["nn_module_stack"].values())[-1][0]
            layers[path.removeprefix("L['self'].")] = observed
    return made, layers


def activation_ranges(graph: torch.fx.GraphModule) -> list[tuple[float, int, int, int]]:
    """Scale, zero point, least and greatest code of each rounding of an activation, in the order of the graph."""
    found = []
    for node in _roundings(graph):
        scale, zero, least, greatest = node.args[1:5]
        found.append((float(scale), int(zero), int(least), int(greatest)))
    return found


def set_activation_ranges(graph: torch.fx.GraphModule, ranges: Sequence[tuple[float, int, int, int]]) -> None:
    """Write what :func:`activation_ranges` gave into a graph of the same network. ValueError for another number."""
    nodes = _roundings(graph)
    require(len(nodes) == len(ranges), "activations", f"{len(nodes)} ranges", len(ranges))
    for node, (scale, zero, least, greatest) in zip(nodes, ranges, strict=True):
        node.args = (node.args[0], float(scale), int(zero), int(least), int(greatest), *node.args[5:])
    graph.recompile()


def _roundings(graph: torch.fx.GraphModule) -> list[Any]:
    return [node for node in graph.graph.nodes if any(f".{name}.d" in f".{node.target}" for name in ON_TENSORS)]
