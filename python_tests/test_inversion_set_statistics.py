from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import BN, SPEC, network
from torch import Tensor

from exml_fast.engine.statistics import LayerStatistics
from exml_fast.inversion import Synthesizer
from exml_fast.inversion.set_statistics import SetStatistics

LABELS = torch.arange(5).repeat(5)  # with batches of 8: 9, 8 and 8 images in a run


def layers_of(*activations: Tensor) -> list[LayerStatistics]:
    """Statistics of the activations (N, C) of some layers."""
    return [LayerStatistics("", x.mean(0), x.var(0, correction=0), x.new_zeros(1), x.new_ones(1)) for x in activations]


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, c, generator=generator, dtype=torch.float64) for c in (3, 2))
    return a * 2 + seed, b - seed


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_set_has_the_statistics_of_all_its_images(counts: list[int]) -> None:
    batches = [drawn(count, seed) for seed, count in enumerate(counts)]
    statistics = SetStatistics("set")
    for batch in batches[:-1]:
        statistics.add(layers_of(*batch), len(batch[0]))
    mixed = statistics.mixed(layers_of(*batches[-1]), counts[-1])
    for layer, expected in zip(
        mixed, layers_of(*(torch.cat(parts) for parts in zip(*batches, strict=True))), strict=True
    ):
        assert torch.allclose(layer.mean, expected.mean) and torch.allclose(layer.var, expected.var)
    assert statistics.images == sum(counts[:-1])


def test_an_average_forgets_older_batches() -> None:
    batches = [drawn(6, seed)[0] for seed in range(3)]
    statistics = SetStatistics(0.75)
    for batch in batches[:2]:
        statistics.add(layers_of(batch), 6)
    (mixed,) = statistics.mixed(layers_of(batches[2]), 6)
    weights = torch.tensor([0.75 * 0.75, 0.75 * 0.25, 0.25], dtype=torch.float64)
    first, second = (sum(w * (x**p).mean(0) for w, x in zip(weights, batches, strict=True)) for p in (1, 2))
    assert torch.allclose(mixed.mean, first) and torch.allclose(mixed.var, second - first**2)


@pytest.mark.parametrize("memory", ["set", 0.9])
def test_the_gradient_is_that_of_the_pooled_moments_over_the_share(memory: Any) -> None:
    statistics = SetStatistics(memory)
    statistics.add(layers_of(*drawn(7, 1)), 7)
    share = 4 / 11 if memory == "set" else 0.1
    assert statistics.share(4) == pytest.approx(share)
    past = [statistics.state_dict()[name][:3] for name in ("mean", "var")]
    x = drawn(4, 2)[0].requires_grad_()
    weights = torch.randn(2, 3, dtype=torch.float64)
    first = share * x.mean(0) + (1 - share) * past[0]
    second = share * x.square().mean(0) + (1 - share) * (past[1] + past[0] ** 2)
    pooled = (weights * torch.stack([first, second - first**2])).sum()
    (expected,) = torch.autograd.grad(pooled / share, x)
    layer = statistics.mixed(layers_of(x, drawn(4, 2)[1]), 4)[0]
    value = (weights * torch.stack([layer.mean, layer.var])).sum()
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.allclose(value, pooled) and torch.allclose(gradient, expected)


def test_the_first_batch_is_matched_alone() -> None:
    layers = layers_of(*drawn(4, 0))
    assert SetStatistics(0.9).mixed(layers, 4) == layers
    result = Synthesizer(network(), SPEC, BN).run([0, 1, 2])
    for memory in ("set", 0.9):
        other = Synthesizer(network(), SPEC, BN.replace(bn_memory=memory)).run([0, 1, 2])
        assert torch.equal(other.images, result.images)


def test_no_memory_changes_nothing() -> None:
    runs = [Synthesizer(network(), SPEC, recipe).run(LABELS) for recipe in (BN, BN.replace(bn_memory=0.0))]
    assert torch.equal(runs[0].images, runs[1].images)


