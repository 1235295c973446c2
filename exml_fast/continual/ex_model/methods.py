"""Named methods: a strategy with the settings that were found to go with it, by name.

    method = xf.continual.method("model-inversion", variant="cifar10", steps=5000)
    method = xf.continual.method("random-images", source="natural-fields")
    result = method.run(stream)

:func:`plan` gives the settings without the data that some methods need; :func:`method` builds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from exml_fast.continual.ex_model.calibration import ResponseCalibration
from exml_fast.continual.ex_model.config import Background, DistillationConfig
from exml_fast.continual.ex_model.distillation import ExModelDistillation
from exml_fast.continual.ex_model.strategies import (
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    DrawnInversion,
    ModelInversion,
    Procedural,
    Replay,
    Strategy,
)
from exml_fast.data import SOURCES, ImageData, ImageSource, Photographs
from exml_fast.inversion import Recipe, recipes
from exml_fast.validation import from_mapping, named, require

__all__ = ["METHODS", "PAPER", "Method", "Plan", "method", "plan"]

RANDOM_IMAGES: dict[str, Any] = {
    "steps": 2000, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "onecycle", "loss": "kl",
    "lambda_ce": 0.0, "targets": "stored", "augmentation": {"shift": 0},
}  # fmt: skip
"""How an ex-model learns from random images: from calibrated logits that are kept with the images."""
BEFORE_BACKGROUND: dict[str, Any] = RANDOM_IMAGES | {
    "targets": "experts", "background_share": 0.8, "renormalise": True,
}  # fmt: skip
"""How it learns from inverted drawings before random ones."""


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        title: for tables.
        make: the strategy of a plan; ``data`` as of :meth:`Plan.build`.
        images: what the images are, in words; ``{domain}`` stands for what the source knows.
        recipe: the recipe that the images are inverted with; its variants are named after data sets.
        source: of random images, by name.
        photographs: the source is made of photographs, which the user has to give.
        inverts_source: the images are inverted ones of the source, before a background of random ones.
        needs: data without which the strategy cannot be made: "images" of another domain, or "data" of the experts.
        settings: of the distillation, over the defaults (Carta 2022, App. B.1).
    """

    title: str
    make: Callable[[Plan, Any], Strategy]
    images: str
    recipe: str | None = None
    source: str | None = None
    photographs: bool = False
    inverts_source: bool = False
    needs: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether the settings are those of random images instead of the paper's."""
        return self.source is not None or self.photographs


@dataclass(frozen=True)
class Plan:
    """A method with all its settings.

    Attributes:
        name: in :data:`METHODS`.
        config: of the distillation.
        recipe: of the inversion, if images are inverted.
        source: of random images, if the strategy draws them or starts from them.
        calibration, background: as of :class:`ExModelDistillation`.
    """

    name: str
    config: DistillationConfig
    recipe: Recipe | None
    source: ImageSource | None
    calibration: ResponseCalibration | None
    background: Background | None

    @property
    def method(self) -> Method:
        """The entry of the registry."""
        return METHODS[self.name]

    def describe_images(self, auxiliary: str = "another domain") -> str:
        """In words, what the images are and what is known about the data; ``auxiliary`` names other images."""
        domain = "" if self.source is None else self.source.domain
        text = self.method.images.format(domain=domain, auxiliary=auxiliary)
        if self.background is None or self.method.inverts_source:
            return text
        return f"{text}, and random ones, what is known: {self.background.source.domain}"

    def build(self, data: Any = None, **options: Any) -> ExModelDistillation:
        """The method, ready to run.

        Args:
            data: for "auxiliary-data" images (N, c, h, w), uint8 or float in [0, 1], or an :class:`AuxiliaryData`; for
                "replay" an :class:`exml_fast.data.ImageData` or a :class:`Replay`.
            options: ``model``, ``architecture``, ``arguments``, ``units``, ``spec``, ``seed``, ``device`` and
                ``buffer_dir`` of :class:`ExModelDistillation`.
        """
        require(data is None or self.method.needs is not None, "data", f"None: {self.name} uses no data", data)
        strategy = self.method.make(self, data)
        return ExModelDistillation(
            strategy, self.config, calibration=self.calibration, background=self.background, **options
        )


