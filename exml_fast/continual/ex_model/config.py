"""How an ex-model is distilled (Carta 2022, sec. 3): training, targets, loss, buffer and post-processing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from exml_fast.continual.ex_model.losses import Divergence, Loss, SquaredError
from exml_fast.continual.ex_model.postprocessing import Align, Debias, Renormalise, Step
from exml_fast.continual.ex_model.targets import (
    BlendedTargets,
    ExpertTargets,
    FixedTargets,
    LiveTargets,
    StoredTargets,
    Targets,
)
from exml_fast.data import Augmentation, ImageSource
from exml_fast.training import Training
from exml_fast.validation import (
    Count,
    NonNegative,
    field_names,
    from_mapping,
    nearest,
    require,
    settings,
    to_dict,
)

__all__ = ["Background", "DistillationConfig"]

KINDS: dict[str, dict[str, type[Any]]] = {
    "targets": {kind.name: kind for kind in (LiveTargets, BlendedTargets, FixedTargets, StoredTargets, ExpertTargets)},
    "loss": {kind.name: kind for kind in (SquaredError, Divergence)},
}
"""Parts of a configuration of which there are several kinds, by name."""
OWN = ("buffer_size", "lambda_ce", "init_from_first", "reset")


TRAINING = Training(
    steps=30000,
    batch_size=32,
    optimizer="sgd",
    lr=0.01,
    momentum=0.0,
    schedule="constant",
    augmentation=Augmentation(shift=4),
)
"""Carta 2022, App. B.1 (MNIST)."""


@dataclasses.dataclass(frozen=True)
class Background:
    """Random images that fill a share of the buffer at the first expert; every expert sees all of them.

    They have no label: their cross-entropy is 0, and they count in its mean. They need targets that are kept.

    Attributes:
        source: where they come from; they are kept in memory.
        share: of the buffer, more than 0 and less than 1.
    """

    source: ImageSource
    share: float

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        require(number and 0 < self.share < 1, "background_share", "more than 0 and less than 1", self.share)

    def describe(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.source.describe(), "share": self.share}


@settings
class DistillationConfig:
    """How an ex-model is distilled. :meth:`from_dict` reads the fields of all parts from one flat table.

    Attributes:
        training: the gradient steps for each expert. Blends of images are asked for by :class:`BlendedTargets`.
        targets: where targets come from (Eq. 6 to 8).
        loss: the distance to the targets (Eq. 9).
        lambda_ce: weight of the cross-entropy in Eq. 10.
        buffer_size: N of Alg. 1.
        postprocessing: corrections of the ex-model after each expert, in order.
        init_from_first: the ex-model becomes a copy of the first expert (and is not distilled from it) if both
            have the same architecture, arguments and units.
        reset: start each expert from the ex-model's initial weights.
    """

    training: Training = TRAINING
    targets: Targets = dataclasses.field(default_factory=LiveTargets)
    loss: Loss = dataclasses.field(default_factory=SquaredError)
    lambda_ce: NonNegative = 1.0
    buffer_size: Count = 5000
    postprocessing: tuple[Step, ...] = ()
    init_from_first: bool = False
    reset: bool = False

    def check(self) -> None:
        """Rules between the parts."""
        require(self.training.mixup == 0, "training.mixup", "0: use BlendedTargets", self.training.mixup)
        if self.targets.mixup:
            require(
                self.lambda_ce == 0, "lambda_ce", "0 with blended targets, for a blend has no label", self.lambda_ce
            )
        if self.targets.task_labels and any(isinstance(step, Align) for step in self.postprocessing):
            raise ValueError("align must be False with task_labels: every task has a head of its own")

    def require_fit(self, background: Background | None, once: bool) -> None:
        """ValueError if the configuration does not go with a background, or with random images alone (``once``)."""
        targets = self.targets
        if background is not None:
            require(targets.keeps, "targets", "'stored' or 'experts' with a background", targets.name)
            if targets.task_labels:
                raise ValueError("task_labels must be False with a background: random images belong to no task")
        elif any(isinstance(step, Debias) for step in self.postprocessing):
            raise ValueError("debias needs a background, random images of no class")
        if once and (targets.task_labels or targets.combine != "per_unit"):
            raise ValueError(
                "random images belong to no class or task: combine must be 'per_unit' and task_labels False, "
                f"got {targets.combine!r} and {targets.task_labels}"
            )
        if once and any(isinstance(step, Renormalise) for step in self.postprocessing):
            raise ValueError("renormalise needs images of experts, not random ones alone")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, all in one table; "targets" and "loss" are names."""
        steps = {type(step): step for step in self.postprocessing}
        debias = steps.get(Debias)
        return {
            **{name: value for name, value in to_dict(self.training).items() if name != "mixup"},
            "targets": self.targets.name,
            **to_dict(self.targets),
            "loss": self.loss.name,
            **to_dict(self.loss),
            "lambda_ce": self.lambda_ce,
            "buffer_size": self.buffer_size,
            "renormalise": Renormalise in steps,
            "align": Align in steps,
            "debias": debias.share if isinstance(debias, Debias) else 0.0,
            "init_from_first": self.init_from_first,
            "reset": self.reset,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; fields that are missing have their defaults.

        ``renormalise``, ``align`` (bool) and ``debias`` (a share, 0 for none) stand for the steps of
        ``postprocessing``, in this order. ValueError naming a field that does not exist, or that the kind of targets
        or of loss does not have.
        """
        rest = dict(fields)
        parts: dict[str, Any] = {}
        for part, kinds in KINDS.items():
            name = rest.pop(part, next(iter(kinds)))
            require(isinstance(name, str) and name in kinds, part, f"one of {list(kinds)}", name)
            own = {field: rest.pop(field) for field in field_names(kinds[name]) if field in rest}
            parts[part] = from_mapping(kinds[name], own)
            _refuse_other_kinds(part, name, rest)
        parts["training"] = TRAINING.replace(**{name: rest.pop(name) for name in field_names(Training) if name in rest})
        parts["postprocessing"] = _steps(rest)
        for field in OWN:
            if field in rest:
                parts[field] = rest.pop(field)
        for field in rest:
            known = flat_fields()
            raise ValueError(f"unknown field {field!r}{nearest(field, known)}; expected one of {', '.join(known)}")
        return cls(**parts)

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields changed, of any part (:meth:`from_dict`).

        With another kind of targets or loss, fields that only the earlier kind has are dropped.
        """
        values = self.to_dict()
        for part, kinds in KINDS.items():
            name = fields.get(part, values[part])
            if name != values[part] and name in kinds:
                for field in set(field_names(kinds[values[part]])) - set(field_names(kinds[name])):
                    del values[field]
        return self.from_dict(values | fields)

    def identity(self) -> dict[str, Any]:
        """The kinds, and the fields that differ from their defaults: the same in a version with more settings."""
        values = self.to_dict()
        kinds = {part: values[part] for part in KINDS}
        usual = self.from_dict(kinds | ({"lambda_ce": 0.0} if self.targets.mixup else {})).to_dict()
        return kinds | {name: value for name, value in values.items() if value != usual[name]}


def flat_fields() -> list[str]:
    """Names of all fields that :meth:`DistillationConfig.from_dict` knows."""
    kinds = [kind for table in KINDS.values() for kind in table.values()]
    parts: list[type[Any]] = [Training, *kinds]
    every = [field for kind in parts for field in field_names(kind)]
    return list(dict.fromkeys([*every, *KINDS, *OWN, "renormalise", "align", "debias"]))


def _refuse_other_kinds(part: str, name: str, rest: Mapping[str, Any]) -> None:
    """ValueError for a field that other kinds have and this one has not."""
    for field in rest:
        if having := [kind for kind, cls in KINDS[part].items() if field in field_names(cls)]:
            raise ValueError(f"{field} needs {part} {' or '.join(map(repr, having))}, got {name!r}")


def _steps(rest: dict[str, Any]) -> tuple[Step, ...]:
    """The steps of post-processing that a flat table asks for; its fields are taken out."""
    steps: list[Step] = []
    for field, kind in (("renormalise", Renormalise), ("align", Align)):
        wanted = rest.pop(field, False)
        require(isinstance(wanted, bool), field, "true or false", wanted)
        steps += [kind()] if wanted else []
    share = rest.pop("debias", 0.0)
    number = isinstance(share, int | float) and not isinstance(share, bool)
    require(number and 0 <= share <= 1, "debias", "a number in [0, 1]", share)
    return (*steps, Debias(share)) if share else tuple(steps)
