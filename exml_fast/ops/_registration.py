"""Defines the public ops ``torch.ops.exml.*``: from the compiled kernels, or from PyTorch functions without them.

The libraries of csrc/ define private ops only (``exml::_bn_match_forward``), because PyTorch's stable ABI has no
autograd. A public op is a Python function that calls private ops through a ``torch.autograd.Function``, or, without the
extension and on devices that it has no kernels for, the function of :mod:`exml_fast.ops._twins`. PyTorch differentiates
and traces what either of them calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from exml_fast._native import COMPILED, WHY_NO_CUDA
from exml_fast.ops import _twins

__all__ = ["SCHEMAS", "define", "implement", "kernels"]

SCHEMAS: dict[str, str] = {
    "adam_clip_": "(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor step, Tensor lr, "
    "float beta1, float beta2, float eps, Tensor? low=None, Tensor? high=None, Tensor? active=None) -> ()",
    "average_pool2d": "(Tensor x, int[2] kernel) -> Tensor",
    "bn_match": "(Tensor x, Tensor mean, Tensor var, str distance='l2', str moment='var') -> Tensor",
    "dirichlet_targets": "(Tensor similarity, Tensor classes, Tensor betas, Generator? generator=None) -> Tensor",
    "frozen_bn_act": "(Tensor x, Tensor scale, Tensor shift, Tensor? residual=None, str activation='none', "
    "float negative_slope=0.01) -> (Tensor y, Tensor mean, Tensor var)",
    "frozen_conv2d": "(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, Tensor? forward_weight=None, str forward_layout='plain', bool lanes=False, "
    "Tensor? adjoint_weight=None, str adjoint_layout='plain', str adjoint='library') -> Tensor",
    "image_prior": "(Tensor x, int kernel_size=3, float sigma=1.0, bool per_image=False) -> Tensor",
    "jensen_shannon": "(Tensor teacher_logits, Tensor student_logits, float temperature=1.0, str reduction='mean') "
    "-> Tensor",
    "jitter_flip": "(Tensor x, Tensor shift, Tensor flip, ScalarType? dtype=None, MemoryFormat? memory_format=None, "
    "str border='wrap') -> Tensor",
    "lane_conv2d": "(Tensor x, Tensor weight, Tensor? bias, int[2] padding) -> Tensor",
    "match_statistics": "(Tensor[] means, Tensor[] variances, Tensor[] target_means, Tensor[] target_variances, "
    "float[]? weights=None, str distance='l2', str moment='var') -> Tensor",
    "soft_cross_entropy": "(Tensor logits, Tensor target, float temperature=1.0, str reduction='mean') -> Tensor",
    "winograd_weights": "(Tensor weight) -> Tensor",
}

EXPLICIT = ("dirichlet_targets", "winograd_weights")
"""Ops without a derivative, which tracing keeps whole: they have fake kernels."""

DEVICES = ("cpu", "meta", "cuda")
KERNELS = DEVICES[:2] if WHY_NO_CUDA else DEVICES
"""Types of the devices that the loaded libraries have kernels for."""

_library = torch.library.Library("exml", "FRAGMENT")  # the ops exist as long as this does


class _Kernels:
    """The private ops as attributes: ``kernels._bn_match_forward(...)``.

    An error that their checks raise is a ValueError. torch 2.15 turns what C++ throws into a RuntimeError, older ones
    turn it into a ValueError.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(torch.ops.exml, name).default

        def call(*args: Any) -> Any:
            try:
                return op(*args)
            except RuntimeError as error:
                if type(error) is RuntimeError and str(error).partition(":")[0] in SCHEMAS:
                    raise ValueError(str(error)) from None
                raise

        setattr(self, name, call)  # the next look-up finds it at once
        return call


kernels = _Kernels()


def implement(name: str, kernel: Callable[..., Any], key: str) -> None:
    """Register ``kernel`` for ``exml::name`` and a dispatch key."""
    _library.impl(name, kernel, key)


def define(name: str, compiled: Callable[..., Any], devices: Collection[str] = DEVICES) -> Callable[..., Any]:
    """Define ``exml::name``, from ``compiled`` where the compiled kernels are in use, otherwise from its twin.

    Args:
        name: in SCHEMAS.
        compiled: computes the op by its kernels.
        devices: types of the devices for which the op has kernels, or that PyTorch serves in them.

    Returns:
        A function for callers in Python. It calls ``compiled`` itself, which saves the way through the dispatcher and
        back; ``torch.compile`` gets the op.
    """
    twin = getattr(_twins, name)

    def function(*args: Any) -> Any:
        device = _device(args[0])
        return compiled(*args) if device in KERNELS and device in devices else twin(*args)

    explicit = name in EXPLICIT
    tags = (torch.Tag.nondeterministic_seeded,) if name == "dirichlet_targets" else ()
    _library.define(name + SCHEMAS[name], tags=tags)
    key = "CompositeExplicitAutograd" if explicit else "CompositeImplicitAutograd"
    _library.impl(name, function if COMPILED else twin, key)
    op = getattr(torch.ops.exml, name).default
    if explicit or not COMPILED:
        return op

    def call(*args: Any) -> Any:
        return op(*args) if is_dynamo_compiling() else function(*args)

    return call


def _device(first: Any) -> str:
    """Type of the device that an op runs on, from its first argument: a tensor or several."""
    if first.__class__ is Tensor and first.is_cpu:  # the quick answer in most cases
        return "cpu"
    x = first[0] if isinstance(first, list | tuple) and first else first
    return x.device.type if isinstance(x, Tensor) else "cpu"
