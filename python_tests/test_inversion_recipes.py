from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from exml_fast.inversion import recipes
from exml_fast.inversion.recipes import Recipe


def test_papers_numbers() -> None:
    carta = recipes.get("model_inversion/mnist")
    assert (carta.lr, carta.steps, carta.temperature, carta.l2, carta.blur, carta.bn) == (0.01, 3000, 2, 1e-3, 1e-3, 1)
    assert carta.norm_squared and carta.bn_distance == "squared" and carta.bn_moment == "std" and carta.bn_optional
    data = recipes.get("data_impressions/mnist")
    assert (data.betas, data.temperature, data.steps, data.similarity_minmax) == ((10.0,), 20, 3000, False)
    assert carta.stop_confidence == data.stop_confidence == 0.99
    assert recipes.get("model_inversion").stop_confidence is None
    nayak = recipes.get("data_impressions/nayak")
    assert (nayak.betas, nayak.temperature, nayak.steps, nayak.lr, nayak.batch_size) == ((1, 0.1), 20, 1500, 1e-3, 100)
    yin = recipes.get("deep_inversion/cifar10")
    assert (yin.lr, yin.steps, yin.batch_size, yin.tv_l2, yin.l2, yin.bn) == (0.05, 2000, 256, 2.5e-5, 3e-8, 1)
    imagenet = recipes.get("deep_inversion/imagenet")
    assert (imagenet.lr, imagenet.steps, imagenet.tv_l2, imagenet.bn, imagenet.jitter) == (0.05, 20000, 1e-4, 1e-2, 29)
    assert recipes.suited((32, 32)) == recipes.get("deep_inversion")
    assert recipes.suited((32, 32), statistics=False) == recipes.get("model_inversion")
    large = recipes.suited((224, 224), adaptive=True)
    assert large == recipes.get("adaptive_deep_inversion/imagenet-transferable")
    assert recipes.suited((224, 224), statistics=False, adaptive=True) == large.replace(bn=0.0)
    many, transfer = (
        recipes.get("deep_inversion/imagenet-multiresolution"),
        recipes.get("deep_inversion/imagenet-transfer"),
    )
    assert (many.coarse_steps, many.steps, many.batch_size, many.lr) == ((2000,), 1000, 84, 0.2)
    assert (many.tv_l2, many.l2, many.bn, many.clip) == (1e-4, 0, 1e-2, "valid") and transfer.l2 == 0
    assert (transfer.steps, transfer.lr, transfer.tv_l2, transfer.bn, transfer.clip) == (2000, 0.2, 1e-4, 1e-2, "valid")
    assert [recipes.get(f"adaptive_deep_inversion/{name}").compete for name in ("cifar10", "imagenet")] == [10, 0.2]
    assert recipes.get("adaptive_deep_inversion/cifar10").bn == yin.bn
    dream = recipes.get("deep_dream/imagenet")
    assert dream.bn == 0 and (dream.tv_l2, dream.l2, dream.steps) == (1e-4, 1e-2, 20000)
    assert recipes.get("class_impressions").targets == "hard"
    assert recipes.get("noise").bn == recipes.get("noise").tv_l2 == 0


def test_every_recipe_has_its_name_and_source_and_survives_json() -> None:
    for name in recipes.names():
        recipe = recipes.get(name)
        assert recipe.name == name and recipe.source
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert len(recipe.learning_rates()) == recipe.steps


def test_coarser_recipes_halve_the_jitter_and_take_their_steps() -> None:
    recipe = Recipe("r", steps=7, coarse_steps=(3, 5), jitter=30, l2=0.5)
    assert recipe.coarser().l2 == 0.5 and recipe.replace(norm_squared=True).coarser().l2 == 2.0
    assert (recipe.coarser().steps, recipe.coarser().coarse_steps, recipe.coarser().jitter) == (5, (3,), 15)
    assert (recipe.coarser().coarser().steps, recipe.coarser().coarser().coarse_steps) == (3, ())
    with pytest.raises(ValueError, match="stop_confidence must be None with coarse_steps"):
        recipe.replace(stop_confidence=0.9)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"deep_inversion/cifar10.*noise.*deep_inversionn.*mean 'deep_inversion'"):
        recipes.get("deep_inversionn")
    recipe = Recipe("mine")
    assert recipes.get(recipe) is recipe


def test_replace_names_unknown_fields() -> None:
    recipe = recipes.get("deep_inversion")
    assert recipe.replace(steps=3).steps == 3
    with pytest.raises(ValueError, match=r"unknown field 'stepps' \(did you mean 'steps'\?\)"):
        recipe.replace(stepps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("temperature", -1),
        ("bn", -0.1),
        ("l2", float("inf")),
        ("adam_betas", (0.9,)),
        ("adam_betas", (0.9, 1.0)),
        ("betas", ()),
        ("betas", (0.0,)),
        ("betas", 1.0),
        ("targets", "soft"),
        ("label", "none"),
        ("clip", "pixels"),
        ("clip", -3.0),
        ("crop", (0.9, 0.8)),
        ("blur_kernel", 4),
        ("stop_confidence", 1.5),
        ("jitter", -1),
        ("coarse_steps", (0,)),
        ("coarse_steps", (2.5,)),
        ("compete", -1.0),
        ("compete_temperature", 0.0),
        ("flip", 1),
        ("bn_distance", "l3"),
        ("border", "reflect"),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}(\[[01]\])? (must be|is missing)"):
        Recipe("r").replace(**{field: value})


def test_a_recipe_needs_a_term() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Recipe("r", ce=0.0)


def test_learning_rates() -> None:
    assert torch.equal(Recipe("r", steps=3, lr=0.5).learning_rates(), torch.full((3,), 0.5).double())
    rates = Recipe("r", steps=30, lr=1.0, warmup=10, decay="cosine").learning_rates()
    assert torch.allclose(rates[:10], torch.arange(1, 11).double() / 10)
    assert rates[10] == 1 and abs(rates[20] - 0.5) < 1e-9 and rates[29] < 0.01
    assert (rates[10:].diff() < 0).all()