def plan(
    name: str,
    *,
    variant: str | None = None,
    recipe: str | Recipe | None = None,
    inversion: Mapping[str, Any] | None = None,
    source: Any = None,
    calibration: str | ImageSource | None = None,
    typicality: float = 0.0,
    background: str | ImageSource | None = None,
    **settings: Any,
) -> Plan:
    """The settings of a named method.

    Args:
        name: in :data:`METHODS`.
        variant: data set of the published recipe, for methods that invert pixels: "mnist" (the default), "cifar10" or
            "core50".
        recipe: a recipe in place of a variant's, for methods that invert pixels.
        inversion: fields of the recipe to change, for methods that invert images. Only "adaptive-inversion" has
            ``compete``.
        source: of random images, for methods that have them: a name of :data:`exml_fast.data.SOURCES`, or an object.
            For "photographs" an :class:`exml_fast.data.Photographs`, or what it is made of: files, folders, tensors.
        calibration: source of the images on which the experts' logits are calibrated, "none" for no calibration; by
            default random images calibrate the experts on themselves.
        typicality: see :class:`ResponseCalibration`.
        background: source of the random images that fill ``background_share`` of the buffer, for methods that have no
            random images of their own.
        settings: fields of :meth:`DistillationConfig.from_dict`, and ``background_share``.

    Raises:
        ValueError: for a name or field that does not exist, for an argument that the method does not use, and for
            settings that do not go together.
    """
    entry = named("name", name, METHODS)
    values = {**entry.settings, **settings}
    share = values.pop("background_share", 0.0)
    config = DistillationConfig.from_dict(values)
    drawn = _drawn(name, entry, source) if entry.is_random else None
    require(entry.is_random or source is None, "source", f"None: {name} draws no random images", source)
    behind = drawn if entry.inverts_source else _source("background", background)
    if (behind is not None) != (share != 0):
        raise ValueError(
            "background must be a source if and only if background_share is positive, "
            f"got {background!r} and {share} for {name}"
        )
    scale = _source("calibration", drawn if calibration is None else calibration)
    if scale is None:
        require(not typicality, "typicality", f"0 for {name} without a calibration", typicality)
    made = Plan(
        name,
        config,
        _recipe(name, entry, variant, recipe, inversion or {}),
        drawn,
        None if scale is None else ResponseCalibration(scale, typicality=typicality),
        None if behind is None else from_mapping(Background, {"source": behind, "share": share}, "background"),
    )
    config.require_fit(made.background, entry.is_random and not entry.inverts_source)
    return made


def method(
    name: str,
    *,
    data: Tensor | ImageData | AuxiliaryData | Replay | None = None,
    model: Any = None,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    units: Any = None,
    spec: Any = None,
    seed: int = 0,
    device: Any = "cpu",
    buffer_dir: Any = None,
    **settings: Any,
) -> ExModelDistillation:
    """A named method, ready to run: :func:`plan` with the ``settings``, built with the other arguments.

    Args:
        data: images of another domain, or the experts' own data (:meth:`Plan.build`).
        model, architecture, arguments, units, spec, seed, device, buffer_dir: as of :class:`ExModelDistillation`.
        settings: as of :func:`plan`.
    """
    return plan(name, **settings).build(
        data, model=model, architecture=architecture, arguments=arguments, units=units, spec=spec, seed=seed,
        device=device, buffer_dir=buffer_dir,
    )  # fmt: skip


def _source(what: str, given: str | ImageSource | None) -> ImageSource | None:
    if given is None or given == "none":
        return None
    return named(what, given, SOURCES)() if isinstance(given, str) else given


def _drawn(name: str, entry: Method, given: Any) -> ImageSource | None:
    """The source of a method of random images."""
    if not entry.photographs:
        return _source("source", entry.source if given is None else given)
    require(given is not None, "source", f"files, folders or tensors of photographs for {name}", given)
    return given if isinstance(given, ImageSource) else Photographs(given)


