"""How an ex-model is distilled (Carta 2022, sec. 3): training, targets, loss, buffer and post-processing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, SkipValidation

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
    named,
    nearest,
    require,
    settings,
    to_dict,
    with_changes,
)

__all__ = ["Background", "DistillationConfig"]

KINDS: dict[str, dict[str, type[Any]]] = {
    "targets": {kind.name: kind for kind in (LiveTargets, BlendedTargets, FixedTargets, StoredTargets, ExpertTargets)},
    "loss": {kind.name: kind for kind in (SquaredError, Divergence)},
}
"""Parts of a configuration of which there are several kinds, by name."""
STEPS: dict[str, type[Step]] = {"renormalise": Renormalise, "align": Align, "debias": Debias}
"""Steps of post-processing by their flat names, in their usual order."""
MIXTURES = ("mixup", "cutmix")
"""Fields of the training that an ex-model does not have; ``mixup`` is one of its targets."""
OWN = ("buffer_size", "lambda_ce", "lambda_latent", "init_from_first", "reset")


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


@settings
class Background:
    """Random images that fill a share of the buffer at the first expert; every expert sees all of them.

    They have no label: their cross-entropy is 0, and they count in its mean. They need targets that are kept.

    Attributes:
        source: where they come from; they are kept in memory.
        share: of the buffer, more than 0 and less than 1.
    """

    source: Annotated[ImageSource, SkipValidation]
    share: Annotated[float, Field(gt=0, lt=1)]

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
        lambda_latent: weight of projected latent distillation (:mod:`exml_fast.continual.ex_model.latents`); 0 for
            none, as in Carta 2022.
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
    lambda_latent: NonNegative = 0.0
    buffer_size: Count = 5000
    postprocessing: tuple[Step, ...] = ()
    init_from_first: bool = False
    reset: bool = False

    def check(self) -> None:
        """Rules between the parts."""
        require(self.training.mixup == 0, "training.mixup", "0: use BlendedTargets", self.training.mixup)
        require(self.training.cutmix == 0, "training.cutmix", "0 for an ex-model", self.training.cutmix)
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
        """Plain JSON values, all in one table; "targets" and "loss" are names.

        ValueError for what such a table cannot hold: targets, a loss or a step of one's own, or steps in another order
        than that of :meth:`from_dict`.
        """
        for part, kinds in KINDS.items():
            kind = type(getattr(self, part))
            require(kind in kinds.values(), part, f"one of {', '.join(kinds)} in a flat table", kind.__name__)
        steps = {type(step): step for step in self.postprocessing}
        order = [kind for kind in STEPS.values() if kind in steps]
        if [type(step) for step in self.postprocessing] != order:
            names = [type(step).__name__ for step in self.postprocessing]
            raise ValueError(f"postprocessing must be {', '.join(STEPS)}, in this order, in a flat table, got {names}")
        debias = steps.get(Debias)
        return {
            **{name: value for name, value in to_dict(self.training).items() if name not in MIXTURES},
            "targets": self.targets.name,
            **to_dict(self.targets),
            "loss": self.loss.name,
            **to_dict(self.loss),
            "lambda_ce": self.lambda_ce,
            "lambda_latent": self.lambda_latent,
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
        _require_known(fields, flat_fields())
        return cls().replace(**fields)

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields changed: fields of this class, or fields of a part by the names of :meth:`from_dict`.

        ``targets`` and ``loss`` are objects or names. With the name of another kind, fields that both kinds have are
        kept. ``align``, ``renormalise`` and ``debias`` change, add or remove one step and keep the others.
        """
        _require_known(fields, [*field_names(type(self)), *flat_fields()])
        rest, changed = dict(fields), dict[str, Any]()
        for part, kinds in KINDS.items():
            made = self._of_kind(part, rest.pop(part)) if part in rest else getattr(self, part)
            own = {name: rest.pop(name) for name in _fields_of(made) if name in rest}
            changed[part] = with_changes(made, own) if own else made
            for field in rest:
                if having := [name for name, kind in kinds.items() if field in field_names(kind)]:
                    expected = " or ".join(map(repr, having))
                    raise ValueError(f"{field} needs {part} {expected}, got {changed[part].name!r}")
        training = rest.pop("training", self.training)
        of_training = {name: rest.pop(name) for name in field_names(Training) if name in rest}
        changed["training"] = training.replace(**of_training) if of_training else training
        steps = rest.pop("postprocessing", self.postprocessing)
        for field in STEPS:
            if field in rest:
                steps = _with_step(steps, field, rest.pop(field))
        return with_changes(self, {**changed, "postprocessing": steps, **rest})

    def _of_kind(self, part: str, given: object) -> Any:
        """The targets or the loss of this name, with the values of the fields that the present ones have too."""
        if isinstance(given, Targets | Loss):
            return given
        current, kind = getattr(self, part), named(part, given, KINDS[part])
        shared = [field for field in _fields_of(current) if field in field_names(kind)]
        return kind(**{field: getattr(current, field) for field in shared})

    def describe(self) -> dict[str, Any]:
        """Plain JSON values for people: :meth:`to_dict` where it can hold them, otherwise a table for each part."""
        try:
            return self.to_dict()
        except ValueError:
            parts = {name: getattr(self, name) for name in field_names(type(self))}
            parts["postprocessing"] = [_described(step) for step in self.postprocessing]
            return {name: _described(part) for name, part in parts.items()}

    def identity(self) -> dict[str, Any]:
        """The kinds, and the fields that differ from their defaults: the same in a version with more settings."""
        values = self.describe()
        kinds = {part: values[part] for part in KINDS}
        if not all(isinstance(kind, str) for kind in kinds.values()):
            return values
        usual = self.from_dict(kinds | ({"lambda_ce": 0.0} if self.targets.mixup else {})).to_dict()
        return kinds | {name: value for name, value in values.items() if value != usual[name]}


