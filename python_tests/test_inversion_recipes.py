from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from exml_fast.inversion import recipes


def says(name: str, **expected: object) -> None:
    flat = recipes.get(name).to_dict()
    assert {field: flat[field] for field in expected} == expected


def test_papers_numbers() -> None:
    says("model_inversion/mnist", lr=0.01, steps=3000, temperature=2, l2=1e-3, blur=1e-3, norm_squared=True)
    says("model_inversion/mnist", bn=1, bn_distance="squared", bn_moment="std", bn_optional=True, stop_confidence=0.99)
    says("data_impressions/mnist", betas=[10], temperature=20, steps=3000, similarity_minmax=False)
    says("data_impressions/mnist", stop_confidence=0.99)
    says("model_inversion", stop_confidence=None)
    says("data_impressions/nayak", betas=[1, 0.1], temperature=20, steps=1500, lr=1e-3, batch_size=100)
    says("deep_inversion/cifar10", lr=0.05, steps=2000, batch_size=256, tv_l2=2.5e-5, l2=3e-8, bn=1)
    says("deep_inversion/imagenet", lr=0.05, steps=20000, tv_l2=1e-4, bn=1e-2, jitter=29)
    assert recipes.suited((32, 32)) == recipes.get("deep_inversion")
    assert recipes.suited((32, 32), statistics=False) == recipes.get("model_inversion")
    large = recipes.suited((224, 224), adaptive=True)
    assert large == recipes.get("adaptive_deep_inversion/imagenet-transferable")
    assert recipes.suited((224, 224), statistics=False, adaptive=True) == large.replace(bn=0.0)
    says("deep_inversion/imagenet-multiresolution", coarse_steps=[2000], steps=1000, batch_size=84, lr=0.2)
    says("deep_inversion/imagenet-multiresolution", tv_l2=1e-4, l2=0, bn=1e-2, clip="valid")
    says("deep_inversion/imagenet-transfer", l2=0, steps=2000, lr=0.2, tv_l2=1e-4, bn=1e-2, clip="valid")
    says("adaptive_deep_inversion/cifar10", compete=10, bn=1)
    says("adaptive_deep_inversion/imagenet", compete=0.2)
    says("deep_dream/imagenet", bn=0, tv_l2=1e-4, l2=1e-2, steps=20000)
    says("class_impressions", targets="hard")
    says("noise", bn=0, tv_l2=0)


def test_quick_recipes_differ_in_steps_and_learning_rate_alone() -> None:
    for data in ("cifar10", "imagenet"):
        quick, full = (recipes.get(f"deep_inversion/{data}-{kind}") for kind in ("quick", "transferable"))
        assert quick.optimisation.steps < full.optimisation.steps
        changed = dataclasses.replace(quick.optimisation, steps=1, coarse_steps=(), lr=1.0)
        assert changed == dataclasses.replace(full.optimisation, steps=1, coarse_steps=(), lr=1.0)
        for group in ("pixels", "classification", "priors", "matching", "competition", "augmentation"):
            assert getattr(quick, group) == getattr(full, group)


def test_every_recipe_has_its_name_and_source_and_survives_json() -> None:
    for name in recipes.names():
        recipe = recipes.get(name)
        assert recipe.name == name and recipe.source
        assert recipes.new(**json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert len(recipe.optimisation.learning_rates()) == recipe.optimisation.steps


def test_coarser_recipes_halve_the_jitter_and_take_their_steps() -> None:
    recipe = recipes.new("r", steps=7, coarse_steps=(3, 5), jitter=30, l2=0.5)
    assert recipe.coarser().priors.l2 == 0.5 and recipe.replace(norm_squared=True).coarser().priors.l2 == 2.0
    half, quarter = recipe.coarser(), recipe.coarser().coarser()
    assert (half.optimisation.steps, half.optimisation.coarse_steps, half.augmentation.jitter) == (5, (3,), 15)
    assert (quarter.optimisation.steps, quarter.optimisation.coarse_steps) == (3, ())
    with pytest.raises(ValueError, match="stop_confidence must be None with coarse_steps"):
        recipe.replace(stop_confidence=0.9)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"one of 34 names, got 'deep_inversionn' \(did you mean 'deep_inversion'"):
        recipes.get("deep_inversionn")
    recipe = recipes.new("mine")
    assert recipes.get(recipe) is recipe


def test_replace_names_unknown_fields() -> None:
    recipe = recipes.get("deep_inversion")
    assert recipe.replace(steps=3).optimisation.steps == 3
    with pytest.raises(ValueError, match=r"unknown field 'stepps' \(did you mean 'steps'\?\)"):
        recipe.replace(stepps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.optimisation.steps = 3  # type: ignore[misc]


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
        recipes.new("r").replace(**{field: value})


def test_a_recipe_needs_a_term() -> None:
    with pytest.raises(ValueError, match="at least one"):
        recipes.new("r", ce=0.0)


def test_learning_rates() -> None:
    assert torch.equal(recipes.new("r", steps=3, lr=0.5).optimisation.learning_rates(), torch.full((3,), 0.5).double())
    rates = recipes.new("r", steps=30, lr=1.0, warmup=10, decay="cosine").optimisation.learning_rates()
    assert torch.allclose(rates[:10], torch.arange(1, 11).double() / 10)
    assert rates[10] == 1 and abs(rates[20] - 0.5) < 1e-9 and rates[29] < 0.01
    assert (rates[10:].diff() < 0).all()


def test_other_steps_of_a_user_scale_the_coarse_steps() -> None:
    recipe = recipes.get("deep_inversion/imagenet-transferable")
    assert (recipe.optimisation.coarse_steps, recipe.optimisation.steps) == ((600,), 200)
    assert recipe.overridden(steps=5).optimisation.coarse_steps == (15,)
    assert recipe.overridden(steps=1, lr=0.1) == recipe.replace(steps=1, coarse_steps=(3,), lr=0.1)
    assert recipe.overridden(steps=5, coarse_steps=(7,)).optimisation.coarse_steps == (7,)
    assert recipe.overridden(lr=0.1) == recipe.replace(lr=0.1)
    assert recipe.replace(steps=5).optimisation.coarse_steps == (600,)
    several = recipes.new("r", steps=100, coarse_steps=(10, 50)).overridden(steps=3).optimisation.coarse_steps
    assert several == (1, 2)
