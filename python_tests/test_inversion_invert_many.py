from __future__ import annotations

import pytest
import torch
from torch import nn

import exml_fast as xf
from exml_fast.data import InputSpec

SPEC = InputSpec(1, (8, 8), (0.5,), (0.5,))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_images_are_those_of_single_runs(parallel: int) -> None:
    networks = [network(seed) for seed in range(5)]
    seen: list[tuple[int, int]] = []
    results = xf.invert_many(
        networks, parallel=parallel, spec=SPEC, per_class=2, steps=60, seed=3,
        progress=lambda _stage, step, total, _terms: seen.append((step, total)),
    )  # fmt: skip
    for model, result in zip(networks, results, strict=True):
        alone = xf.invert(model, spec=SPEC, per_class=2, steps=60, seed=3)
        torch.testing.assert_close(result.images, alone.images, rtol=0, atol=0)
    assert seen[-1] == (300, 300) and all(total == 300 for _, total in seen)


def test_one_failure_stops_all() -> None:
    networks = [network(0), nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), *map(network, range(1, 9))]
    with pytest.raises(ValueError, match="rejects images of shape"):
        xf.invert_many(networks, parallel=2, spec=SPEC, steps=100_000, per_class=1)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="models must be a sequence of at least one classifier"):
        xf.invert_many([])
    with pytest.raises(ValueError, match="models must be a sequence"):
        xf.invert_many(network(0))
    with pytest.raises(ValueError, match="parallel must be a positive integer, got 0"):
        xf.invert_many([network(0)], parallel=0, spec=SPEC)
    with pytest.raises(ValueError, match="checkpoint_dir is for one network"):
        xf.invert_many([network(0)], spec=SPEC, checkpoint_dir="somewhere")


@pytest.mark.gpu
def test_on_streams_of_their_own() -> None:
    networks = [network(seed).cuda() for seed in range(5)]
    results = xf.invert_many(networks, parallel=4, spec=SPEC, per_class=8, steps=200)
    for model, result in zip(networks, results, strict=True):
        alone = xf.invert(model, spec=SPEC, per_class=8, steps=200)
        torch.testing.assert_close(result.images, alone.images)
