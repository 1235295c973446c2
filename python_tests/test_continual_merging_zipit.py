from __future__ import annotations

import pytest
import torch
from merging_networks import NETWORKS, expert, images, largest_difference, permuted
from small_experts import quadrants, trained
from torch import nn

from exml_fast.continual import new_classes
from exml_fast.continual.baselines import CannotMerge, EnsembleAverage
from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.features import correlations
from exml_fast.continual.merging.graph import FeatureGraph
from exml_fast.continual.merging.zipit import ZipIt, zip_features
from exml_fast.continual.scenarios import experience_accuracies
from exml_fast.data import InputSpec


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("depth", [None, 3, 7])
def test_identical_and_permuted_networks_zip_to_themselves(name: str, depth: int | None) -> None:
    given = expert(name)
    seen = images(given)
    zipped = ZipIt([given, permuted(given)], seen, depth=depth, reset=False).expert
    assert largest_difference(zipped, given, seen) < 1e-3, "rounding is amplified by dead units"
    zipped = ZipIt([given, given], seen, depth=depth, reset=False).expert
    assert largest_difference(zipped, given, seen) < 1e-3


def test_correlations_are_those_of_the_activations() -> None:
    one, other = expert("lenet", 0), expert("lenet", 1)
    seen = images(one)
    groups = FeatureGraph.of(one.model, seen[:1]).groups
    filters, hidden = correlations([one.model, other.model], groups, seen)[1:3]
    with torch.no_grad():
        maps = torch.cat([each.model.features[:-1](seen).movedim(1, 0).flatten(1) for each in (one, other)])
        units = torch.cat([each.model.classifier[:2](each.model.features(seen)).T for each in (one, other)])
    torch.testing.assert_close(filters.float(), torch.corrcoef(maps), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(hidden.float(), torch.corrcoef(units), atol=1e-4, rtol=1e-3)


def test_constant_features_correlate_with_each_other_alone() -> None:
    given = Expert.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
                        InputSpec(1, (2, 2), (0.5,), (0.25,)), (0, 1))  # fmt: skip
    with torch.no_grad():
        given.model[1].bias[0] = -1e3
        given.model[1].bias[1:] = 1e3
    seen = torch.randn(20, 1, 2, 2)
    groups = FeatureGraph.of(given.model, seen[:1]).groups
    (table,) = correlations([given.model, given.model], groups, seen)
    assert table[0].tolist() == [1, 0, 0, 1, 0, 0] and float(table[1, 4]) == pytest.approx(1)


def test_features_are_joined_in_the_order_of_their_correlation() -> None:
    # Features a, b, c of model 0 and d, e, f of model 1.
    table = torch.zeros(6, 6)
    for i, j, value in ((0, 4, 0.9), (1, 2, 0.8), (0, 3, 0.7), (2, 5, 0.5)):
        table[i, j] = table[j, i] = value
    pairs = zip_features(table, 2, alpha=1.0, beta=1.0)
    assert pairs.tolist()[0][1] == pairs.tolist()[0][2], "b and c of one model"
    assert pairs[0, 0] == pairs[1, 1], "a and e"
    apart = zip_features(table, 2, alpha=1.0, beta=0.0)
    assert apart[0, 1] != apart[0, 2] and apart[0, 2] == apart[1, 2], "no merge within a model"
    assert sorted(set(apart.flatten().tolist())) == [0, 1, 2]


def test_alpha_discourages_large_groups() -> None:
    table = torch.full((6, 6), 0.5)
    table[0, 3] = table[3, 0] = 0.9
    table[0, 4] = table[4, 0] = table[3, 4] = table[4, 3] = 0.8
    table[1, 5] = table[5, 1] = 0.6
    greedy, spread = zip_features(table, 2, alpha=1.0), zip_features(table, 2, alpha=0.1)
    assert greedy[0, 0] == greedy[1, 0] == greedy[1, 1]
    assert spread[0, 0] == spread[1, 0] != spread[1, 1] and spread[0, 1] == spread[1, 2]


