"""The losses against the formulas, image by image."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exml_fast.continual.class_incremental import losses

DRAWN = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))


def case(size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Logits (N, K), labels of any class, answers (N, old), old."""
    images, old, new, seed = size
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, old + new, generator=generator, dtype=torch.float64)
    answers = 3 * torch.randn(images, old, generator=generator, dtype=torch.float64)
    return logits, torch.randint(old + new, (images,), generator=generator), answers, old


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def binary(logit: float, wanted: float) -> float:
    p = sigmoid(logit)
    return -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)


@given(DRAWN)
def test_binary_cross_entropies(size: tuple[int, int, int, int]) -> None:
    """Rebuffi 2017, Alg. 3; the labels of all later logits, the answers for the old ones."""
    logits, labels, answers, old = case(size)
    count, classes = logits.shape
    new = [
        binary(float(logits[n, c]), float(labels[n] == c)) for n in range(count) for c in range(old, classes)
    ]  # fmt: skip
    kept = [binary(float(logits[n, c]), sigmoid(float(answers[n, c]))) for n in range(count) for c in range(old)]
    torch.testing.assert_close(float(losses.bce(logits, labels, old)), sum(new) / count)
    torch.testing.assert_close(float(losses.bce_of_old(logits, answers)), sum(kept) / count)


@given(DRAWN)
def test_losses_of_probabilities(size: tuple[int, int, int, int]) -> None:
    logits, labels, answers, old = case(size)
    p, among_old, wanted = logits.softmax(1), logits[:, :old].softmax(1), answers.softmax(1)
    rows = torch.arange(len(labels))
    torch.testing.assert_close(losses.cross_entropy(logits, labels, old), -p[rows, labels].log().mean())
    truth = torch.zeros_like(p)
    truth[rows, labels] = 1
    torch.testing.assert_close(losses.mse(logits, labels, old), ((p - truth) ** 2).sum(1).mean())
    torch.testing.assert_close(losses.mse_of_old(logits, answers), ((among_old - wanted) ** 2).sum(1).mean())
    softer, target = (logits[:, :old] / 2).softmax(1), (answers / 2).softmax(1)
    expected = 4 * (target * (target / softer).log()).sum(1).mean()
    torch.testing.assert_close(losses.kl_of_old(logits, answers), expected)
    of_new = labels.clamp(min=old)
    torch.testing.assert_close(
        losses.local_cross_entropy(logits, of_new, old), F.cross_entropy(logits[:, old:], of_new - old)
    )


def test_the_balanced_cross_entropy_is_that_of_equally_frequent_classes() -> None:
    """Two images of each of three old classes, three of each of two new ones: half and half."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2] * 2 + [3, 4] * 3)
    each = -logits.log_softmax(1)[torch.arange(12), labels]
    expected = sum(each[labels == c].mean() for c in range(5)) / 5
    torch.testing.assert_close(losses.balanced_cross_entropy(logits, labels, 3), expected)


def test_the_pairs_are_lardizzones() -> None:
    names = {losses.bce: "bce", losses.cross_entropy: "ce", losses.mse: "mse"}
    kept = {losses.bce_of_old: "bce", losses.mse_of_old: "mse", losses.kl_of_old: "kl"}
    assert {f"{names[p.classification]}-{kept[p.distillation]}" for p in losses.PAIRS.values()} == set(losses.PAIRS)
    assert list(losses.PAIRS)[:5] == ["bce-bce", "ce-mse", "bce-mse", "mse-mse", "ce-bce"]


@pytest.mark.parametrize("name", losses.PAIRS)
def test_losses_are_finite_for_large_logits(name: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]], requires_grad=True)
    pair = losses.PAIRS[name]
    total = pair.classification(logits, torch.tensor([2, 1]), 1) + pair.distillation(
        logits, torch.tensor([[-1e4], [9]])
    )
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite() and gradient.isfinite().all()