def flat_fields() -> list[str]:
    """Names of all fields that :meth:`DistillationConfig.from_dict` knows."""
    kinds = [kind for table in KINDS.values() for kind in table.values()]
    training = [field for field in field_names(Training) if field not in MIXTURES]
    every = [*training, *(field for kind in kinds for field in field_names(kind))]
    return list(dict.fromkeys([*every, *KINDS, *OWN, *STEPS]))


def _require_known(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    for field in fields:
        if field not in known:
            known = list(dict.fromkeys(known))
            raise ValueError(f"unknown field {field!r}{nearest(field, known)}; expected one of {', '.join(known)}")


def _with_step(steps: Sequence[Step], field: str, value: object) -> tuple[Step, ...]:
    """``steps`` with the step that a flat field asks for in its place, or without it."""
    kind, kinds = STEPS[field], list(STEPS.values())
    wanted: list[Step] = []
    if kind is not Debias:
        require(isinstance(value, bool), field, "true or false", value)
        wanted = [kind()] if value else []
    elif isinstance(value, bool) or value != 0:
        wanted = [from_mapping(Debias, {"share": value}, field)]
    later = kinds[kinds.index(kind) :]  # in place of one of its kind, or before the first step that usually follows
    at = next((i for i, step in enumerate(steps) if type(step) is kind), None)
    if at is None:
        at = next((i for i, step in enumerate(steps) if type(step) in later), len(steps))
    return (*steps[:at], *wanted, *(step for step in steps[at:] if type(step) is not kind))


def _fields_of(part: object) -> list[str]:
    return field_names(type(part)) if dataclasses.is_dataclass(part) else []


def _described(part: Any) -> Any:
    if dataclasses.is_dataclass(part):
        return {"kind": type(part).__name__, **to_dict(part)}
    return part if isinstance(part, int | float | list) else {"kind": type(part).__name__}
