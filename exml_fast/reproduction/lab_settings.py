"""The tables of presets about one teacher and its impressions, read strictly.

A table holds its own fields and, beside them, those of the class that it configures: ``[distillation]`` has
``temperature`` and also ``steps`` and ``lr`` of :class:`Training`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field

from exml_fast.data import Augmentation
from exml_fast.inversion import Recipe, recipes
from exml_fast.reproduction.preset import NOTES, Preset
from exml_fast.training import Training
from exml_fast.transfer.perturbation import EPSILON
from exml_fast.transfer.robustness import Attack
from exml_fast.transfer.zskd import TEMPERATURE
from exml_fast.validation import (
    Count,
    Flat,
    Natural,
    NonNegative,
    Positive,
    Precision,
    Share,
    field_names,
    flat_names,
    from_flat,
    from_mapping,
    nearest,
    settings,
)

__all__ = [
    "AdaptationTable", "AttackTable", "DistillationTable", "ImpressionsTable", "LabSettings", "NetworkTable",
    "PerturbationTable", "RehearsalTable", "SweepTable", "TeacherTable", "read_settings", "require_package",
]  # fmt: skip

T = TypeVar("T")
Bound = Annotated[float, Field(gt=0, le=1)]


@settings
class NetworkTable:
    """A network by name, with arguments of its constructor."""

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)


@settings
class TeacherTable:
    """A network and its training, or the folder of an expert that is trained already."""

    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    expert: str | None = None
    training: Flat[Training] = field(default_factory=Training)

    def check(self) -> None:
        if self.architecture is None and self.expert is None:
            raise ValueError("architecture is missing")


@settings
class ImpressionsTable:
    """Synthetic images: how many, and the recipe with its changed fields."""

    count: Count
    recipe: str = "data_impressions/nayak"
    precision: Precision = "auto"
    changes: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if compete := self.changed_recipe().competition.compete:
            raise ValueError(f"compete must be 0, as no student competes here, got {compete}")

    def changed_recipe(self) -> Recipe:
        """The recipe with the table's changes."""
        return recipes.get(self.recipe).replace(**self.changes)


@settings
class DistillationTable:
    """How students learn from impressions."""

    temperature: Positive = TEMPERATURE
    training: Flat[Training] = field(default_factory=Training)


@settings
class SweepTable:
    """Sizes of the transfer set for Figures 3 and 4, and the steps of each student."""

    sizes: tuple[Count, ...]
    steps: Count


@settings
class AttackTable:
    """The attack that is measured, and those under which the robust teacher and one more student are trained."""

    attack: Attack
    training: Attack
    distillation: Attack | None = None
    training_steps: Count | None = None
    test_images: Count | None = None


@settings
class AdaptationTable:
    """Adversarial adaptation to ``target``; ``tsne`` images of each kind are drawn."""

    target: str
    source_images: Count | None = None
    target_images: Count | None = None
    discriminator_lr: Positive | None = None
    tsne: Natural = 0
    training: Flat[Training] = field(default_factory=Training)


@settings
class RehearsalTable:
    """Our adaptation; a weight of None takes the default of :func:`exml_fast.transfer.adapt_by_rehearsal`."""

    information: NonNegative | None = None
    consistency: NonNegative | None = None
    confidence: Share | None = None
    training: Flat[Training] = field(default_factory=Training)

    def weights(self) -> dict[str, float]:
        """The weights that the table gives."""
        given = {name: getattr(self, name) for name in ("information", "consistency", "confidence")}
        return {name: value for name, value in given.items() if value is not None}


@settings
class PerturbationTable:
    """Universal perturbations with bound ``epsilon``, and with the bounds ``epsilons`` too."""

    epsilon: Bound = EPSILON
    epsilons: tuple[Bound, ...] = ()
    clamp: bool = True
    samples: Count = 10
    diversity: NonNegative = 1.0
    class_impressions: bool = False
    real_images: bool = False
    training: Flat[Training] = field(default_factory=Training)


