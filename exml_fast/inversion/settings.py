"""The groups of settings of which a recipe consists; each part of the inversion reads only the groups that it needs.

``name`` and ``source`` apart, these fields are all that a :class:`~exml_fast.inversion.recipes.Recipe` has. The
random transforms are a group too: :class:`exml_fast.inversion.augmentation.Augmentation`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from exml_fast.ops.reference import least_image_size
from exml_fast.validation import Count, Natural, NonNegative, Positive, require, settings

__all__ = ["Classification", "Matching", "Optimisation", "Pixels", "Priors", "StudentCompetition"]

Below1 = Annotated[float, Field(ge=0, lt=1)]


@settings
class Optimisation:
    """Steps, batches and learning rates (:mod:`exml_fast.inversion.stepper`)."""

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
    stop_confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Stop an image once the network's probability (temperature 1) of its class is at least this (0.99)."""

    def check(self) -> None:
        """Rules between fields; ValueError."""
        if self.coarse_steps:
            require(self.stop_confidence is None, "stop_confidence", "None with coarse_steps", self.stop_confidence)

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


@settings
class Pixels:
    """Initial values and limits of pixels (:mod:`exml_fast.inversion.canvas`); not used with a parametrisation."""

    init: Literal["normal", "uniform"] = "normal"
    """"normal": N(0, 1) in the network's input space; "uniform": U(0, 1) pixels, then normalised."""
    init_scale: NonNegative = 1.0
    """Factor of the initial values."""
    spectrum: Annotated[float, Field(ge=0, le=4)] = 0.0
    """γ in the amplitudes f^−γ of waves of frequency f, in Adam's steps and in the initial noise
    (:class:`exml_fast.inversion.spectrum.NaturalSpectrum`). 0 treats every pixel alone, as the papers do."""
    correlation: Below1 = 0.0
    """Correlation of the channels of a pixel, in Adam's steps and in the initial noise."""
    clip: str | float | None = None
    """After each step: None, "valid" (the range of pixels, Yin 2020, Eq. 16) or ± a number."""

    def check(self) -> None:
        """Rules that the type of ``clip`` does not express; ValueError."""
        fits = self.clip in (None, "valid") or (isinstance(self.clip, float) and self.clip > 0)
        require(fits, "clip", "None, 'valid' or a positive number", self.clip)


@settings
class Classification:
    """How the network shall classify the images (:mod:`exml_fast.inversion.targets`)."""

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
    """Of the cross-entropy."""
    ce: NonNegative = 1.0
    """Weight of the cross-entropy."""


@settings
class Priors:
    """Natural-image priors: weights, and how they read the images (:class:`exml_fast.inversion.objective.Prior`)."""

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

    def check(self) -> None:
        """The kernel of the blur has a centre; ValueError."""
        require(self.blur_kernel % 2 == 1, "blur_kernel", "an odd integer from 1 to 15", self.blur_kernel)

    @property
    def least_size(self) -> int:
        """Height and width that images must have, in pixels."""
        used = self.tv_l1 + self.tv_l2 + self.blur + self.l2 > 0
        return least_image_size(self.blur_kernel) if used else 1


@settings
class Matching:
    """The distance to the BatchNorms' statistics (:class:`exml_fast.inversion.objective.StatisticsDistance`)."""

    bn: NonNegative = 0.0
    """Weight of the distance."""
    bn_distance: Literal["l2", "squared", "gaussian_kl"] = "l2"
    bn_moment: Literal["var", "std"] = "var"
    bn_first: NonNegative = 1.0
    """Additional factor of the first BatchNorm layer."""
    bn_average: bool = False
    """Divide by the number of channels of all layers, so that one weight suits networks of any width."""
    bn_memory: Below1 | Literal["set"] = 0.0
    """Match the statistics of this batch and of earlier ones: a number is the weight of an exponential average of
    finished batches (Fang 2022), "set" counts every image alike (Dikstein 2024), 0 matches each batch alone
    (:class:`exml_fast.inversion.set_statistics.SetStatistics`)."""
    bn_optional: bool = False
    """Omit the BatchNorm term for a network without BatchNorm, instead of raising an error."""


@settings
class StudentCompetition:
    """The competition 1 − JS with a student (Yin 2020, Eq. 8)."""

    compete: NonNegative = 0.0
    """Weight of the competition."""
    compete_temperature: Positive = 1.0
