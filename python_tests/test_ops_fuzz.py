"""Random shapes, strides, dtypes and memory formats: an op gives what it gives for a contiguous copy, or refuses both.

`make asan` runs this file under AddressSanitizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exml_fast import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = ["contiguous", "channels_last", "strided", "offset", "transposed", "expanded", "negated", "every other"]

shapes = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.integers(0, 9))
draws = st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 2**31))

Op = Callable[[Tensor, torch.Generator], Tensor]


def channels(x: Tensor, chance: torch.Generator) -> Tensor:
    return torch.rand(x.shape[1], generator=chance) + 0.5


def weight(x: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randn(3, x.shape[1], 3, 3, generator=chance).to(x.dtype)


def rows(x: Tensor) -> Tensor:
    return x.flatten(1) if x.dim() > 1 else x


OPS: dict[str, Op] = {
    "bn_match": lambda x, g: ops.bn_match(x, channels(x, g), channels(x, g)),
    "bn_match, a row": lambda x, g: ops.bn_match(x[:, :, :1], channels(x, g), channels(x, g), "gaussian_kl"),
    "frozen_bn_act": lambda x, g: ops.frozen_bn_act(x, channels(x, g), channels(x, g), None, "silu")[0],
    "frozen_bn_act, residual": lambda x, g: ops.frozen_bn_act(x, channels(x, g), channels(x, g), x.flip(0), "relu")[0],
    "image_prior": lambda x, g: torch.stack(list(ops.image_prior(x, per_image=True))),
    "soft_cross_entropy": lambda x, g: ops.soft_cross_entropy(rows(x), rows(x.detach()).softmax(1), 2.0),
    "jensen_shannon": lambda x, g: ops.jensen_shannon(rows(x), rows(x.detach()).flip(0)),
    "average_pool2d": lambda x, g: ops.average_pool2d(x, (2, 3)),
    "lane_conv2d": lambda x, g: ops.lane_conv2d(x, weight(x, g), None, (1, 2)),
    "frozen_conv2d": lambda x, g: ops.frozen_conv2d(x, weight(x, g), None, (2, 1), (1, 1)),
    "jitter_flip": lambda x, g: ops.jitter_flip(x, torch.tensor([3, -2]), torch.tensor(True)),
}


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another layout; "expanded" repeats the first image."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([values, values], -1)[..., 0]
    if layout == "offset":
        return torch.cat([values.new_zeros(3), values.flatten()])[3:].view(values.shape)
    if layout == "transposed":
        return values.transpose(0, 3).contiguous().transpose(0, 3)
    if layout == "expanded":
        return values[:1].expand_as(values)
    if layout == "negated":
        return torch._neg_view(-values)
    if layout == "every other":
        return values.repeat_interleave(2, 1)[:, ::2]
    return values


def answer(op: Op, x: Tensor, seed: int) -> tuple[Tensor, Tensor] | str:
    """Result and gradient, or the kind of error."""
    x = x.detach().requires_grad_()
    try:
        y = op(x, torch.Generator().manual_seed(seed))
        (grad,) = torch.autograd.grad((y.double() * torch.linspace(0.5, 1, max(y.shape[-1:].numel(), 1))).sum(), x)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__
    return y.detach(), grad


@pytest.mark.parametrize("name", OPS)
@given(draws)
def test_layouts_do_not_matter(name: str, draw: Any) -> None:
    shape, dtype, layout, seed = draw
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x = laid_out(values, layout)
    found, wanted = answer(OPS[name], x, seed), answer(OPS[name], x.clone(memory_format=torch.contiguous_format), seed)
    if isinstance(found, str) or isinstance(wanted, str):
        assert found == wanted
        return
    tolerance = 0.06 if dtype == torch.bfloat16 else 1e-4
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        torch.testing.assert_close(one.double(), two.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@given(draws, draws, st.floats(-1, 1), st.integers(1, 2**62))
def test_adam_takes_any_layout_of_the_gradient(one: Any, two: Any, lr: float, step: int) -> None:
    shape, _, layout, seed = one
    made = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))
    grad = laid_out(made[0], layout)
    grad = grad.to(two[1]) if layout != "negated" else grad
    form = torch.channels_last if seed % 2 else torch.contiguous_format
    results = []
    for given_grad in (grad, grad.clone(memory_format=torch.contiguous_format)):
        x, m, v = (t.clone().contiguous(memory_format=form) for t in (made[1], made[2], made[3].abs()))
        ops.adam_clip_(x, given_grad, m, v, step, lr)
        results.append((x, m, v))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
