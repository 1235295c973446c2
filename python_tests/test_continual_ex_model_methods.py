"""Named methods and their settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_experts import quadrants, stream

import exml_fast as xf
from exml_fast.continual import (
    METHODS,
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    DrawnInversion,
    ModelInversion,
    Procedural,
    Replay,
    method,
    plan,
)
from exml_fast.data import DeadLeaves, PenStrokes, Photographs

PHOTOGRAPH = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 4, "buffer_size": 20}


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("model-inversion", ModelInversion, None),
        ("data-impression", DataImpression, None),
        ("adaptive-inversion", AdaptiveInversion, None),
        ("auxiliary-data", AuxiliaryData, torch.rand(30, 1, 32, 32)),
        ("random-images", Procedural, None),
        ("natural-fields", Procedural, None),
        ("dead-leaves", Procedural, None),
        ("pen-strokes", Procedural, None),
        ("photographs", Procedural, None),
        ("inverted-strokes", DrawnInversion, None),
        ("replay", Replay, quadrants()),
    ],
)
def test_every_name_makes_a_method_that_runs(name: str, kind: type, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inverts = METHODS[name].recipe is not None
    changes: dict[str, Any] = {"inversion": {"steps": 2}} if inverts else {}
    changes |= {"source": PHOTOGRAPH} if name == "photographs" else {}
    made = method(name, data=data, seed=3, **QUICK, **changes)
    assert type(made.strategy) is kind and made.seed == 3 and made.config.training.steps == 3
    one = xf.continual.Measured(torch.ones(2), torch.empty(2, 0))
    monkeypatch.setattr(xf.continual.ResponseCalibration, "measure", lambda *_: one)
    result = made.run(stream())
    assert result.expert.classes == (0, 1, 2, 3) and len(result.buffer) <= 20


def test_every_method_is_tested() -> None:
    # pytest adds the attribute, which mypy does not see.
    marks = test_every_name_makes_a_method_that_runs.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(METHODS)


def test_settings_of_random_images_and_of_the_paper() -> None:
    random, paper = plan("random-images", source="dead-leaves"), plan("model-inversion", variant="cifar10")
    assert isinstance(random.source, DeadLeaves) and random.calibration is not None and random.background is None
    assert random.calibration.source == random.source and random.recipe is None
    assert (random.config.targets.name, random.config.loss.name, random.config.lambda_ce) == ("stored", "kl", 0)
    assert paper.config == xf.DistillationConfig() and paper.calibration is None
    assert paper.recipe is not None and paper.recipe.name.startswith("model_inversion/cifar10")
    strokes = plan("inverted-strokes", views=4, background_share=0.5, typicality=0.6, source=PenStrokes())
    assert strokes.background is not None and strokes.background.share == 0.5
    assert strokes.calibration is not None and strokes.calibration.typicality == 0.6
    assert strokes.config.targets.views == 4 and strokes.config.targets.name == "experts"
    none = plan("natural-fields", calibration="none")
    assert none.calibration is None


def test_images_are_described() -> None:
    assert plan("pen-strokes").describe_images().startswith("random images, what is known: ")
    both = plan("model-inversion", background="natural-fields", background_share=0.5, targets="stored")
    assert both.describe_images() == "images inverted from the experts, and random ones, what is known: natural images"
    crops = plan("photographs", source=PHOTOGRAPH)
    assert crops.describe_images() == "random crops, what is known: one photograph"
    two = plan("photographs", source=Photographs([PHOTOGRAPH, PHOTOGRAPH], rotation=0))
    assert two.describe_images().endswith("2 photographs") and two.calibration is not None
    assert two.calibration.source is two.source and two.config == plan("random-images").config
    assert plan("auxiliary-data").describe_images("photographs") == "images of photographs"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model-inversionn", {}, "name must be one of .*did you mean 'model-inversion'"),
        ("model-inversion", {"step": 3}, "unknown field 'step'.*did you mean 'steps'"),
        ("model-inversion", {"inversion": {"step": 3}}, "unknown field 'step'"),
        ("model-inversion", {"recipe": "dream"}, "recipe must be one of"),
        ("model-inversion", {"source": "dead-leaves"}, "source must be None: model-inversion draws no random images"),
        ("model-inversion", {"typicality": 0.5}, "typicality must be 0 for model-inversion without a calibration"),
        ("model-inversion", {"calibration": "noise"}, "calibration must be one of"),
        ("model-inversion", {"background": "dead-leaves"}, "got 'dead-leaves' and 0.0 for model-inversion"),
        ("model-inversion", {"background_share": 0.5, "targets": "stored"}, "got None and 0.5 for model-inversion"),
        ("random-images", {"source": "leaves"}, "source must be one of"),
        ("photographs", {}, "source must be files, folders or tensors of photographs for photographs, got None"),
        ("photographs", {"source": "nowhere.jpg"}, "photographs: there is no file nowhere.jpg"),
        ("random-images", {"renormalise": True}, "renormalise needs images of experts"),
        ("random-images", {"targets": "live", "combine": "per_sample"}, "combine must be 'per_unit'"),
        ("model-inversion", {"inversion": {"compete": 2.0}}, "compete must be 0 for model-inversion: use adaptive-inv"),
        ("model-inversion", {"variant": "cifar100"}, "variant must be one of .*did you mean 'cifar10'"),
        ("model-inversion", {"variant": "mnist", "recipe": "deep_inversion"}, "variant must be None with a rec"),
        ("random-images", {"variant": "cifar10"}, "variant must be None: random-images has no variants"),
        ("random-images", {"recipe": "model_inversion"}, "recipe must be None: random-images inverts no pixels"),
        ("replay", {"inversion": {"steps": 3}}, "inversion must be None: replay inverts no images"),
        ("inverted-strokes", {"recipe": "model_inversion"}, "recipe must be None: inverted-strokes inverts no pixels"),
        ("inverted-strokes", {"variant": "mnist"}, "variant must be None: inverted-strokes has no variants"),
        ("adaptive-inversion", {"inversion": {"compete": 0}}, "compete must be positive for adaptive-inversion, got 0"),
    ],
)
def test_mistakes_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(name, **settings)


def test_data_that_are_missing_are_named() -> None:
    for name in ("auxiliary-data", "replay"):
        with pytest.raises(ValueError, match=f"data must be .* for {name}, got None"):
            method(name)
    with pytest.raises(ValueError, match="data must be None: model-inversion uses no data"):
        method("model-inversion", data=torch.rand(3, 1, 32, 32))
    with pytest.raises(ValueError, match="source must be a Parametrisation"):
        method("inverted-strokes", source="natural-fields")
