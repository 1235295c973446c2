"""The settings of an inversion (Recipe), and the papers' settings by name."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

import torch
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import device_of, dtype_of, frozen, probe
from exml_fast.inversion.augmentation import Augmentation
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.settings import Classification, Matching, Optimisation, Pixels, Priors, StudentCompetition
from exml_fast.validation import Flat, flat_dict, from_flat, named, settings, with_flat_changes

__all__ = ["Recipe", "get", "names", "new", "suited", "suited_to"]

# From this height and width on, images count as large, like ImageNet's.
LARGE = 96


@settings
class Recipe:
    """How images are optimised: groups of settings. Each part of the inversion reads the groups that it needs.

    :func:`new`, :meth:`replace` and :meth:`to_dict` use one flat table of the groups' fields. ValueError names a field
    that is out of its range. Weights count for one image: see :mod:`exml_fast.inversion.objective` on sums and means.
    """

    name: str
    source: str = ""
    """The publication, and the origin of settings from elsewhere."""
    optimisation: Flat[Optimisation] = field(default_factory=Optimisation)
    pixels: Flat[Pixels] = field(default_factory=Pixels)
    classification: Flat[Classification] = field(default_factory=Classification)
    priors: Flat[Priors] = field(default_factory=Priors)
    matching: Flat[Matching] = field(default_factory=Matching)
    competition: Flat[StudentCompetition] = field(default_factory=StudentCompetition)
    augmentation: Flat[Augmentation] = field(default_factory=Augmentation)

    def check(self) -> None:
        """At least one term has a weight; ValueError."""
        weights = ("ce", "tv_l1", "tv_l2", "blur", "l2", "bn", "compete")
        given = self.to_dict()
        if not any(given[weight] for weight in weights):
            raise ValueError(f"recipe {self.name!r}: at least one of {', '.join(weights)} must be positive")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some settings changed, named as in :meth:`to_dict`; ValueError for a name that does not exist."""
        return with_flat_changes(self, changes)

    def overridden(self, **changes: Any) -> Recipe:
        """As :meth:`replace`, for the overrides of a user: other ``steps`` scale ``coarse_steps`` in proportion.

        ``coarse_steps`` that are given too stay as they are.
        """
        changed = self.replace(**changes)
        before, after = self.optimisation, changed.optimisation
        if after.steps == before.steps or "coarse_steps" in changes:
            return changed
        share = after.steps / before.steps
        return changed.replace(coarse_steps=tuple(max(1, round(share * steps)) for steps in before.coarse_steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all settings in one flat table; ``new(**table)`` is the inverse."""
        return flat_dict(self)

    def coarser(self) -> Recipe:
        """The recipe for images half as high and wide, with which a recipe with ``coarse_steps`` begins.

        The weight of a squared l2 norm is four times as large for a quarter of the pixels, so that images are equally
        bright at both sizes. Differences between neighbours are larger in smaller images and need no such factor.
        """
        *before, steps = self.optimisation.coarse_steps
        l2 = 4 * self.priors.l2 if self.priors.norm_squared else self.priors.l2
        jitter = self.augmentation.jitter // 2
        return self.replace(steps=steps, coarse_steps=tuple(before), jitter=jitter, l2=l2)


def new(name: str, source: str = "", **values: Any) -> Recipe:
    """A recipe from flat settings, like ``new("mine", steps=500, bn=1.0)``; all others keep their defaults.

    ValueError naming a setting that does not exist or is out of its range.
    """
    return from_flat(Recipe, {"name": name, "source": source, **values})


def names() -> list[str]:
    """The names for :func:`get`. A name without "/" is an alias; ``.source`` names its origin."""
    return sorted(_RECIPES)


def get(recipe: str | Recipe) -> Recipe:
    """A recipe by name; a Recipe is returned unchanged. ValueError with the nearest name for an unknown one."""
    if isinstance(recipe, Recipe):
        return recipe
    return named("recipe", recipe, {name: _RECIPES[name] for name in names()})


def suited(size: tuple[int, int], *, statistics: bool = True, adaptive: bool = False) -> Recipe:
    """The default recipe for images of ``size`` (height, width).

    ``statistics``: the network has statistics to match. ``adaptive``: a student takes part.
    """
    if not statistics and not adaptive and min(size) < LARGE:
        return get("model_inversion")
    name = "deep_inversion/imagenet-transferable" if min(size) >= LARGE else "deep_inversion"
    recipe = get(f"adaptive_{name}" if adaptive else name)
    return recipe if statistics else recipe.replace(bn=0.0)


def suited_to(
    model: nn.Module,
    spec: InputSpec,
    *,
    statistics: bool = True,
    adaptive: bool = False,
    parametrisation: Parametrisation | None = None,
) -> Recipe:
    """:func:`suited` for ``model``; "drawn_inversion" with a parametrisation.

    A network that takes images of one size alone gets all the steps at that size.
    """
    if parametrisation is not None:
        return get("drawn_inversion")
    recipe = suited(spec.size, statistics=statistics, adaptive=adaptive)
    coarse_steps = recipe.optimisation.coarse_steps
    if not coarse_steps:
        return recipe
    half = dataclasses.replace(spec, size=(spec.size[0] // 2, spec.size[1] // 2))
    images = torch.zeros(1, *half.shape, dtype=dtype_of(model), device=device_of(model))
    try:
        with frozen(model):
            probe(model, images, half)
    except ValueError:
        return recipe.replace(steps=recipe.optimisation.steps + sum(coarse_steps), coarse_steps=())
    return recipe


# Ours (docs/deep_inversion.md). The distance of Gaussians gives every channel the same weight. The crop demands objects
# that are recognised at several sizes. The spectrum lets large shapes and colours form as fast as details. Squared
# norms of each image keep single images from growing without bound.
TRANSFERABLE: dict[str, Any] = {
    "decay": "cosine", "flip": True, "clip": "valid", "bn_distance": "gaussian_kl", "bn_average": True,
    "spectrum": 1.0, "tv_scope": "image", "norm_scope": "image", "norm_squared": True, "prior_augmented": False,
}  # fmt: skip
OURS = "ours: as Yin 2020, with other distance, steps and priors (docs/deep_inversion.md)"
TRANSFERABLE_CIFAR10: dict[str, Any] = {
    **TRANSFERABLE, "steps": 100, "lr": 0.1, "jitter": 4, "border": "black", "crop": (0.7, 1.0), "init_scale": 0.5,
    "correlation": 0.9, "bn": 68.8, "tv_l2": 0.03, "l2": 5e-5,
}  # fmt: skip
TRANSFERABLE_IMAGENET: dict[str, Any] = {
    **TRANSFERABLE, "coarse_steps": (600,), "steps": 200, "batch_size": 84, "lr": 0.05, "crop": (0.35, 1.0),
    "init_scale": 0.3, "correlation": 0.95, "bn": 63.0, "tv_l2": 0.15, "l2": 2e-4,
}  # fmt: skip
# The shortest schedules whose images other networks still recognise (benches/judged_quality.py).
QUICK_CIFAR10: dict[str, Any] = {"steps": 50, "lr": 0.15}
QUICK_IMAGENET: dict[str, Any] = {"coarse_steps": (150,), "steps": 30}


def _published() -> dict[str, Recipe]:
    # Yin 2020: sec. 4.1 (CIFAR-10) and 4.2 (ImageNet); jitter of 2, batch-wide total variation and the places of the
    # priors are those of the published code.
    yin = new(
        "deep_inversion/cifar10",
        "Yin 2020, sec. 4.1; feature weight 1 of its grid {1, 5, 10, 100}; jitter as in its code",
        steps=2000, batch_size=256, lr=0.05, tv_l2=2.5e-5, l2=3e-8, bn=1.0, jitter=2,
        tv_scope="batch", norm_scope="batch", prior_augmented=True,
    )  # fmt: skip
    yin_imagenet = yin.replace(
        name="deep_inversion/imagenet",
        source="Yin 2020, sec. 4.2, 4.4 and B.1, at full resolution; batch of one of its 8 GPUs",
        steps=20000, batch_size=152, tv_l2=1e-4, l2=1e-2, bn=1e-2, jitter=29, flip=True, clip="valid",
        norm_scope="image",
    )  # fmt: skip
    ours = yin.replace(name="deep_inversion/cifar10-transferable", source=OURS, **TRANSFERABLE_CIFAR10)
    ours_imagenet = yin_imagenet.replace(
        name="deep_inversion/imagenet-transferable", source=OURS, **TRANSFERABLE_IMAGENET
    )
    quick = "ours: {} with fewer steps"
    ours_quick = [
        recipe.replace(name=recipe.name.replace("transferable", "quick"), source=quick.format(recipe.name), **changes)
        for recipe, changes in ((ours, QUICK_CIFAR10), (ours_imagenet, QUICK_IMAGENET))
    ]
    # Carta 2022, B.1 to B.3; augmentation, N(0, 1) start and the clip at 3 are those of the published code.
    carta = new(
        "model_inversion/mnist",
        "Carta 2022, sec. 4, 5.1 (stop at 0.99) and B.1.1; shifts and clip as in its code", stop_confidence=0.99,
        steps=3000, batch_size=256, lr=0.01, temperature=2.0, l2=1e-3, blur=1e-3, norm_squared=True,
        bn=1.0, bn_distance="squared", bn_moment="std", bn_optional=True, clip=3.0, jitter=4, border="zero",
    )  # fmt: skip
    carta_cifar = carta.replace(
        name="model_inversion/cifar10", source="Carta 2022, B.2.1; augmentation and clip as in its code",
        steps=500, batch_size=1024, lr=0.1, l2=1e-4, blur=1e-2, bn=0.0, stop_confidence=None,
        jitter=0, flip=True, rotate=15.0, crop=(0.8, 1.0),
    )  # fmt: skip
    carta_core50 = carta.replace(
        name="model_inversion/core50", source="Carta 2022, B.3.1; augmentation and clip as in its code",
        steps=500, batch_size=128, lr=0.1, l2=1e-4, blur=1e-3, bn=10.0, flip=True, rotate=15.0, stop_confidence=None,
    )  # fmt: skip
    soft: dict[str, Any] = {"targets": "dirichlet", "similarity_minmax": False, "label": "argmax"}
    # Images with few parameters need no priors and few steps.
    drawn = new(
        "drawn_inversion", "ours: images of a kind, over its parameters (docs/ex_model.md)", steps=150, batch_size=500,
        lr=0.02, temperature=2.0, bn=2.0, bn_distance="gaussian_kl", bn_average=True, bn_optional=True, jitter=2,
        rotate=10.0, border="black",
    )  # fmt: skip
    # Nayak 2021, sec. 4.1.2: betas and temperature; steps, learning rate, batch and start as in its code.
    nayak = new(
        "data_impressions/nayak",
        "Nayak 2021, Alg. 1 and sec. 4.1.2; steps, learning rate, batch and uniform start as in its code",
        steps=1500, batch_size=100, lr=0.001, temperature=20.0, init="uniform", targets="dirichlet", betas=(1.0, 0.1),
    )  # fmt: skip
    lardizzone = yin.replace(
        name="deep_inversion/lardizzone", source="Lardizzone 2020, sec. 5.2.1, which gives no learning rate",
        steps=300, l2=1e-8, bn=5.0, clip="valid",
    )  # fmt: skip
    recipes = [
        yin, yin_imagenet, lardizzone, carta, carta_cifar, carta_core50, nayak, drawn,
        nayak.replace(
            name="data_impressions/nayak-quick",
            source="ours: data_impressions/nayak in a tenth of its steps, at ten times its rate",
            steps=150, lr=0.01, clip="valid",
        ),
        yin.replace(
            name="deep_inversion", source="Yin 2020, sec. 4.1 as deep_inversion/cifar10, with the clip of sec. 4.4",
            clip="valid",
        ),
        ours, ours_imagenet, *ours_quick,
        yin_imagenet.replace(
            name="deep_inversion/imagenet-transfer",
            source="Yin 2020, App. D (ResNet50v1.5): 2000 steps at full resolution, learning rate 0.2, no l2",
            steps=2000, lr=0.2, l2=0.0,
        ),
        yin_imagenet.replace(
            name="deep_inversion/imagenet-multiresolution",
            source="Yin 2020, 4.4 b and App. D: 2000 steps at 112, nearest-neighbour upsampling, 1000 steps at 224",
            coarse_steps=(2000,), steps=1000, batch_size=84, lr=0.2, l2=0.0,
        ),
        *(
            recipe.replace(
                name=recipe.name.replace("deep_inversion", "deep_dream"),
                source=f"Mordvintsev 2015 as in Yin 2020, Eqs. 2 and 3, {section}: no statistics", bn=0.0,
            )
            for recipe, section in ((yin, "sec. 4.1"), (yin_imagenet, "sec. 4.2"))
        ),
        *(
            recipe.replace(
                name=recipe.name.replace("deep_inversion", "noise"),
                source="Yin 2020, Table 1, Noise (L): cross-entropy alone", bn=0.0, tv_l2=0.0, l2=0.0,
            )
            for recipe in (yin, yin_imagenet)
        ),
        *(
            recipe.replace(
                name=f"adaptive_{recipe.name}",
                source=f"{recipe.source}; competition with a student, Eqs. 8 and 9, {section}", compete=weight,
            )
            for recipe, section, weight in (
                (yin, "sec. 4.1", 10.0), (yin_imagenet, "sec. 4.2", 0.2), (ours, "sec. 4.1", 10.0),
                (ours_imagenet, "sec. 4.2", 0.2), (lardizzone, "as Lardizzone 2020, sec. 5.2.1", 10.0),
            )
        ),
        carta.replace(
            name="model_inversion", source="Carta 2022 as model_inversion/mnist, to the end of all steps",
            stop_confidence=None,
        ),
        carta.replace(
            name="data_impressions/mnist",
            source="Carta 2022, sec. 4, 5.1 (stop at 0.99) and B.1.2; shifts and clip as in its code",
            temperature=20.0, betas=(10.0,), **soft,
        ),
        carta_cifar.replace(
            name="data_impressions/cifar10", source="Carta 2022, B.2.2; augmentation and clip as in its code",
            betas=(10.0,), **soft,
        ),
        carta_core50.replace(
            name="data_impressions/core50", source="Carta 2022, B.3.2; augmentation and clip as in its code",
            betas=(0.1,), **soft,
        ),
        nayak.replace(
            name="class_impressions", source="Nayak 2021, sec. 4.1.4: one-hot targets, otherwise as Data Impressions",
            targets="hard",
        ),
    ]  # fmt: skip
    found = {recipe.name: recipe for recipe in recipes}
    for name, as_where in (("deep_dream", "cifar10"), ("noise", "cifar10"), ("adaptive_deep_inversion", "cifar10")):
        full = found[f"{name}/{as_where}"]
        found[name] = full.replace(name=name, source=f"{full.source}; as {full.name}")
    found["adaptive_deep_inversion"] = found["adaptive_deep_inversion"].replace(clip="valid")
    found["data_impressions"] = found["data_impressions/mnist"].replace(
        name="data_impressions",
        source="Carta 2022 as data_impressions/mnist, to the end of all steps",
        stop_confidence=None,
    )
    return found


_RECIPES = _published()
