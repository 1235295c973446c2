"""The graph of a network's calls, in which convolutions and linear layers are modules with constant weights.

torch.fx runs the network's code on placeholders. torch.export runs it on shapes, so that it can follow code that asks
for them; it takes seconds.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from exml_fast.engine.freezing import is_untouched
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.statistics import Observer

__all__ = ["export", "trace"]

# While torch.fx traces, it replaces nn.Module.__call__ for all threads.
_tracing = threading.Lock()


def trace(model: nn.Module, example: Tensor, leaf: Callable[[nn.Module], bool]) -> fx.GraphModule:
    """The graph of ``model``, with shapes.

    Weights that a layer computes from its parameters in each call are computed once. Functional convolutions and linear
    layers with constant weights become modules.

    Args:
        model: a network in evaluation mode without weight gradients. The result uses its modules.
        example: images (N, C, H, W) that the network takes.
        leaf: modules whose calls are single nodes; they stay in the graph although nothing may use their output.

    Raises:
        Exception: anything that the network's own code raises while torch.fx traces it.
    """
    with _tracing:
        graph = _Tracer(leaf).trace(model)
    # A pickle of the graph is read by torch.fx's own tracer, and cannot hold annotations that are strings.
    graph._tracer_cls = None
    for node in graph.nodes:
        node.type = None
    traced = fx.GraphModule(model, graph, type(model).__name__)
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
        _fold_constants(traced)
        _make_modules(traced)
        _fold_padding(traced)
    traced.recompile()
    return traced


def export(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """As :func:`trace`, by torch.export, for any number of images of the size of ``example``.

    Calls inside a BatchNorm become modules under the layer's name. Other layers are calls of torch's functions.

    Raises:
        Exception: anything that torch.export raises for networks that it cannot follow.
    """
    with _tracing, warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )  # fmt: skip
        traced = program.module(check_guards=False)
    with torch.no_grad():
        assert isinstance(traced, fx.GraphModule)
        # Plain calls: the code that torch.export generates takes trees of inputs and outputs apart.
        traced.graph.set_codegen(fx.CodeGen())
        output = next(node for node in reversed(traced.graph.nodes) if node.op == "output")
        if isinstance(output.args[0], list | tuple):
            (output.args,) = (tuple(output.args[0]),)
        traced.graph._tracer_cls = None
        traced = fx.GraphModule(traced, traced.graph, type(model).__name__)
        _in_functions(traced)
        ShapeProp(traced).propagate(example)
        _fold_constants(traced)
        _make_modules(traced)
        _fold_padding(traced)
    traced.recompile()
    return traced


aten = torch.ops.aten
# Operators with the names of their arguments after the input, as torch.nn.functional calls them.
OPERATORS: dict[Any, tuple[Callable[..., Any], tuple[str, ...]]] = {
    aten.conv2d.default: (F.conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    aten.linear.default: (F.linear, ("weight", "bias")),
    aten.relu.default: (F.relu, ()), aten.relu_.default: (F.relu, ()),
    aten.silu.default: (F.silu, ()), aten.silu_.default: (F.silu, ()),
    aten.hardswish.default: (F.hardswish, ()), aten.hardswish_.default: (F.hardswish, ()),
    aten.tanh.default: (torch.tanh, ()),
    aten.leaky_relu.default: (F.leaky_relu, ("negative_slope",)),
    aten.leaky_relu_.default: (F.leaky_relu, ("negative_slope",)),
    aten.gelu.default: (F.gelu, ()),
    aten.dropout.default: (F.dropout, ("p", "training")),
}  # fmt: skip

# Calls that may add zeros, with the names of their arguments.
PADDINGS: dict[Any, tuple[str, ...]] = {
    F.pad: ("input", "pad", "mode", "value"),
    torch.constant_pad_nd: ("input", "pad", "value"),
    aten.pad.default: ("input", "pad", "mode", "value"),
    aten.constant_pad_nd.default: ("input", "pad", "value"),
}


def _in_functions(traced: fx.GraphModule) -> None:
    """Turn operators into the functions and modules of which :func:`torch.fx.symbolic_trace` makes a graph."""
    for number, node in enumerate(list(traced.graph.nodes)):
        if node.target in (aten.add.Tensor, aten.add_.Tensor) and not node.kwargs:
            node.target = operator.add if node.target is aten.add.Tensor else operator.iadd
        elif node.target is aten.batch_norm.default:
            _batch_norm(traced, node, f"batch_norm_{number}")
        elif node.target in (aten.hardtanh.default, aten.hardtanh_.default) and node.args[1:] == (0.0, 6.0):
            node.target, node.args = F.relu6, node.args[:1]
        elif node.target in OPERATORS:
            in_place = str(node.target).partition(".")[2].partition(".")[0].endswith("_")
            function, names = OPERATORS[node.target]
            node.kwargs = (
                node.kwargs | dict(zip(names, node.args[1:], strict=False)) | ({"inplace": True} if in_place else {})
            )
            node.target, node.args = function, node.args[:1]


def _batch_norm(traced: fx.GraphModule, node: fx.Node, otherwise: str) -> None:
    """Replace a call of the operator, in evaluation mode with constants, by a module of the layer's name."""
    x, *constants, training, _momentum, eps, _cudnn = node.args
    weight, bias, mean, var = (_constant(each, traced) for each in constants)
    if training or mean is None or var is None:
        return
    assert isinstance(eps, float)
    layer = nn.BatchNorm2d(len(mean), eps, affine=weight is not None)
    layer.running_mean, layer.running_var = mean, var
    if weight is not None:
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros_like(mean) if bias is None else bias.detach(), requires_grad=False)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = stack[-1][0] if stack and stack[-1][0] else otherwise
    traced.set_submodule(name, layer.eval())
    _call_instead(node, name, x)
    _erase_unused(traced.graph, [each for each in constants if isinstance(each, fx.Node)])


