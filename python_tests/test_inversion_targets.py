from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exml_fast.inversion.targets import beta_shares, class_similarity, dirichlet_mixture, hard_targets


def test_similarity_is_the_cosine_of_the_rows() -> None:
    w = torch.randn(4, 7, dtype=torch.float64)
    expected = torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) for b in w]) for a in w])
    assert torch.allclose(class_similarity(w, normalize=False), expected.clamp_min(0) + 1e-4)
    low, high = expected.min(1, keepdim=True).values, expected.max(1, keepdim=True).values
    assert torch.allclose(class_similarity(w, normalize=True), (expected - low) / (high - low) + 1e-4)


def test_similarity_takes_the_last_linear_layer_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    assert torch.equal(class_similarity(model), class_similarity(model[2].weight))


def test_similarity_is_positive_in_degenerate_cases() -> None:
    for weight in (torch.zeros(3, 4), torch.ones(3, 4), -torch.eye(3)):
        for normalize in (True, False):
            similarity = class_similarity(weight, normalize=normalize)
            assert similarity.isfinite().all() and (similarity > 0).all()


def test_similarity_refuses_what_is_no_weight() -> None:
    with pytest.raises(ValueError, match="source must be a weight"):
        class_similarity(torch.randn(3))
    with pytest.raises(ValueError, match="NaN"):
        class_similarity(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        class_similarity(torch.tensor([[1.0, 0], [0, 1], [0, float("inf")]]))
    with pytest.raises(ValueError, match=r"no final linear layer: name the layer.*class_impressions"):
        class_similarity(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match=r"one class only.*targets='hard'"):
        class_similarity(torch.randn(1, 4))


def test_similarity_of_a_named_or_of_the_last_executed_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3))
    assert torch.equal(class_similarity(model, layer="2"), class_similarity(model[2].weight))
    assert torch.equal(class_similarity(model, layer="0"), class_similarity(model[0].weight.flatten(1)))
    with pytest.raises(ValueError, match=r"layer must name.*'1' is Flatten.*\['2', '3'\]"):
        class_similarity(model, layer="1")
    with pytest.raises(ValueError, match="'head' is nothing"):
        class_similarity(model, layer="head")

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    backwards = Backwards()
    traced = class_similarity(backwards, example=torch.zeros(1, 6))
    assert torch.equal(traced, class_similarity(backwards.head.weight)) and len(traced) == 2


def test_bad_betas_and_similarities_say_what_to_do() -> None:
    for betas in ((), (0.0,), (1.0, -0.1), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match=r"betas must hold positive.*targets='hard'"):
            beta_shares(torch.tensor([0]), betas)
    similarity = torch.ones(3, 3)
    similarity[1, 2] = float("nan")
    similarity[2, 0] = 0
    with pytest.raises(ValueError, match=r"rows \[1, 2\] are not: make it by class_similarity"):
        dirichlet_mixture(similarity, torch.tensor([0]), [1.0])


def test_hard_targets_are_positions_of_class_ids() -> None:
    assert hard_targets(torch.tensor([7, 3, 7]), [3, 5, 7]).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"classes \[4, 9\].*\[3, 5, 7\]"):
        hard_targets(torch.tensor([4, 3, 9]), [3, 5, 7])
    with pytest.raises(ValueError, match="0 to 9"):
        hard_targets(torch.tensor([-1]), range(10))


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    betas=st.lists(st.sampled_from([0.01, 0.1, 1.0, 10.0]), min_size=1, max_size=4, unique=True),
)
def test_betas_have_equal_shares_within_each_class(classes: list[int], betas: list[float]) -> None:
    labels = torch.tensor(classes)
    shares = beta_shares(labels, betas)
    for label in set(classes):
        counts = [int(((labels == label) & (shares == beta)).sum()) for beta in betas]
        assert sum(counts) == classes.count(label) and max(counts) - min(counts) <= 1


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    betas=st.lists(st.floats(0.01, 20), min_size=1, max_size=3),
    extra=st.sets(st.integers(0, 4)),
    seed=st.integers(0, 2**31),
)
def test_mixture_rows_are_distributions_over_the_allowed_units(
    classes: list[int], betas: list[float], extra: set[int], seed: int
) -> None:
    similarity = class_similarity(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))
    among = torch.tensor(sorted(set(classes) | extra))

    def draw() -> torch.Tensor:
        return dirichlet_mixture(
            similarity, torch.tensor(classes), betas, generator=torch.Generator().manual_seed(seed), among=among
        )

    targets = draw()
    others = [k for k in range(5) if k not in among.tolist()]
    assert targets.shape == (len(classes), 5) and targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(len(classes))) and (targets >= 0).all()
    assert (targets[:, others] == 0).all()
    assert torch.equal(targets, draw())


def test_mixture_has_the_mean_and_variance_of_each_share() -> None:
    similarity = class_similarity(torch.randn(4, 6))
    count, betas = 40_000, (10.0, 1.0)
    targets = dirichlet_mixture(
        similarity, torch.full((count,), 2), betas, generator=torch.Generator().manual_seed(1)
    ).double()
    for i, beta in enumerate(betas):
        alpha = beta * similarity[2]
        mean = alpha / alpha.sum()
        variance = mean * (1 - mean) / (alpha.sum() + 1)
        share = targets[i::2]
        assert torch.allclose(share.mean(0), mean, atol=0.01)
        assert torch.allclose(share.var(0), variance, atol=0.01)


def test_mixture_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="betas"):
        beta_shares(torch.tensor([0]), [])
    with pytest.raises(ValueError, match="betas"):
        beta_shares(torch.tensor([0]), [1.0, 0.0])
    with pytest.raises(ValueError, match="among"):
        dirichlet_mixture(torch.ones(3, 3), torch.tensor([2]), [1.0], among=torch.tensor([0, 1]))
