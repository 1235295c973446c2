from __future__ import annotations

import sys
from itertools import permutations

import pytest
import torch
from merging_networks import NETWORKS, expert, images, largest_difference, permuted
from small_experts import trained

from exml_fast.continual.baselines import DifferentNetworks, ParameterAverage
from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.rebasin import ReBasin, assigned
from exml_fast.data import InputSpec


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_copies_merge_to_the_same_function(name: str) -> None:
    given = expert(name)
    seen = images(given)
    merged = ReBasin([given, permuted(given, 1), permuted(given, 2)]).expert
    assert largest_difference(merged, given, seen) < 1e-5
    merged = ReBasin([given, permuted(given)], seen, matching="activations", reset=False).expert
    assert largest_difference(merged, given, seen) < 1e-3, "units that hardly any image activates may be exchanged"


def test_plain_averaging_of_a_permuted_copy_is_another_function() -> None:
    given = expert("lenet")
    assert largest_difference(ParameterAverage([given, permuted(given)]).expert, given, images(given)) > 0.1


def test_weights_are_those_of_the_best_permutation() -> None:
    """With one hidden layer of three units all permutations can be tried."""
    torch.manual_seed(0)
    experts = []
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        spec = InputSpec(1, (2, 2), (0.5,), (0.25,))
        experts.append(Expert.wrap(model, spec, (0, 1)))
    one, other = (each.model for each in experts)
    for each in experts:
        each.model.requires_grad_(False)
    best = max(
        permutations(range(3)),
        key=lambda p: float(
            (one[1].weight * other[1].weight[list(p)]).sum() + (one[1].bias * other[1].bias[list(p)]).sum()
            + (one[3].weight * other[3].weight[:, list(p)]).sum()
        ),
    )  # fmt: skip
    merged = ReBasin(experts).expert.model
    torch.testing.assert_close(merged[1].weight, (one[1].weight + other[1].weight[list(best)]) / 2)
    torch.testing.assert_close(merged[3].weight, (one[3].weight + other[3].weight[:, list(best)]) / 2)
    torch.testing.assert_close(merged[3].bias, (one[3].bias + other[3].bias) / 2)


def test_units_are_averaged_over_the_experts_that_have_them() -> None:
    one, other = expert("lenet", units=(0, 2, 5)), expert("lenet", units=(2, 7))
    state = {k: v for k, v in one.model.state_dict().items() if not k.startswith("classifier.4")}
    other.model.load_state_dict(state, strict=False)  # the same features
    merged = ReBasin([one, other]).expert
    assert merged.units == (0, 2, 5, 7) and merged.card.arguments["num_classes"] == 4
    rows, first, second = (each.model.classifier[4].weight for each in (merged, one, other))
    torch.testing.assert_close(rows, torch.stack([first[0], (first[1] + second[0]) / 2, first[2], second[1]]))
    assert merged.logits(images(one)).shape == (48, 4)


def test_the_experts_stay_as_they_are_and_the_card_says_what_was_done() -> None:
    experts = trained()
    before = [each.fingerprint() for each in experts]
    merged = ReBasin(experts, images(experts[0]), matching="activations")
    assert [each.fingerprint() for each in experts] == before
    card = merged.expert.card
    assert card.training["method"] == "re-basin, activations" and card.training["images"] == "given images"
    assert card.classes == (0, 1, 2, 3) and merged.input_spec == experts[0].input_spec


def test_batch_norms_are_measured_on_the_images() -> None:
    one, other = expert("lenet-bn", 0), expert("lenet-bn", 1)
    seen = images(one)
    merged = ReBasin([one, other], seen).expert.model
    activations = merged.features[0](seen)
    torch.testing.assert_close(merged.features[1].running_mean, activations.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    kept = ReBasin([one, other], seen, reset=False).expert.model
    without = ReBasin([one, other]).expert.model
    assert torch.equal(kept.features[1].running_mean, without.features[1].running_mean)
    assert not torch.allclose(kept.features[1].running_mean, merged.features[1].running_mean)


def test_assignment() -> None:
    assert assigned(torch.tensor([[1.0, 5.0, 0.0], [4.0, 9.0, 1.0], [0.0, 1.0, 2.0]])).tolist() == [0, 1, 2]
    assert assigned(torch.tensor([[1.0, 5.0], [4.0, 7.0]])).tolist() == [1, 0]


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given = expert("lenet")
    with pytest.raises(ValueError, match="at least one expert"):
        ReBasin([])
    with pytest.raises(DifferentNetworks, match=r"arguments of expert 1 is .* of expert 2 .*batch_norm"):
        ReBasin([given, expert("lenet-bn")])
    with pytest.raises(DifferentNetworks, match="architecture of expert 1 is lenet5, of expert 2 cifar_resnet"):
        ReBasin([given, expert("resnet20")])
    with pytest.raises(ValueError, match="matching must be 'weights' or 'activations', got 'both'"):
        ReBasin([given], matching="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images must be images, on which activations are matched, got None"):
        ReBasin([given, given], matching="activations")
    with pytest.raises(ValueError, match="images must be a tensor, a Result, an ImageSource or a Strategy"):
        ReBasin([given, given], 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="passes"):
        ReBasin([given, given], passes=0)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'exml_fast\[eval\]'"):
        ReBasin([given, given])