class _Tracer(fx.Tracer):
    def __init__(self, leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._leaf, self._thread = leaf, threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:  # another thread calls another network
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        own = self._leaf(module) or FrozenConv2d.takes(module) or isinstance(module, Observer)
        return own or super().is_leaf_module(module, name)


def _fold_constants(traced: fx.GraphModule) -> None:
    """Replace calls that depend on parameters and buffers alone by their values."""
    graph = traced.graph
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(traced, str(node.target))
        elif node.op in ("call_function", "call_method") and node.all_input_nodes:
            if not all(given in values for given in node.all_input_nodes) or str(node.target).endswith("_"):
                continue
            args, kwargs = (fx.map_arg(each, values.__getitem__) for each in (node.args, node.kwargs))
            function = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
            values[node] = function(*args[node.op == "call_method" :], **kwargs)
    for number, (node, value) in enumerate(list(values.items())):
        wanted = not all(user in values for user in node.users)
        if node.op == "get_attr" or not wanted or not isinstance(value, Tensor):
            continue
        name = f"constant_{number}"
        traced.register_buffer(name, value.detach().clone())
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    _erase_unused(graph, list(values))


def _make_modules(traced: fx.GraphModule) -> None:
    """Replace ``F.conv2d`` and ``F.linear`` with constant weights (from derived classes) by modules."""
    graph = traced.graph
    for number, node in enumerate(list(graph.nodes)):
        found = _module_of(node, traced)
        if found is None:
            continue
        name = f"{type(found).__name__.lower()}_{number}"
        traced.add_submodule(name, found)
        constants = [given for given in node.all_input_nodes if given.op == "get_attr"]
        _call_instead(node, name, node.args[0] if node.args else node.kwargs["input"])
        _erase_unused(graph, constants)


def _call_instead(node: fx.Node, name: str, images: Any) -> None:
    """Replace ``node`` by a call of the module ``name``."""
    with node.graph.inserting_before(node):
        call = node.graph.call_module(name, (images,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)


# What a convolution needs beside its parameters, with the values that torch.nn.functional.conv2d assumes.
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _module_of(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    if node.op != "call_function" or node.target not in (F.conv2d, torch.conv2d, F.linear):
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    weight, bias = _constant(given.get("weight"), traced), _constant(given.get("bias"), traced)
    if weight is None or (bias is None and given.get("bias") is not None):
        return None
    if node.target is F.linear:
        if weight.dim() != 2:
            return None
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
        return _with_parameters(linear, weight, bias)
    geometry = {key: given.get(key, usual) for key, usual in GEOMETRY.items()}
    if weight.dim() != 4 or isinstance(geometry["padding"], str):
        return None
    if any(isinstance(value, fx.Node) for value in geometry.values()):
        return None
    return _convolution(weight, bias, geometry)


def _convolution(weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> nn.Module:
    inputs = weight.shape[1] * geometry["groups"]
    conv = nn.utils.skip_init(
        nn.Conv2d, inputs, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **geometry
    )
    return _with_parameters(conv, weight, bias)


def _with_parameters(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def _fold_padding(traced: fx.GraphModule) -> None:
    """Let a convolution pad its images itself where the same zeros are added on opposite sides before it."""
    graph, modules = traced.graph, dict(traced.named_modules())
    for number, node in enumerate(list(graph.nodes)):
        conv = modules[str(node.target)] if node.op == "call_module" else None
        given = node.all_input_nodes[0] if node.all_input_nodes else None
        if conv is None or given is None or len(given.users) > 1 or not FrozenConv2d.takes(conv):
            continue
        assert isinstance(conv, nn.Conv2d)
        added = _added_zeros(given, modules)
        if added is None:
            continue
        name = f"padded_{number}"
        modules[name] = _padded(conv, added)
        traced.add_submodule(name, modules[name])
        _call_instead(node, name, given.all_input_nodes[0])
        _erase_unused(graph, [given])


def _added_zeros(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int] | None:
    """The rows and columns of zeros that a call adds on each side of images; None for another call."""
    sides: Any = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        zeros = isinstance(module, nn.ConstantPad2d) and module.value == 0
        sides = module.padding if zeros and is_untouched(module) else None
    elif node.op == "call_function" and node.target in PADDINGS:
        call = dict(zip(PADDINGS[node.target], node.args, strict=False)) | node.kwargs
        zeros = call.get("mode", "constant") == "constant" and not call.get("value")
        sides = call.get("pad") if zeros else None
    if sides is None or len(sides) != 4 or not all(type(side) is int for side in sides):
        return None
    left, right, top, bottom = sides
    return (top, left) if left == right >= 0 and top == bottom >= 0 else None


def _padded(conv: nn.Conv2d, added: tuple[int, int]) -> nn.Module:
    """``conv`` with more zeros around its images."""
    assert not isinstance(conv.padding, str)
    padding = tuple(p + a for p, a in zip(conv.padding, added, strict=True))
    geometry = {key: getattr(conv, key) for key in GEOMETRY} | {"padding": padding}
    return _convolution(conv.weight, conv.bias, geometry)


def _constant(node: Any, traced: fx.GraphModule) -> Tensor | None:
    """The parameter or buffer that ``node`` reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = _attribute(traced, str(node.target))
    return value if isinstance(value, Tensor) else None


def _attribute(traced: fx.GraphModule, name: str) -> Any:
    value: Any = traced
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _erase_unused(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)
