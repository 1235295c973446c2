"""Replaces every BatchNorm of a network by an op that also gives the statistics of its input, in the same pass.

``BN → [+ residual] → [activation]`` becomes one op (:func:`exml_fast.ops.frozen_bn_act`) where torch.fx can trace the
network. Elsewhere each BatchNorm module is replaced alone, in the copied module tree.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exml_fast import ops
from exml_fast.engine.freezing import HOOKS
from exml_fast.engine.statistics import LayerStatistics, Observer, Tape, is_batch_norm
from exml_fast.engine.substitution import copied
from exml_fast.engine.tracing import export, trace

__all__ = ["FrozenBatchNorm", "fuse", "fuse_exported", "replace_modules"]


class Activation(NamedTuple):
    """The arguments of :func:`exml_fast.ops.frozen_bn_act` for an activation."""

    name: str = "none"
    negative_slope: float = 0.01


class FrozenBatchNorm(nn.Module):
    """y = act(γ (x − μ) / √(σ² + ε) + β [+ residual]); each call appends the statistics of x to ``tape``.

    Args:
        layer: any BatchNorm with running statistics, affine or not.
        name: the layer's name in its network.
        tape: where the statistics go.
        activation: applied after the residual.
    """

    def __init__(self, layer: nn.Module, name: str, tape: Tape, activation: Activation | None = None) -> None:
        super().__init__()
        self.name, self.tape, self.activation = name, tape, activation or Activation()
        mean, var, eps = layer.running_mean, layer.running_var, layer.eps
        assert isinstance(mean, Tensor) and isinstance(var, Tensor) and isinstance(eps, float)
        dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
        self.target_mean, self.target_var = mean.detach().to(dtype).clone(), var.detach().to(dtype).clone()
        weight, bias = (getattr(layer, key, None) for key in ("weight", "bias"))
        scale = (self.target_var + eps).rsqrt()
        self.scale = scale if weight is None else scale * weight.detach()
        self.shift = -self.target_mean * self.scale + (0 if bias is None else bias.detach())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, ...) to (N, C, ...), in the dtype of ``x``."""
        residual = None if residual is None else residual.to(x.dtype)
        y, mean, var = ops.frozen_bn_act(x, self.scale, self.shift, residual, *self.activation)
        self.tape.append(LayerStatistics(self.name, mean, var, self.target_mean, self.target_var))
        return y


def fuse(model: nn.Module, example: Tensor, tape: Tape) -> tuple[nn.Module, str]:
    """Trace ``model``; fuse every BatchNorm that has running statistics, and let it record the statistics of its input.

    Args:
        model: a network in evaluation mode without weight gradients. The result uses its modules.
        example: images (N, C, H, W) that the network takes.
        tape: where the statistics go.

    Returns:
        The network, and a line that says what was fused.

    Raises:
        Exception: anything that the network's own code raises while torch.fx traces it.
    """
    return _fused(trace(model, example, leaf=_freezable), tape)


def fuse_exported(model: nn.Module, example: Tensor, tape: Tape) -> tuple[nn.Module, str]:
    """As :func:`fuse`, by torch.export, which follows code that asks for shapes."""
    return _fused(export(model, example), tape)


def _fused(traced: fx.GraphModule, tape: Tape) -> tuple[nn.Module, str]:
    line = _line(_rewrite(traced, tape))
    # A GraphModule prints a traceback where a call fails, also where the caller handles the error. Its class is its
    # own, so that no other module changes; mypy sees a class that others share.
    type(traced).__call__ = nn.Module.__call__  # type: ignore[method-assign]
    return traced, line


def replace_modules(model: nn.Module, _example: Tensor, tape: Tape) -> tuple[nn.Module, str]:
    """As :func:`fuse`, without tracing: replace each BatchNorm alone, under all of its names, with its hooks."""
    tapes = [module.tape for module in model.modules() if isinstance(module, Observer)]
    model = copied(model, (*model.parameters(), *model.buffers(), *tapes))
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _freezable(module):
            names.setdefault(module, []).append(name)
    for layer, aliases in names.items():
        inner = _built_in(layer)
        frozen = FrozenBatchNorm(layer, aliases[0], tape, inner)
        replacement = frozen if inner is not None else nn.Sequential(frozen, _act(layer))
        for kind in HOOKS:
            setattr(replacement, kind, getattr(layer, kind))
        for name in aliases:
            model.set_submodule(name, replacement)
    return model, _line(Counter({"alone": len(names)}))


def _act(layer: nn.Module) -> nn.Module:
    act = layer.act
    assert isinstance(act, nn.Module)
    return act


def _freezable(module: nn.Module) -> bool:
    return is_batch_norm(module) and isinstance(module.running_mean, Tensor)


def _line(counts: Counter[str]) -> str:
    parts = ", ".join(
        f"{number} {kind}" for kind, number in sorted(counts.items(), key=lambda item: -item[1]) if number
    )
    return f"{counts.total()} BatchNorm calls" + (f": {parts}" if parts else "")


