"""The methods that a study compares: named methods of :mod:`exml_fast.continual`, and the paper's baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from exml_fast.continual import (
    METHODS,
    EnsembleAverage,
    Expert,
    Method,
    MinEntropy,
    Oracle,
    ParameterAverage,
    Plan,
    ReBasin,
    RegMean,
    ZipIt,
    plan,
)
from exml_fast.continual.merging import Images, Merged
from exml_fast.continual.scenarios import Predictor
from exml_fast.data import SOURCES, ImageSource
from exml_fast.reproduction.study_settings import Settings, require_fields
from exml_fast.validation import named

__all__ = [
    "BASELINES", "INVERTING", "MERGES", "STRATEGIES", "check_methods", "merge_images", "note_of", "plan_of",
]  # fmt: skip

STRATEGIES = {name: entry.title for name, entry in METHODS.items() if name != "random-images"}
"""Titles of the methods by name; every source of random images has a name of its own here."""
INVERTING = [name for name, entry in METHODS.items() if entry.recipe is not None]
BASELINES: dict[str, Callable[[Iterable[Expert]], Predictor]] = {
    "Oracle": Oracle,
    "Ensemble Avg.": EnsembleAverage,
    "Min. Entropy": MinEntropy,
    "Param. Avg.": ParameterAverage,
}
"""The paper's baselines."""
MERGES: dict[str, Callable[..., Merged]] = {"Re-Basin": ReBasin, "RegMean": RegMean, "ZipIt": ZipIt}
"""Baselines that merge the experts' weights by means of images."""


def plan_of(settings: Settings, strategy: str) -> Plan:
    """A method with all its settings; ValueError for settings that do not fit together.

    A study has one table for all methods: a method is given the settings of the images only if it inverts images.
    """
    entry = _entry(strategy)
    random, pixels = entry.is_random, entry.recipe is not None and not entry.inverts_source
    changes = settings.drawn_inversion if entry.inverts_source else settings.inversion
    inversion = dict(changes) if strategy in INVERTING else {}
    recipe = inversion.pop("recipe", None)
    if strategy != "adaptive-inversion":
        inversion.pop("compete", None)
    calibrated = settings.calibration != "none" and (random or settings.calibration is not None)
    task_known = {"task_labels": True} if settings.scenario == "multi-task" else {}
    return plan(
        strategy,
        variant=settings.variant if pixels and recipe is None else None,
        recipe=recipe if pixels else None,
        inversion=inversion,
        source=settings.photographs if entry.photographs else _source(settings, entry.source),
        calibration=_source(settings, settings.calibration),
        typicality=settings.typicality if calibrated else 0.0,
        background=None if random else _source(settings, settings.background),
        **(settings.random_images if random else task_known | settings.distillation),
    )


def _source(settings: Settings, name: str | None) -> str | ImageSource | None:
    """A source of random images with the study's fields; its name where the study has none for it."""
    if name is None or name not in settings.sources:
        return name
    kind: Any = named("sources", name, SOURCES)
    fields = settings.sources[name]
    require_fields(f"sources: {name}", kind, fields)
    return kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()})


def _entry(strategy: str) -> Method:
    named("strategies", strategy, STRATEGIES)
    return METHODS[strategy]


def note_of(settings: Settings, name: str) -> str:
    """What the images of a method are, and what they use."""
    return plan_of(settings, name).describe_images(Path(settings.auxiliary).name)


def merge_images(settings: Settings) -> Images:
    """Where the baselines that merge weights take images from: a source of random images, or inverted ones."""
    known = {**SOURCES, **{name: None for name in INVERTING if METHODS[name].source is None}}
    source = named("merging", settings.merging, known)
    return plan_of(settings, settings.merging).build().strategy if source is None else source()


def check_methods(settings: Settings) -> None:
    """ValueError for settings that do not fit together, before anything is computed."""
    merge_images(settings)
    if settings.calibration not in (None, "none", *SOURCES):
        raise ValueError(f"calibration must be one of {['none', *SOURCES]}, got {settings.calibration!r}")
    if settings.background is not None:
        named("background", settings.background, SOURCES)
    for name in settings.sources:
        named("sources", name, SOURCES)
    plans = [plan_of(settings, strategy) for strategy in settings.strategies]
    if settings.typicality and not any(plan.calibration for plan in plans):
        raise ValueError(f"typicality must be 0 where no method has a calibration, got {settings.typicality}")