class LabSettings(Protocol):
    """What all presets of :class:`exml_fast.reproduction.lab.Lab` have."""

    @property
    def data(self) -> str: ...
    @property
    def teacher(self) -> TeacherTable: ...
    @property
    def impressions(self) -> ImpressionsTable: ...


def read_settings(kind: type[T], preset: Preset) -> T:
    """The settings in a preset; ValueError for an unknown name, a wrong type, or a value out of bounds."""
    values = {name: value for name, value in preset.items() if name not in ("task", *NOTES)}
    known = field_names(kind)
    for name in values:
        if name not in known:
            task = preset["task"]
            expected = f"expected one of {', '.join(known)}"
            raise ValueError(f"preset: {name!r} is not known to task {task!r}{nearest(name, known)}; {expected}")
    return from_mapping(kind, {n: READERS[n](v) if n in READERS else v for n, v in values.items()}, "preset")


def require_package(module: str, extra: str, package: str) -> None:
    """ImportError that names the extra unless ``module`` is installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"this needs {package}: pip install 'exml_fast[{extra}]'")


def _read(name: str, kind: type[T]) -> Callable[[Any], T]:
    """A reader of table ``name``; fields of :class:`Training` stand beside those of ``kind``."""

    def read(table: Any) -> T:
        if "augmentation" not in flat_names(kind) or not isinstance(table, Mapping) or "augmentation" not in table:
            return from_flat(kind, table, name)
        where, given = f"{name}.augmentation", table["augmentation"]
        _require_known(where, given, field_names(Augmentation))
        augmentation = from_mapping(Augmentation, given, where)
        return from_flat(kind, {**table, "augmentation": augmentation}, name)

    return read


def _read_teacher(table: Any) -> TeacherTable:
    if isinstance(table, Mapping) and "expert" in table and len(table) > 1:
        others = ", ".join(name for name in table if name != "expert")
        raise ValueError(f"teacher.expert is a trained network: leave out {others}")
    return _read("teacher", TeacherTable)(table)


def _read_impressions(table: Any) -> ImpressionsTable:
    own = [name for name in field_names(ImpressionsTable) if name != "changes"]
    _require_known("impressions", table, [*own, *flat_names(Recipe)])
    changes = {name: value for name, value in table.items() if name not in own}
    return from_mapping(
        ImpressionsTable, {**{n: table[n] for n in own if n in table}, "changes": changes}, "impressions"
    )


def _read_attack(table: Any) -> AttackTable:
    base, own = field_names(Attack), [name for name in field_names(AttackTable) if name != "attack"]
    _require_known("attack", table, [*own, *base])
    common = {name: table[name] for name in base if name in table}
    values: dict[str, Any] = {name: table[name] for name in own if name in table}
    values["attack"] = from_mapping(Attack, common, "attack")
    for part in ("training", "distillation"):
        if part in values or part == "training":
            changes = values.get(part, {})
            _require_known(f"attack.{part}", changes, base)
            values[part] = from_mapping(Attack, {**common, **changes}, f"attack.{part}")
    return from_mapping(AttackTable, values, "attack")


def _require_known(name: str, table: Any, known: list[str]) -> None:
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} must be a table of {', '.join(known)}, got {table!r}")
    for key in table:
        if key not in known:
            raise ValueError(f"{name}: unknown field {key!r}{nearest(key, known)}; expected one of {', '.join(known)}")


READERS: dict[str, Callable[[Any], Any]] = {
    "teacher": _read_teacher,
    "student": _read("student", NetworkTable),
    "impressions": _read_impressions,
    "distillation": _read("distillation", DistillationTable),
    "sweep": _read("sweep", SweepTable),
    "attack": _read_attack,
    "adaptation": _read("adaptation", AdaptationTable),
    "rehearsal": _read("rehearsal", RehearsalTable),
    "perturbation": _read("perturbation", PerturbationTable),
}
