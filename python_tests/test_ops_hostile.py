"""Arguments that no caller of ours gives: views without memory, shared memory, mixed devices, wrong saved tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from exml_fast import ops
from exml_fast.ops import reference

X, C = torch.randn(2, 3, 6, 6), torch.rand(3) + 0.5
LOGITS = torch.randn(4, 5)
WEIGHT = torch.randn(4, 3, 3, 3)

# Each op with good tensors, as a function of them.
OPS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "bn_match": (ops.bn_match, (X, C, C + 1)),
    "frozen_bn_act": (lambda x, a, b, r: ops.frozen_bn_act(x, a, b, r, "relu")[0], (X, C, C + 1, X + 1)),
    "match_statistics": (lambda a, b, c, d: ops.match_statistics([a], [b], [c], [d]), (C, C + 1, C + 2, C + 3)),
    "image_prior": (ops.image_prior, (X,)),
    "soft_cross_entropy": (lambda x, t: ops.soft_cross_entropy(x, t, 2.0), (LOGITS, LOGITS.softmax(1))),
    "jensen_shannon": (ops.jensen_shannon, (LOGITS, LOGITS.flip(0))),
    "average_pool2d": (lambda x: ops.average_pool2d(x, (2, 2)), (X,)),
    "lane_conv2d": (lambda x, w, b: ops.lane_conv2d(x, w, b, (1, 1)), (X, WEIGHT, torch.randn(4))),
    "frozen_conv2d": (lambda x, w, b: ops.frozen_conv2d(x, w, b, (2, 2), (1, 1)), (X, WEIGHT, torch.randn(4))),
    "jitter_flip": (ops.jitter_flip, (X, torch.tensor([1, 2]), torch.tensor(True))),
    "dirichlet_targets": (ops.dirichlet_targets, (torch.rand(3, 3) + 0.1, torch.tensor([0, 2]), torch.rand(2) + 1)),
}


def negated(t: Tensor) -> Tensor:
    return torch._neg_view(-t)


@pytest.mark.parametrize("name", OPS)
def test_a_meta_tensor_among_others_is_refused(name: str) -> None:
    op, tensors = OPS[name]
    for at in range(len(tensors)) if len(tensors) > 1 else ():
        mixed = [t.to("meta") if i == at else t for i, t in enumerate(tensors)]
        with pytest.raises((ValueError, RuntimeError), match="device"):
            op(*mixed)


@pytest.mark.parametrize("name", [name for name in OPS if name != "dirichlet_targets"])
def test_negated_views_give_the_same_as_tensors(name: str) -> None:
    op, tensors = OPS[name]
    plain = [t.clone() for t in tensors]
    expected = op(*plain)
    for at in [i for i, t in enumerate(tensors) if t.is_floating_point()]:
        views = [negated(t) if i == at else t for i, t in enumerate(plain)]
        assert views[at].is_neg()
        torch.testing.assert_close(op(*views), expected)


def test_a_tensor_that_is_zero_without_memory() -> None:
    zero = torch._efficientzerotensor(2, 3, 6, 6)
    assert zero._is_zerotensor()
    torch.testing.assert_close(ops.image_prior(zero), ops.image_prior(torch.zeros(2, 3, 6, 6)))
    torch.testing.assert_close(ops.bn_match(zero, C, C), ops.bn_match(torch.zeros(2, 3, 6, 6), C, C))


# adam_clip_


def state() -> dict[str, Tensor]:
    return {"x": X.clone(), "exp_avg": torch.zeros_like(X), "exp_avg_sq": torch.ones_like(X)}


@pytest.mark.parametrize("name", ["x", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("view", ["negated", "zero", "conjugated"])
def test_adam_does_not_write_into_views_without_memory(name: str, view: str) -> None:
    made = {
        "negated": torch._neg_view(X.clone()), "zero": torch._efficientzerotensor(X.shape),
        "conjugated": torch.complex(X, X).conj(),
    }  # fmt: skip
    for _ in range(100):  # the stack was corrupted by repetition
        with pytest.raises(ValueError, match="adam_clip_"):
            ops.adam_clip_(grad=X, step=1, lr=0.1, **(state() | {name: made[view]}))


def test_adam_reads_views_without_memory() -> None:
    wanted, found = state(), state()
    ops.adam_clip_(grad=X, step=1, lr=0.1, low=C - 1, high=C, **wanted)
    ops.adam_clip_(grad=negated(X), step=1, lr=negated(torch.tensor(0.1)), low=negated(C - 1), high=negated(C), **found)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    ops.adam_clip_(grad=torch._efficientzerotensor(X.shape), step=1, lr=0.1, **found)


def test_adam_refuses_shared_memory() -> None:
    memory = torch.zeros(3 * X.numel())
    part = memory[: X.numel()].view_as(X)
    shifted = memory[5 : 5 + X.numel()].view_as(X)
    for first, second in itertools.combinations(["x", "exp_avg", "exp_avg_sq", "grad"], 2):
        for one, two in ((part, part), (part, shifted)):
            given = state() | {"grad": X} | {first: one, second: two}
            with pytest.raises(ValueError, match="must not share memory"):
                ops.adam_clip_(step=1, lr=0.1, **given)
    given = state()
    with pytest.raises(ValueError, match="exp_avg_sq is written and must not share memory with low"):
        ops.adam_clip_(grad=X, step=1, lr=0.1, low=given["exp_avg_sq"].view(-1)[:3], **given)
    apart = memory[X.numel() : 2 * X.numel()].view_as(X)
    ops.adam_clip_(grad=X, step=1, lr=0.1, **(state() | {"x": part, "exp_avg": apart}))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": -0.1},
        {"lr": 0.0},
        {"lr": 1e30},
        {"step": 2**62},
        {"step": 2**24 + 1},
        {"eps": 0.0},
        {"betas": (0.0, 0.0)},
        {"low": torch.tensor([1.0, 2.0, 3.0]), "high": torch.tensor([0.0, -1.0, 5.0])},
        {"low": torch.full((3,), -math.inf), "high": torch.full((3,), math.inf)},
    ],
)
def test_adam_follows_its_twin_at_the_edges(change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"step": 3, "lr": 0.1} | change
    found = state()
    found["exp_avg_sq"][0, 0] = 0
    wanted = {name: value.double() for name, value in found.items()}
    grad = X.clone()
    grad[0, 0] = 0
    ops.adam_clip_(grad=grad, **found, **options)
    exact = {name: v.double() if isinstance(v, Tensor) else v for name, v in options.items()}
    reference.adam_clip_(grad=grad.double(), **wanted, **exact)
    for name in found:
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_bound_that_is_nan_is_no_bound() -> None:
    found, wanted = state(), state()
    ops.adam_clip_(grad=X, step=1, lr=0.1, low=torch.tensor([math.nan, 0.0, 0.0]), **found)
    ops.adam_clip_(grad=X, step=1, lr=0.1, low=torch.tensor([-math.inf, 0.0, 0.0]), **wanted)
    assert torch.equal(found["x"], wanted["x"])


@pytest.mark.parametrize("change", [{"eps": math.nan}, {"eps": math.inf}, {"eps": -1.0}, {"step": 0}, {"step": 2**63}])
def test_adam_refuses_what_has_no_meaning(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="adam_clip_"):
        ops.adam_clip_(grad=X, **state(), **({"step": 1, "lr": 0.1} | change))


# Backward ops, which only autograd calls

N = torch.ops.exml
ONE, ROW = torch.ones(()), torch.zeros(4)
BACKWARD: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "bn_match": (lambda g, x, c: N._bn_match_backward(g, x, c), [ONE, X, torch.zeros(3, 3)]),
    "soft_cross_entropy": (
        lambda g, x, t, s: N._soft_cross_entropy_backward(g, x, t, s, 1.0, "mean"), [ONE, LOGITS, LOGITS, ROW],
    ),
    "soft_cross_entropy, rows": (
        lambda g, x, t, s: N._soft_cross_entropy_backward(g, x, t, s, 1.0, "none"), [ROW, LOGITS, LOGITS, ROW],
    ),
    "jensen_shannon": (
        lambda g, x, t, s, u: N._jensen_shannon_backward(g, x, t, s, u, 1.0, "mean"), [ONE, LOGITS, LOGITS, ROW, ROW],
    ),
    "match_statistics": (
        lambda g, a, b, c, d, s: N._match_statistics_backward(g, [a], [b], [c], [d], s, None, "l2", "var"),
        [ONE, C, C, C, C, torch.zeros(1, 2, dtype=torch.float64)],
    ),
    "image_prior": (
        lambda g, x, s: N._image_prior_backward(g, x, s, 3, 1.0, False),
        [torch.ones(4), X, torch.ones(1, 10, dtype=torch.float64)],
    ),
    "frozen_bn_act": (
        lambda g, m, v, x, a, b, r, s: N._frozen_bn_act_backward(g, m, v, x, a, b, r, s, None, "relu", 0.0, True),
        [X, C, C, X, C, C, X, C],
    ),
    "frozen_bn_act, mask": (
        lambda g, x, a, k: N._frozen_bn_act_backward(g, None, None, x, a, a, None, a, k, "relu", 0.0, True),
        [X, X, C, (X > 0).byte()],
    ),
    "average_pool2d": (
        lambda g: N._average_pool2d_backward(g, [2, 3, 6, 6], [2, 2], True), [torch.randn(2, 3, 3, 3)],
    ),
    "lane_conv2d, input": (
        lambda g, w: N._lane_conv2d_input(g, w, [2, 3, 6, 6], [1, 1]), [torch.randn(2, 4, 6, 6), WEIGHT],
    ),
    "lane_conv2d, weight": (
        lambda g, x: N._lane_conv2d_weight(g, x, [4, 3, 3, 3], [1, 1]), [torch.randn(2, 4, 6, 6), X],
    ),
    "frozen_conv2d": (
        lambda g, w: N._frozen_conv2d_backward(
            g, w, [2, 3, 6, 6], False, [1, 1], [1, 1], [1, 1], 1, None, "plain", "library"
        ),
        [torch.randn(2, 4, 6, 6), WEIGHT],
    ),
}  # fmt: skip


def wrong(t: Tensor) -> list[Tensor]:
    """Tensors of another shape, dtype or device."""
    shapes = [t[:0] if t.dim() else t[None], t[None], torch.zeros(1, dtype=t.dtype), torch.zeros(0, dtype=t.dtype)]
    shapes += [torch.zeros(7, 1, 1, 1, 1, 1, dtype=t.dtype)]
    return [*shapes, t.to(torch.float16), t.to(torch.int32), t.to("meta"), t.to_sparse() if t.dim() else t.to("meta")]


@pytest.mark.compiled
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_ops_check_what_they_are_given(name: str) -> None:
    op, good = BACKWARD[name]
    op(*good)
    for at, tensor in enumerate(good):
        for bad in wrong(tensor):
            given = [bad if i == at else t for i, t in enumerate(good)]
            try:
                result = op(*given)
            except (ValueError, RuntimeError, NotImplementedError, IndexError, TypeError):
                continue  # refused, by whichever check of ours or of the dispatcher comes first
            # Constants of another floating-point dtype are converted, and all tensors may be on "meta".
            assert bad.dtype == torch.float16 or (bad.is_meta and len(good) == 1), (
                name,
                at,
                bad.shape,
                bad.dtype,
                result,
            )


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 0, 6, 6), (2, 3, 0, 6), (2, 3, 6, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("last", [False, True])
def test_empty_images_are_answered_or_refused(shape: tuple[int, ...], last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: ops.average_pool2d(x, (2, 2)),
        lambda x: ops.lane_conv2d(x, torch.randn(4, shape[1], 3, 3, requires_grad=True), None, (1, 1)),
        lambda x: ops.frozen_conv2d(x, torch.randn(4, shape[1], 3, 3), None, (1, 1), (1, 1)),
        lambda x: ops.jitter_flip(x, torch.tensor([1, 2]), torch.tensor(True)),
        lambda x: ops.bn_match(x, torch.zeros(shape[1]), torch.ones(shape[1])),
        lambda x: ops.frozen_bn_act(x, torch.zeros(shape[1]), torch.ones(shape[1]))[0],
        ops.image_prior,
    ]
    for call in calls:
        x = torch.zeros(shape).contiguous(memory_format=form).requires_grad_()
        try:
            y = call(x)
            y.sum().backward()
        except (ValueError, RuntimeError):
            continue
        assert y.shape[0] == shape[0] and x.grad is not None and x.grad.shape == shape
