from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exml_fast.engine.statistics import LayerStatistics
from exml_fast.generators.losses import (
    category_loss,
    diversity_loss,
    feature_discrepancy,
    feature_regularization,
    scaled_gradient,
)


@given(n=st.integers(1, 9), f=st.integers(2, 9), scale=st.floats(0.1, 10))
def test_feature_discrepancy_is_eq_1(n: int, f: int, scale: float) -> None:
    a, b = torch.randn(n, f), torch.randn(n, f)
    expected = sum(1 - float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)) / n
    assert float(feature_discrepancy(a, b)) == pytest.approx(expected, abs=1e-5)
    assert float(feature_discrepancy(a, scale * a)) == pytest.approx(0, abs=1e-5)
    assert float(feature_discrepancy(a, -a)) == pytest.approx(2, abs=1e-5)


@given(n=st.integers(1, 9), k=st.integers(2, 9))
def test_category_and_diversity_are_eqs_4_to_6(n: int, k: int) -> None:
    logits = 5 * torch.randn(n, k)
    scores = logits.softmax(1)
    expected = -sum(math.log(float(row[int(row.argmax())])) for row in scores) / n
    assert float(category_loss(logits)) == pytest.approx(expected, abs=1e-4)
    w = scores.mean(0)
    assert float(diversity_loss(logits)) == pytest.approx(float((w * w.log()).sum()), abs=1e-4)
    assert -math.log(k) - 1e-4 <= float(diversity_loss(logits)) <= 1e-5


def test_diversity_of_extreme_logits_is_finite() -> None:
    logits = torch.eye(3).mul(1e4).requires_grad_()
    loss = diversity_loss(logits)
    assert loss.item() == pytest.approx(-math.log(3), abs=1e-4)
    loss.backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("moment", ["var", "std"])
def test_feature_regularization_is_eq_7(moment: str) -> None:
    layers = [LayerStatistics("", torch.randn(c), torch.rand(c), torch.randn(c), torch.rand(c)) for c in (3, 5)]
    expected = 0.0
    for layer in layers:
        second = [s.sqrt() if moment == "std" else s for s in (layer.var, layer.target_var)]
        expected += float((layer.mean - layer.target_mean).norm() + (second[0] - second[1]).norm())
    assert float(feature_regularization(layers, moment)) == pytest.approx(expected, rel=1e-5)


def test_scaled_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    y = scaled_gradient(x, -0.5)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.5))
    assert not scaled_gradient(x, 0).requires_grad