@pytest.mark.parametrize("memory", [-0.1, 1.0, "all", None])
def test_a_memory_out_of_range_is_refused(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a number from 0 to below 1, or 'set'"):
        SetStatistics(memory)
    with pytest.raises(ValueError, match="bn_memory"):
        BN.replace(bn_memory=memory)


def test_statistics_of_another_recipe_or_network_are_refused() -> None:
    statistics = SetStatistics("set")
    with pytest.raises(ValueError, match=r"memory must be None or have the recipe's bn_memory=0\.9, got set"):
        Synthesizer(network(), SPEC, BN.replace(bn_memory=0.9)).run([0], memory=statistics)
    statistics.add(layers_of(*drawn(4, 0)), 4)
    with pytest.raises(ValueError, match="memory must hold statistics of this network's 6 channels, it has 5"):
        Synthesizer(network(), SPEC, BN.replace(bn_memory="set")).run([0], memory=statistics)


@pytest.mark.parametrize("engine", [True, False])
def test_a_run_counts_its_finished_batches(device: str, engine: bool) -> None:
    recipe = BN.replace(bn_memory="set", jitter=0)
    synthesizer = Synthesizer(network(), SPEC, recipe, device=device, engine=engine, precision="float32")
    statistics = SetStatistics("set")
    first = synthesizer.run(LABELS, seed=1, memory=statistics)
    assert statistics.images == 25
    second = synthesizer.run(LABELS, seed=2, memory=statistics)
    assert statistics.images == 50
    images = torch.cat([first.images, second.images]).to(device)
    (layer,) = synthesizer.teacher(images)[1]
    state = statistics.state_dict()
    assert torch.allclose(state["mean"], layer.mean.cpu(), atol=1e-5)
    assert torch.allclose(state["var"], layer.var.cpu(), atol=1e-5)


def test_the_whole_set_comes_closer_than_batches_matched_alone() -> None:
    def distance(recipe: Any) -> float:
        synthesizer = Synthesizer(network(), SPEC, recipe)
        (layer,) = synthesizer.teacher(synthesizer.run(LABELS).images)[1]
        return float((layer.mean - layer.target_mean).norm() + (layer.var - layer.target_var).norm())

    recipe = BN.replace(batch_size=5, ce=5.0, jitter=0, steps=40)
    assert distance(recipe.replace(bn_memory="set")) < 0.9 * distance(recipe)


@pytest.mark.parametrize("memory", ["set", 0.9])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, memory: Any) -> None:
    recipe = BN.replace(bn_memory=memory, steps=10)

    def run(**options: Any) -> tuple[Tensor, dict[str, Any]]:
        statistics = SetStatistics(memory)
        statistics.add(layers_of(torch.randn(4, 6, generator=torch.Generator().manual_seed(0))), 4)
        result = Synthesizer(network(), SPEC, recipe, block=4).run(LABELS, memory=statistics, **options)
        return result.images, statistics.state_dict()

    images, state = run()
    for stop in (8, 14, 20):

        def interrupt(_stage: str, step: int, *_: object, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(checkpoint_dir=tmp_path, progress=interrupt)
        others, other = run(checkpoint_dir=tmp_path)
        assert torch.equal(others, images) and other["images"] == state["images"] == 29
        assert all(torch.equal(other[name], state[name]) for name in ("mean", "var"))


def test_a_network_without_batch_norm_has_nothing_to_remember() -> None:
    recipe = BN.replace(bn_memory="set", bn_optional=True)
    assert Synthesizer(network(batch_norm=False), SPEC, recipe).run(LABELS).summary["absent"] == ["bn"]


def test_statistics_of_smaller_images_are_of_their_run() -> None:
    statistics = SetStatistics("set")
    recipe = BN.replace(bn_memory="set", coarse_steps=(5,), steps=5)
    Synthesizer(network(), SPEC, recipe).run(LABELS, memory=statistics)
    assert statistics.images == 25
