"""The methods that a study compares: strategies by name, as objects of :mod:`exml_fast.continual`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from exml_fast.continual import (
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    DistillationConfig,
    DrawnInversion,
    EnsembleAverage,
    Expert,
    MinEntropy,
    ModelInversion,
    Oracle,
    ParameterAverage,
    Procedural,
    Replay,
    ResponseCalibration,
    Strategy,
)
from exml_fast.continual.scenarios import Predictor
from exml_fast.data import SOURCES, ImageSource, PenStrokes
from exml_fast.inversion import recipes
from exml_fast.reproduction.study_settings import Settings, require_fields
from exml_fast.validation import named

__all__ = [
    "BASELINES", "BEFORE_BACKGROUND", "DRAWN", "RANDOM", "RECIPES", "STRATEGIES", "background_of", "calibration_of",
    "check_methods", "config_of", "note_of", "recipe_of", "strategy_of",
]  # fmt: skip

STRATEGIES = {
    "model-inversion": "Model Inversion",
    "data-impression": "Data Impression",
    "auxiliary-data": "Auxiliary Data",
    "adaptive-inversion": "Adaptive Inversion",
    "natural-fields": "Natural Fields",
    "dead-leaves": "Dead Leaves",
    "pen-strokes": "Pen Strokes",
    "inverted-strokes": "Inverted Strokes",
    "replay": "Replay",
}
RECIPES = {
    "model-inversion": "model_inversion",
    "data-impression": "data_impressions",
    "adaptive-inversion": "model_inversion",
    "inverted-strokes": "drawn_inversion",
}
# Strategies that invert the parameters of drawings, and put random drawings behind the inverted ones.
DRAWN = {"inverted-strokes": PenStrokes}
# Strategies with random images, and the source of these.
RANDOM = SOURCES | DRAWN
# How an ex-model learns from random images: from calibrated logits that are kept with the images (docs/ex_model.md).
RANDOM_IMAGES: dict[str, Any] = {
    "iterations": 2000, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "onecycle", "loss": "kl",
    "lambda_ce": 0.0, "targets": "stored", "augmentation": {"shift": 0},
}  # fmt: skip
BEFORE_BACKGROUND = RANDOM_IMAGES | {"targets": "experts", "background_share": 0.8, "renormalise": True}
BASELINES: dict[str, Callable[[Iterable[Expert]], Predictor]] = {
    "Oracle": Oracle,
    "Ensemble Avg.": EnsembleAverage,
    "Min. Entropy": MinEntropy,
    "Param. Avg.": ParameterAverage,
}


def recipe_of(settings: Settings, strategy: str) -> recipes.Recipe:
    """The recipe of an inverting strategy."""
    changes = dict(settings.inversion)
    own = changes.pop("recipe", None)
    name = RECIPES[strategy]
    if strategy not in DRAWN:
        name = own or f"{name}/{settings.variant}"
    recipe = recipes.get(name).replace(**changes)
    return recipe if strategy == "adaptive-inversion" else recipe.replace(compete=0.0)


def config_of(settings: Settings, strategy: str) -> DistillationConfig:
    """How the ex-model is distilled with a strategy."""
    if strategy in RANDOM:
        values = (BEFORE_BACKGROUND if strategy in DRAWN else RANDOM_IMAGES) | settings.random_images
    else:
        values = ({"task_labels": True} if settings.scenario == "multi-task" else {}) | settings.distillation
    require_fields("distillation", DistillationConfig, values)
    return DistillationConfig.from_dict(values)


def calibration_of(settings: Settings, strategy: str) -> ResponseCalibration | None:
    """On which images the experts' logits are calibrated with a strategy."""
    source = RANDOM.get(settings.calibration or strategy)
    return None if source is None else ResponseCalibration(source(), typicality=settings.typicality)


def background_of(settings: Settings, strategy: str) -> ImageSource | None:
    """The source of the random images that are mixed with a strategy's images."""
    if strategy in DRAWN:
        return DRAWN[strategy]()
    return None if settings.background is None or strategy in SOURCES else SOURCES[settings.background]()


def strategy_of(
    settings: Settings, name: str, replay: Callable[[], Replay], auxiliary: Callable[[], AuxiliaryData]
) -> Strategy:
    """The strategy of a name; ``replay`` and ``auxiliary`` make the strategies that need data."""
    if name == "replay":
        return replay()
    if name in SOURCES:
        return Procedural(SOURCES[name]())
    if name in DRAWN:
        return DrawnInversion(DRAWN[name](), recipe_of(settings, name))
    inverting = {
        "model-inversion": ModelInversion, "adaptive-inversion": AdaptiveInversion, "data-impression": DataImpression,
    }  # fmt: skip
    if name in inverting:
        return inverting[name](recipe_of(settings, name))
    return auxiliary()


def note_of(settings: Settings, name: str) -> str:
    """What the images of a strategy are, and what they use."""
    if name in SOURCES:
        return f"random images, what is known: {SOURCES[name].domain}"
    if name in DRAWN:
        return f"random images and inverted ones of their kind, what is known: {DRAWN[name].domain}"
    if name == "replay":
        shown = "real images of the experts' classes"
    elif name in RECIPES:
        shown = "images inverted from the experts"
    else:
        shown = f"images of {Path(settings.auxiliary).name}"
    background = background_of(settings, name)
    return shown if background is None else f"{shown}, and random ones, what is known: {background.domain}"


def check_methods(settings: Settings) -> None:
    """ValueError for settings that do not fit together, before anything is computed."""
    for strategy in settings.strategies:
        named("strategies", strategy, STRATEGIES)
    if settings.calibration not in (None, "none", *SOURCES):
        raise ValueError(f"calibration must be one of {['none', *SOURCES]}, got {settings.calibration!r}")
    if settings.background is not None:
        named("background", settings.background, SOURCES)
    for strategy in settings.strategies:
        share = config_of(settings, strategy).background_share
        if (background_of(settings, strategy) is not None) != (share > 0):
            raise ValueError(
                "background must be a source if and only if background_share is positive, "
                f"got {settings.background!r} and {share} for {strategy}"
            )
        if settings.typicality and calibration_of(settings, strategy) is None:
            raise ValueError(
                f"typicality needs a calibration, which {strategy} does not have, got {settings.typicality!r}"
            )
        if strategy in RECIPES:
            recipe_of(settings, strategy)
    compete = settings.inversion.get("compete", 1)
    if "adaptive-inversion" in settings.strategies and not compete > 0:
        raise ValueError(f"compete must be positive for adaptive-inversion, got {compete!r}")