@pytest.mark.parametrize("models", [2, 3, 5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_as_many_groups_are_left_as_a_model_has_features(models: int, beta: float) -> None:
    values = torch.randn(models * 7, 20, generator=torch.Generator().manual_seed(models))
    found = zip_features(torch.corrcoef(values).double(), models, beta=beta)
    assert found.shape == (models, 7) and found.unique().tolist() == list(range(7))


def test_a_linear_layer_is_averaged_by_groups() -> None:
    """M₁W₁U₁ + M₂W₂U₂ with the matrices written out (Stoica 2024, sec. 4)."""
    one, other = expert("lenet", 0), expert("lenet", 1)
    seen = images(one)
    zipped = ZipIt([one, other], seen).expert.model
    groups = FeatureGraph.of(one.model, seen[:1]).groups
    slots = [zip_features(c, 2) for c in correlations([one.model, other.model], groups, seen)]
    inputs, outputs = (nn.functional.one_hot(slots[i]).float() for i in (2, 3))  # (2, n, groups)
    want = sum(
        (outputs[m].T / outputs.sum((0, 1))[:, None]) @ each.model.classifier[2].weight @ inputs[m]
        for m, each in enumerate((one, other))
    )
    torch.testing.assert_close(zipped.classifier[2].weight, want, atol=1e-6, rtol=1e-5)
    heads = sum(each.model.classifier[4].weight @ outputs[m] for m, each in enumerate((one, other))) / 2
    torch.testing.assert_close(zipped.classifier[4].weight, heads, atol=1e-6, rtol=1e-5)


def test_heads_after_the_trunk_are_those_of_the_experts() -> None:
    experts = trained()
    before = [each.fingerprint() for each in experts]
    predictor = ZipIt(experts, images(experts[0]), depth=1)
    model = predictor.expert.model
    assert len(model.heads) == 2
    for head, each in zip(model.heads, experts, strict=True):
        assert torch.equal(head.get_submodule("classifier.4").weight, each.model.classifier[4].weight)
    assert sum(p.numel() for p in model.trunk.parameters()) == 6 * 26
    data, experiences = quadrants(), new_classes(quadrants(), 2)
    accuracy = experience_accuracies(predictor, data, experiences)
    ensemble = experience_accuracies(EnsembleAverage(experts), data, experiences)
    assert sum(accuracy) >= sum(ensemble) - 0.4
    assert [each.fingerprint() for each in experts] == before


def test_the_card_and_other_units() -> None:
    one, other = expert("lenet", 0, units=(0, 1)), expert("lenet", 1, units=(1, 5))
    for depth in (None, 2):
        zipped = ZipIt([one, other], images(one), depth=depth).expert
        assert zipped.units == (0, 1, 5) and zipped.logits(images(one, 4)).shape == (4, 3)
        assert zipped.card.training["method"] == "zipit" and zipped.card.training["depth"] == depth


def test_bad_input() -> None:
    given = expert("lenet")
    with pytest.raises(ValueError, match=r"alpha must be a number in \(0, 1\], got 0"):
        ZipIt([given], images(given), alpha=0)
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\], got 2"):
        ZipIt([given], images(given), beta=2)
    with pytest.raises(ValueError, match="depth"):
        ZipIt([given], images(given), depth=0)

    class Dense(nn.Module):
        """Every layer reads the first activation."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.a(x.flatten(1))
            second = self.b(torch.relu(first))
            return self.c(
                torch.cat(
                    [
                        first,
                        second,
                    ],
                    1,
                )
            )

    dense = Expert.wrap(Dense(), InputSpec(1, (2, 2), (0.5,), (0.25,)), (0, 1))
    assert ZipIt([dense, dense], images(dense), depth=1).expert.logits(images(dense, 2)).shape == (2, 2)
    tail = Expert.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), dense.input_spec, (0, 1))
    with pytest.raises(CannotMerge, match="the network cannot be cut after at most 1 layers"):
        ZipIt([tail, tail], images(tail), depth=1)
