"""The moving average of the weights against a sum by hand, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from small_training import SMALL, network
from torch import Tensor, nn

from exml_fast.data import Split
from exml_fast.training import Training, train_classifier
from exml_fast.training.average import Average


def test_the_average_is_the_sum_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average, values = Average(model, 0.6), [copy.deepcopy(model.state_dict())]
    for step in range(1, 7):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(step))
        average.update(model, step)
        values.append(copy.deepcopy(model.state_dict()))
    for name, found in average.model.state_dict().items():
        wanted: Tensor = values[0][name]
        for step, value in enumerate(values[1:], 1):
            d = min(0.6, (1 + step) / (10 + step))
            wanted = d * wanted + (1 - d) * value[name] if found.is_floating_point() else value[name]
        torch.testing.assert_close(found, wanted)
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_results_in_the_average(precision: str) -> None:
    images = torch.randint(0, 256, (40, *SMALL.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(40) % 4)
    config = Training(steps=12, batch_size=10, optimizer="sgd", lr=0.05, precision=precision)  # type: ignore[arg-type]
    given = network()
    plain = train_classifier(given, split, SMALL, config=config).model.state_dict()
    averaged = train_classifier(given, split, SMALL, config=config.replace(average=0.9)).model
    start = given.state_dict()
    assert all(p.requires_grad for p in averaged.parameters())
    for name, value in averaged.state_dict().items():
        if value.is_floating_point() and bool((start[name] - plain[name]).abs().max() > 1e-3):
            assert not torch.equal(value, plain[name]), name
    # An average that forgets at once is the weights themselves.
    same = train_classifier(given, split, SMALL, config=config.replace(average=1e-9)).model.state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(same[name], value)


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="average must be less than 1"):
        Training(average=1.0)