def _recipe(
    name: str, entry: Method, variant: str | None, recipe: str | Recipe | None, changes: Mapping[str, Any]
) -> Recipe | None:
    if entry.recipe is None:
        require(not changes, "inversion", f"None: {name} inverts no images", dict(changes))
    if entry.recipe is None or entry.inverts_source:
        require(variant is None, "variant", f"None: {name} has no variants", variant)
        require(recipe is None, "recipe", f"None: {name} inverts no pixels", recipe)
    if entry.recipe is None:
        return None
    if entry.inverts_source:
        found = recipes.get(entry.recipe)
    elif recipe is not None:
        require(variant is None, "variant", "None with a recipe", variant)
        found = recipes.get(recipe)
    else:
        of_method = [given for given in recipes.names() if given.startswith(f"{entry.recipe}/")]
        published = {given.partition("/")[2]: given for given in of_method}
        found = recipes.get(named("variant", variant or "mnist", published))
    found = found.overridden(**changes)
    compete = found.competition.compete
    if entry.make is _adaptive:
        require(changes.get("compete", 1) > 0, "compete", f"positive for {name}", compete)
    else:
        require(compete == 0, "compete", f"0 for {name}: use adaptive-inversion", compete)
    return found


def _adaptive(plan: Plan, _data: Any) -> Strategy:
    assert plan.recipe is not None
    return AdaptiveInversion(plan.recipe)


def _inverted_source(plan: Plan, _data: Any) -> Strategy:
    assert plan.recipe is not None and plan.source is not None
    source: Any = plan.source
    require(hasattr(source, "parameters"), "source", "a Parametrisation, whose parameters can be optimised", source)
    return DrawnInversion(source, plan.recipe)


def _random(plan: Plan, _data: Any) -> Strategy:
    assert plan.source is not None
    return Procedural(plan.source)


def _auxiliary(plan: Plan, data: Any) -> Strategy:
    if isinstance(data, AuxiliaryData):
        return data
    require(isinstance(data, Tensor), "data", f"images (N, c, h, w) for {plan.name}", data)
    return AuxiliaryData(data)


def _replay(plan: Plan, data: Any) -> Strategy:
    if isinstance(data, Replay):
        return data
    require(isinstance(data, ImageData), "data", f"an ImageData with the experts' images for {plan.name}", data)
    return Replay(data)


def _random_images(title: str, source: str) -> Method:
    return Method(
        title, _random, "random images, what is known: {domain}", source=source, settings=RANDOM_IMAGES,
    )  # fmt: skip


INVERTED = "images inverted from the experts"
METHODS: dict[str, Method] = {
    "model-inversion": Method(
        "Model Inversion", lambda plan, _: ModelInversion(plan.recipe or ""), INVERTED, recipe="model_inversion"
    ),
    "data-impression": Method(
        "Data Impression", lambda plan, _: DataImpression(plan.recipe or ""), INVERTED, recipe="data_impressions"
    ),
    "auxiliary-data": Method("Auxiliary Data", _auxiliary, "images of {auxiliary}", needs="images"),
    "adaptive-inversion": Method("Adaptive Inversion", _adaptive, INVERTED, recipe="model_inversion"),
    "random-images": _random_images("Random Images", "natural-fields"),
    "natural-fields": _random_images("Natural Fields", "natural-fields"),
    "dead-leaves": _random_images("Dead Leaves", "dead-leaves"),
    "pen-strokes": _random_images("Pen Strokes", "pen-strokes"),
    "photographs": Method(
        "Photographs", _random, "random crops, what is known: {domain}", photographs=True, settings=RANDOM_IMAGES
    ),
    "inverted-strokes": Method(
        "Inverted Strokes", _inverted_source, "random images and inverted ones of their kind, what is known: {domain}",
        recipe="drawn_inversion", source="pen-strokes", inverts_source=True, settings=BEFORE_BACKGROUND,
    ),
    "replay": Method("Replay", _replay, "real images of the experts' classes", needs="data"),
}  # fmt: skip
"""The methods by name: the first three are Carta 2022's, "replay" is its upper bound, the others are ours."""
PAPER = ("model-inversion", "data-impression", "auxiliary-data")
"""The paper's methods."""
