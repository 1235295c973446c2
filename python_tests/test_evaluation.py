"""The scores against their formulas, computed in another way."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from exml_fast import InputSpec, Result
from exml_fast.evaluation import agreement, diversity, evaluate, features, inception_score, nearest_neighbours
from exml_fast.inversion import invert

SPEC = InputSpec(1, (4, 4), (0.5,), (0.25,))


def result_of(images: torch.Tensor, labels: list[int]) -> Result:
    return Result(images, torch.tensor(labels), None, SPEC, {}, 0.0)


def test_agreement_counts_the_largest_logits() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    assert agreement(logits, torch.tensor([0, 0, 0])).tolist() == [True, False, False]
    assert agreement(logits, torch.tensor([0, 0, 0]), top=2).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="top must be between 1 and the 3"):
        agreement(logits, torch.tensor([0, 0, 0]), top=4)
    with pytest.raises(ValueError, match="positions"):
        agreement(logits, torch.tensor([0]))


def test_inception_score() -> None:
    p = torch.rand(12, 5, dtype=torch.float64).softmax(1)
    expected = []
    for part in (p[:6], p[6:]):
        total = sum((row * (row / part.mean(0)).log()).sum() for row in part)
        expected.append(math.exp(float(total) / 6))
    mean, deviation = inception_score(p.log() + 3.0, splits=2)
    assert mean == pytest.approx(sum(expected) / 2) and deviation == pytest.approx(abs(expected[0] - expected[1]) / 2)
    certain = torch.eye(5) * 100
    assert inception_score(certain)[0] == pytest.approx(5.0) and inception_score(certain[:1])[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="splits"):
        inception_score(p, 13)


def test_nearest_neighbours_find_copies() -> None:
    real = torch.randn(40, 6)
    synthetic = torch.cat([real[7:8] + 1e-3, torch.randn(3, 6) * 3])
    found = nearest_neighbours(synthetic, real, k=2, chunk=7)
    distance = (synthetic[:, None] - real).norm(dim=2)
    assert torch.equal(found.index, distance.argsort(1)[:, :2])
    torch.testing.assert_close(found.distance, distance.sort(1).values[:, :2], rtol=1e-3, atol=1e-3)
    own = (real[:, None] - real).norm(dim=2) + torch.diag(torch.full((40,), torch.inf))
    assert found.usual == pytest.approx(float(own.amin(1).median()), rel=1e-3)
    assert found.memorised == 0.25
    with pytest.raises(ValueError, match="features must be"):
        nearest_neighbours(synthetic, real[:, :3])
    with pytest.raises(ValueError, match="k must be"):
        nearest_neighbours(synthetic, real, k=41)


def test_diversity_is_the_mean_cosine_distance_of_pairs() -> None:
    x, labels = torch.randn(7, 5), torch.tensor([3, 3, 3, 3, 8, 8, 9])
    found = diversity(x, labels)
    assert set(found) == {3, 8}
    for label, members in ((3, [0, 1, 2, 3]), (8, [4, 5])):
        pairs = [(i, j) for i in members for j in members if i < j]
        expected = [1 - float(nn.functional.cosine_similarity(x[i], x[j], dim=0)) for i, j in pairs]
        assert found[label] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert diversity(x[:1].repeat(4, 1), torch.zeros(4))[0] == pytest.approx(0.0, abs=1e-6)


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).train()
    images = torch.randn(5, *SPEC.shape)
    found, named = features(network, images, batch_size=2), features(network, images, layer="2")
    assert network.training and not network[4]._forward_hooks
    with torch.no_grad():
        expected = network.eval()[:3](images)
    torch.testing.assert_close(found, expected.flatten(1))
    torch.testing.assert_close(named, expected.mean((2, 3)))
    with pytest.raises(ValueError, match="layer '9' is not in Sequential"):
        features(network, images, layer="9")


def test_features_without_a_linear_layer_are_the_input_of_the_last_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(5, *SPEC.shape)
    with torch.no_grad():
        expected = network[:2](images).mean((2, 3))
    torch.testing.assert_close(features(network, images, batch_size=2), expected)
    assert not network[2]._forward_hooks
    with pytest.raises(ValueError, match=r"executes no nn\.Linear"):
        features(nn.Sequential(nn.Flatten(), nn.Softmax(1)), images)


def test_images_are_converted_to_the_input_of_a_judge() -> None:
    # This judge has 2x2 inputs without normalisation and predicts class 5 or 6 for the brighter half.
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2, bias=False)
            self.linear.weight.data = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.min() >= 0 and x.max() <= 1
            return self.linear(x.flatten(1))

    judge = SimpleNamespace(model=Halves(), input_spec=InputSpec(1, (2, 2), (0.0,), (1.0,)), units=(5, 6))
    images = torch.full((4, 1, 4, 4), -2.0)
    images[:2, ..., :2] = 2
    images[2:, ..., 2:] = 2
    found = evaluate(result_of(images, [5, 6, 6, 6]), {"halves": judge})
    assert found.judges["halves"]["top1"] == 0.75 and found.judges["halves"]["by_class"] == {"5": 1.0, "6": 2 / 3}
    assert found.confusion["halves"].tolist() == [[1, 0], [1, 2]] and found.neighbours is None
    real = SPEC.denormalize(images).clamp(0, 1)
    memory = evaluate(result_of(images, [5, 6, 6, 6]), {"halves": judge}, real=real).to_dict()["memorisation"]
    assert memory["smallest_distance"] < 1e-3
    with pytest.raises(ValueError, match=r"judge 'halves' has no logit for the classes \[7\]"):
        evaluate(result_of(images, [5, 6, 6, 7]), {"halves": judge})
    with pytest.raises(ValueError, match="at least one network"):
        evaluate(result_of(images, [5] * 4), {})


def test_inverted_digits_are_recognised_by_their_teacher(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    model, spec = digits_teacher
    result = invert(model, per_class=2, recipe="deep_inversion", spec=spec, steps=100)
    found = evaluate(result, {"itself": model}).to_dict()
    assert found["judges"]["itself"]["top1"] == result.summary["teacher_accuracy"] > 0.9
    assert found["judges"]["itself"]["inception_score"] > 5 and len(found["diversity"]) == 10
