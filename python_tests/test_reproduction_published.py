"""Carta 2022's settings and figures are in the presets."""

from __future__ import annotations

from typing import Any

import pytest

from exml_fast.continual import DistillationConfig
from exml_fast.data import Augmentation
from exml_fast.models import create
from exml_fast.reproduction import published
from exml_fast.reproduction.methods import plan_of
from exml_fast.reproduction.preset import names
from exml_fast.reproduction.runner import load_preset
from exml_fast.reproduction.stream import learn_preset, settings_of

CARTA = [name for name in names() if name.startswith("carta2022/") and load_preset(name)["task"] == "learn"]


@pytest.mark.parametrize("name", CARTA)
def test_presets_are_as_published(name: str) -> None:
    settings = settings_of(learn_preset(name))
    found = published.published(settings.data, settings.scenario)
    planned = plan_of(settings, "model-inversion")
    config = planned.config
    assert found is not None and config.lambda_ce == 1 and planned.recipe is not None
    assert (config.training.steps, config.buffer_size) == (found.distillation_steps, found.buffer_size)
    assert (settings.experts.epochs, settings.experts.architecture) == (found.epochs, found.architecture)
    assert planned.recipe.optimisation.steps == found.inversion_steps
    arguments = {"in_channels": 1} if found.architecture == "lenet5" else {}
    assert create(found.architecture, num_classes=50, **arguments) is not None


def test_the_papers_figures_are_in_the_presets() -> None:
    paper = {(data, scenario): found.paper for (data, scenario), found in published._all().items()}
    assert sum(map(len, paper.values())) == 44 and len(paper) == 8
    assert paper["mnist", "new-classes"]["Model Inversion"] == 43.23
    assert paper["cifar10", "multi-task"]["Param. Avg."] == 51.85
    assert paper["core50", "new-instances"]["Ensemble Avg."] == 69.92
    assert published.published("digits", "joint") is None
    assert published.published_lengths("digits") == published.published_lengths("mnist")


def test_presets_hold_the_appendix() -> None:
    assert "replay" not in settings_of({"strategies": ["all"]}).strategies
    nc, mt, ni = (learn_preset(f"carta2022/{name}") for name in ("mnist-nc", "cifar10-mt", "core50-ni"))
    assert plan_of(settings_of(nc), "model-inversion").config == DistillationConfig()
    assert (nc["experts"]["lr"], nc["experts"]["epochs"], nc["classes_per_step"]) == (0.01, 20, [2])
    assert (mt["distillation"]["lr"], mt["scenario"]) == (0.1, "multi-task")
    assert mt["experts"]["architecture"] == "slim_resnet18"
    assert (ni["parts"], ni["experts"]["batch_size"], ni["experts"]["lr"]) == (8, 128, 1e-3)
    assert ni["distillation"]["batch_size"] == 10
    assert len(CARTA) == 8


@pytest.mark.parametrize(
    ("data", "generation", "distillation"),
    [
        ("mnist", {"jitter": 4, "flip": False, "rotate": 0.0, "crop": (1.0, 1.0)}, Augmentation(shift=4)),
        (
            "cifar10",
            {"jitter": 0, "flip": True, "rotate": 15.0, "crop": (0.8, 1.0)},
            Augmentation(shift=2, scale=0.1, flip=0.5, rotation=15.0),
        ),
        (
            "core50",
            {"jitter": 4, "flip": True, "rotate": 15.0, "crop": (1.0, 1.0)},
            Augmentation(shift=4, flip=0.5, rotation=15.0),
        ),
    ],
)
def test_images_are_augmented_as_published(data: str, generation: dict[str, Any], distillation: Augmentation) -> None:
    """Of the published code: crops of a padded image, or of 0.8 to 1 of the area (CIFAR-10); flips; 15 degrees."""
    presets = [learn_preset(name) for name in CARTA if f"/{data}-" in name]
    assert presets
    for preset in presets:
        settings = settings_of(preset)
        for strategy in ("model-inversion", "data-impression"):
            assert plan_of(settings, strategy).config.training.augmentation == distillation
            recipe = plan_of(settings, strategy).recipe
            assert recipe is not None and recipe == recipe.replace(**generation)
