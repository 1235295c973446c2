from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from merging_networks import NETWORKS, expert, images, largest_difference
from torch import nn

from exml_fast.continual.baselines import DifferentNetworks
from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.regmean import RegMean
from exml_fast.data import InputSpec, NaturalFields

SPEC = InputSpec(1, (2, 2), (0.5,), (0.25,))


def linear(seed: int, units: tuple[int, ...] = (0, 1, 2), bias: bool = True) -> Expert:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Expert.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, len(units), bias)), SPEC, units)


def seen(seed: int, count: int = 30) -> torch.Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_least_squares_solution(bias: bool) -> None:
    experts, inputs = [linear(0, bias=bias), linear(1, bias=bias)], [seen(0), seen(1)]
    merged = RegMean(experts, inputs, alpha=1.0).expert.model[1]
    rows = torch.cat(inputs).flatten(1)
    targets = torch.cat([each.logits(x) for each, x in zip(experts, inputs, strict=True)])
    if bias:
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    want = torch.linalg.lstsq(rows.double(), targets.double()).solution.float().T
    torch.testing.assert_close(merged.weight, want[:, :4], atol=1e-5, rtol=1e-5)
    if bias:
        torch.testing.assert_close(merged.bias, want[:, 4], atol=1e-5, rtol=1e-5)


def test_alpha_scales_what_is_outside_the_diagonal() -> None:
    experts, inputs = [linear(0, bias=False), linear(1, bias=False)], [seen(0), seen(1)]
    merged = RegMean(experts, inputs, alpha=0.3).expert.model[1]
    total, product = torch.zeros(4, 4), torch.zeros(4, 3)
    for each, x in zip(experts, inputs, strict=True):
        gram = x.flatten(1).T @ x.flatten(1)
        gram = torch.where(torch.eye(4) > 0, gram, 0.3 * gram)
        total, product = total + gram, product + gram @ each.model[1].weight.T
    torch.testing.assert_close(merged.weight, (total.inverse() @ product).T, atol=1e-5, rtol=1e-5)


def test_units_are_solved_for_the_experts_that_have_them() -> None:
    experts, inputs = [linear(0, (0, 1, 2)), linear(1, (2, 4))], [seen(0), seen(1)]
    merged = RegMean(experts, inputs, alpha=1.0).expert
    assert merged.units == (0, 1, 2, 4)
    layer = merged.model[1]
    torch.testing.assert_close(layer.weight[:2], experts[0].model[1].weight[:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weight[3], experts[1].model[1].weight[1], atol=1e-5, rtol=1e-5)
    whole = RegMean([linear(0), Expert(linear(1).model, linear(0).card)], inputs, alpha=1.0).expert.model[1]
    assert not torch.allclose(layer.weight[2], whole.weight[2])


def test_a_convolution_is_a_linear_layer_of_patches() -> None:
    spec = InputSpec(2, (6, 6), (0.5, 0.5), (0.25, 0.25))
    experts, inputs = [], []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(27, 2))
            experts.append(Expert.wrap(model, spec, (0, 1)))
            inputs.append(torch.randn(20, 2, 6, 6))
    merged = RegMean(experts, inputs, alpha=1.0).expert.model[0]

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        errors = [
            (F.conv2d(x, weight, bias, 2, 1) - each.model[0](x)).square().sum()
            for each, x in zip(experts, inputs, strict=True)
        ]
        return torch.stack(errors).sum()

    for gradient in torch.autograd.grad(loss(merged.weight, merged.bias), (merged.weight, merged.bias)):
        assert float(gradient.abs().max()) < 1e-2, "the minimum"


@pytest.mark.parametrize("name", NETWORKS)
def test_one_network_twice_stays_itself(name: str) -> None:
    given = expert(name)
    merged = RegMean([given, given], NaturalFields(), count=8, reset=False).expert
    assert largest_difference(merged, given, images(given, 8)) < 1e-4


def test_inputs_that_no_image_reaches_keep_the_mean() -> None:
    experts = [linear(0, bias=False), linear(1, bias=False)]
    inputs = [seen(0), seen(1)]
    for x in inputs:
        x[:, :, 0, 1] = 0
    merged = RegMean(experts, inputs).expert.model[1].weight
    mean = sum(each.model[1].weight for each in experts) / 2
    torch.testing.assert_close(merged[:, 1], mean[:, 1])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\], got 1.5"):
        RegMean([linear(0)], seen(0), alpha=1.5)
    with pytest.raises(ValueError, match="images must be a tensor for each expert, got 1 tensors"):
        RegMean([linear(0), linear(1)], [seen(0)])
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\) with N > 0"):
        RegMean([linear(0)], torch.zeros(0, 1, 2, 2))
    with pytest.raises(DifferentNetworks):
        RegMean([linear(0), expert("lenet")], seen(0))
