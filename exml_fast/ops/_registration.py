"""Registers the ops with PyTorch from PyTorch functions, for an installation without the extension.

PyTorch differentiates and traces what these functions call. So the ops have derivatives of any order and no fake
kernels of their own, save for the random one. The private ops, which only the compiled ones call, do not exist.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from exml_fast.ops import _twins

__all__ = ["SCHEMAS", "register"]

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

_library: list[torch.library.Library] = []  # the ops exist as long as this does


def register() -> None:
    """Define the ops of the library ``exml`` from the functions of :mod:`exml_fast.ops._twins`."""
    library = torch.library.Library("exml", "FRAGMENT")
    _library.append(library)
    for name, schema in SCHEMAS.items():
        function: Callable[..., object] = getattr(_twins, name)
        random = name == "dirichlet_targets"
        library.define(name + schema, tags=(torch.Tag.nondeterministic_seeded,) if random else ())
        library.impl(name, function, "CompositeExplicitAutograd" if random else "CompositeImplicitAutograd")
