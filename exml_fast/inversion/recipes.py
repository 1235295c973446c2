"""The settings of an inversion (Recipe), and the papers' settings by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import device_of, dtype_of, frozen, probe
from exml_fast.inversion.augmentation import Augmentation
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.validation import Count, Natural, NonNegative, Positive, named, require, settings, to_dict, with_changes

__all__ = ["Recipe", "get", "names", "suited", "suited_to"]

Below1 = Annotated[float, Field(ge=0, lt=1)]
# From this height and width on, images count as large, like ImageNet's.
LARGE = 96


@settings
class Recipe:
    """How images are optimised. ValueError names a field that is out of its range.

    Weights count for one image: see :mod:`exml_fast.inversion.objective` on sums and means.
    """

    name: str
    source: str = ""
    """The publication, and the origin of settings from elsewhere."""

    steps: Count = 2000
    coarse_steps: tuple[Count, ...] = ()
    """Steps on smaller images first, the smallest first, each half as high and wide as the next (Yin 2020, 4.4)."""
    batch_size: Count = 256
    """Images optimised together. Without terms that couple images the results do not depend on it."""
    lr: Positive = 0.05
    warmup: Natural = 0
    """Steps over which the learning rate rises linearly."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: "constant" or "cosine" (to zero)."""
    adam_betas: tuple[Below1, Below1] = (0.9, 0.999)
    init: Literal["normal", "uniform"] = "normal"
    """"normal": N(0, 1) in the network's input space; "uniform": U(0, 1) pixels, then normalised."""
    init_scale: NonNegative = 1.0
    """Factor of the initial values."""
    spectrum: Annotated[float, Field(ge=0, le=4)] = 0.0
    """γ in the amplitudes f^−γ of waves of frequency f, for Adam's steps and for "normal" noise
    (:class:`exml_fast.inversion.spectrum.NaturalSpectrum`). 0 treats every pixel alone, as the papers do."""
    correlation: Below1 = 0.0
    """Correlation of the channels of a pixel, for the same."""
    clip: str | float | None = None
    """After each step: None, "valid" (the range of pixels, Yin 2020, Eq. 16) or ± a number."""

    targets: Literal["hard", "dirichlet"] = "hard"
    """"hard": the class; "dirichlet": soft targets drawn around it (Nayak 2021, Alg. 1)."""
    betas: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    """Scaling factors of the Dirichlet concentrations, in equal shares within each class."""
    similarity_minmax: bool = True
    """Stretch each row of the class similarities to [0, 1] (Nayak 2021) or not (Carta 2022)."""
    similarity_layer: str | None = None
    """Name of the layer whose weight rows are the classes; None: the last Linear that the network runs."""
    dirichlet_over: Literal["units", "classes"] = "units"
    """Spread soft targets over all "units" of the head, or only over the requested "classes"."""
    label: Literal["class", "argmax"] = "class"
    """Label of an image with a soft target: the requested "class", or the target's "argmax" among these classes."""
    temperature: Positive = 1.0

    ce: NonNegative = 1.0
    tv_l1: NonNegative = 0.0
    tv_l2: NonNegative = 0.0
    blur: NonNegative = 0.0
    l2: NonNegative = 0.0
    tv_scope: Literal["batch", "image"] = "image"
    """Total variation over each "image", or over the whole "batch" as in Yin's code."""
    norm_scope: Literal["batch", "image"] = "image"
    """The same choice for blur and l2."""
    norm_squared: bool = False
    """Blur and l2 are squared norms (Carta 2022)."""
    prior_augmented: bool = False
    """True: priors read the augmented images, as in Yin's code. False: the images before augmentation."""
    blur_kernel: Annotated[int, Field(ge=1, le=15)] = 3
    blur_sigma: Positive = 1.0
    bn: NonNegative = 0.0
    bn_distance: Literal["l2", "squared", "gaussian_kl"] = "l2"
    bn_moment: Literal["var", "std"] = "var"
    bn_first: NonNegative = 1.0
    """Additional factor of the first BatchNorm layer."""
    bn_average: bool = False
    """Divide by the number of channels of all layers, so that one weight suits networks of any width."""
    bn_optional: bool = False
    """Omit the BatchNorm term for a network without BatchNorm, instead of raising an error."""
    compete: NonNegative = 0.0
    """Weight of the competition 1 − JS with a student (Yin 2020, Eq. 8)."""
    compete_temperature: Positive = 1.0

    jitter: Natural = 0
    border: Literal["wrap", "zero", "black"] = "wrap"
    flip: bool = False
    rotate: NonNegative = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    """For jitter to crop see :class:`exml_fast.inversion.augmentation.Augmentation`."""

    stop_confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Stop an image once the network's probability (temperature 1) of its class is at least this (0.99)."""

    def check(self) -> None:
        """Rules between fields; ValueError."""
        fits = self.clip in (None, "valid") or (isinstance(self.clip, float) and self.clip > 0)
        require(fits, "clip", "None, 'valid' or a positive number", self.clip)
        low, high = self.crop
        require(0 < low <= high <= 1, "crop", "(low, high) with 0 < low <= high <= 1", self.crop)
        require(self.blur_kernel % 2 == 1, "blur_kernel", "an odd integer from 1 to 15", self.blur_kernel)
        if self.coarse_steps:
            require(self.stop_confidence is None, "stop_confidence", "None with coarse_steps", self.stop_confidence)
        if not any((self.ce, self.tv_l1, self.tv_l2, self.blur, self.l2, self.bn, self.compete)):
            weights = "ce, tv_l1, tv_l2, blur, l2, bn, compete"
            raise ValueError(f"recipe {self.name!r}: at least one of {weights} must be positive")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed; ValueError naming a field that does not exist."""
        return with_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all fields."""
        return to_dict(self)

    def coarser(self) -> Recipe:
        """The recipe for images half as high and wide, with which a recipe with ``coarse_steps`` begins.

        The weight of a squared l2 norm is four times as large for a quarter of the pixels, so that images are equally
        bright at both sizes. Differences between neighbours are larger in smaller images and need no such factor.
        """
        *before, steps = self.coarse_steps
        l2 = 4 * self.l2 if self.norm_squared else self.l2
        return self.replace(steps=steps, coarse_steps=tuple(before), jitter=self.jitter // 2, l2=l2)

    @property
    def augmentation(self) -> Augmentation:
        """The random transforms of the recipe."""
        return Augmentation(self.jitter, self.border, self.flip, self.rotate, self.crop)

    def learning_rates(self) -> Tensor:
        """The learning rate of each step, (steps,) float64."""
        step = torch.arange(self.steps, dtype=torch.float64)
        rates = torch.full((self.steps,), self.lr, dtype=torch.float64)
        if self.decay == "cosine":
            rest = max(self.steps - self.warmup, 1)
            rates *= 0.5 * (1 + torch.cos(math.pi * (step - self.warmup).clamp_min(0) / rest))
        if self.warmup:
            rates *= ((step + 1) / self.warmup).clamp(max=1)
        return rates


def names() -> list[str]:
    """The names for :func:`get`. A name without "/" is the family's first variant, or ours where its source says so."""
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
    if not recipe.coarse_steps:
        return recipe
    half = dataclasses.replace(spec, size=(spec.size[0] // 2, spec.size[1] // 2))
    images = torch.zeros(1, *half.shape, dtype=dtype_of(model), device=device_of(model))
    try:
        with frozen(model):
            probe(model, images, half)
    except ValueError:
        return recipe.replace(steps=recipe.steps + sum(recipe.coarse_steps), coarse_steps=())
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


def _published() -> dict[str, Recipe]:
    # Yin 2020: sec. 4.1 (CIFAR-10) and 4.2 (ImageNet); jitter of 2, batch-wide total variation and the places of the
    # priors are those of the published code.
    yin = Recipe(
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
    # Carta 2022, B.1 to B.3; augmentation, N(0, 1) start and the clip at 3 are those of the published code.
    carta = Recipe(
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
    drawn = Recipe(
        "drawn_inversion", "ours: images of a kind, over its parameters (docs/ex_model.md)", steps=150, batch_size=500,
        lr=0.02, temperature=2.0, bn=2.0, bn_distance="gaussian_kl", bn_average=True, bn_optional=True, jitter=2,
        rotate=10.0, border="black",
    )  # fmt: skip
    # Nayak 2021, sec. 4.1.2: betas and temperature; steps, learning rate, batch and start as in its code.
    nayak = Recipe(
        "data_impressions/nayak",
        "Nayak 2021, Alg. 1 and sec. 4.1.2; steps, learning rate, batch and uniform start as in its code",
        steps=1500, batch_size=100, lr=0.001, temperature=20.0, init="uniform", targets="dirichlet", betas=(1.0, 0.1),
    )  # fmt: skip
    recipes = [
        yin, yin_imagenet, carta, carta_cifar, carta_core50, nayak, drawn,
        yin.replace(
            name="deep_inversion", source="Yin 2020, sec. 4.1 as deep_inversion/cifar10, with the clip of sec. 4.4",
            clip="valid",
        ),
        ours, ours_imagenet,
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
                (ours_imagenet, "sec. 4.2", 0.2),
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