def _rewrite(traced: fx.GraphModule, tape: Tape) -> Counter[str]:
    graph, modules = traced.graph, dict(traced.named_modules())
    counts: Counter[str] = Counter()
    for node in list(graph.nodes):
        if _is_identity(node, modules):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    order = {node: i for i, node in enumerate(graph.nodes)}
    norms = [n for n in graph.nodes if n.op == "call_module" and _freezable(modules[n.target])]
    # From the last to the first: of two BatchNorms that are added, the later takes the earlier's result as residual.
    for number, norm in enumerate(reversed(norms)):
        layer = modules[norm.target]
        inner = _built_in(layer)
        last, residual, activation = norm, None, inner
        if inner == Activation():
            last, residual = _added(norm, order)
            after = _activation_after(last, modules)
            if after is not None:
                activation, last = after, next(iter(last.users))
        frozen = FrozenBatchNorm(layer, str(norm.target), tape, activation)
        name = f"frozen_{len(norms) - 1 - number}"
        modules[name] = frozen if inner is not None else nn.Sequential(frozen, _act(layer))
        traced.add_submodule(name, modules[name])
        with graph.inserting_before(last):
            fused = graph.call_module(name, (_input(norm),) if residual is None else (_input(norm), residual))
        last.replace_all_uses_with(fused)
        fused.meta = dict(last.meta)
        order[fused] = order[last]
        for old in sorted({norm, last, *(u for u in norm.users)} & set(order), key=order.__getitem__, reverse=True):
            if not old.users and old is not fused:
                graph.erase_node(old)
        counts[_kind(activation or Activation(), residual is not None)] += 1
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return counts


def _kind(activation: Activation, residual: bool) -> str:
    parts = [*(["residual"] if residual else []), *([activation.name] if activation.name != "none" else [])]
    return "with " + " and ".join(parts) if parts else "alone"


def _input(norm: fx.Node) -> Any:
    return norm.args[0] if norm.args else next(iter(norm.kwargs.values()))


def _added(norm: fx.Node, order: dict[fx.Node, int]) -> tuple[fx.Node, Any]:
    """The addition that is the only user of ``norm``, and its other operand, if both have one shape."""
    user = _only_user(norm)
    if user is None or not _is_addition(user):
        return norm, None
    first, second = user.args[:2]
    other = second if first is norm else first
    if not isinstance(other, fx.Node) or other is norm:
        return norm, None
    if _shape(other) is None or _shape(other) != _shape(norm):
        return norm, None
    return user, other


def _is_addition(node: fx.Node) -> bool:
    function = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    method = node.op == "call_method" and node.target in ("add", "add_")
    return (function or method) and len(node.args) == 2 and not node.kwargs


def _shape(node: fx.Node) -> Any:
    meta = node.meta.get("tensor_meta")
    return None if meta is None else getattr(meta, "shape", None)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation_after(node: fx.Node, modules: dict[str, nn.Module]) -> Activation | None:
    user = _only_user(node)
    if user is None:
        return None
    if user.op == "call_module":
        return _activation_of(modules[str(user.target)])
    if user.args != (node,):
        return None
    settings = {k: v for k, v in user.kwargs.items() if k != "inplace"}
    if user.op == "call_function":
        return _activation_of_function(user.target, settings)
    return Activation(METHODS[str(user.target)]) if user.op == "call_method" and user.target in METHODS else None


METHODS = {"relu": "relu", "relu_": "relu", "tanh": "tanh", "tanh_": "tanh"}
FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish", F.tanh: "tanh",
    torch.tanh: "tanh", F.leaky_relu: "leaky_relu", F.gelu: "gelu",
}  # fmt: skip
MODULES: dict[str, str] = {
    "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu", "Swish": "silu", "Hardswish": "hardswish",
    "HardSwish": "hardswish", "LeakyReLU": "leaky_relu", "GELU": "gelu", "GELUTanh": "gelu_tanh", "Tanh": "tanh",
    "Identity": "none",
}  # fmt: skip
DROPOUTS = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "DropPath", "StochasticDepth")

DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)


def _known(module: nn.Module) -> str:
    """The name of a class of torch, torchvision or timm; "" for other classes, which may reuse such a name."""
    kind = type(module)
    return kind.__name__ if kind.__module__.split(".")[0] in ("torch", "torchvision", "timm") else ""


def _is_identity(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node returns its input in evaluation mode."""
    if node.op == "call_module":
        return _known(modules[str(node.target)]) in DROPOUTS
    return node.op == "call_function" and node.target in DROPOUT_FUNCTIONS and node.kwargs.get("training") is False


def _activation_of(module: nn.Module) -> Activation | None:
    name = MODULES.get(_known(module))
    if name is None:
        return None
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    return Activation(name, getattr(module, "negative_slope", 0.01))


def _activation_of_function(function: Callable[..., Any] | str, settings: dict[str, Any]) -> Activation | None:
    name = FUNCTIONS.get(function)
    if name == "gelu" and settings.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    slope = settings.pop("negative_slope", 0.01) if name == "leaky_relu" else 0.01
    return None if name is None or settings else Activation(name, slope)


def _built_in(layer: nn.Module) -> Activation | None:
    """The activation inside timm's BatchNormAct2d ("none" for a plain BatchNorm); None for an unknown one."""
    act = getattr(layer, "act", None)
    return _activation_of(act) if isinstance(act, nn.Module) else Activation()
