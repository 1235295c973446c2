"""The loss of an inversion: a weighted sum of named terms, each a small class.

**Reduction.** A term is either per image, a tensor (N,), or of the batch, a scalar. The total is
Σ_n (per-image terms) + N · (batch terms), which is N times the mean loss of the papers. Published weights therefore
keep their meaning, and the gradient of an image's own terms does not depend on the other images of its batch. Only
batch terms couple images: BatchNorm statistics, and priors that a paper takes over the whole batch. The history
records means over images, which do not depend on the batch size either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from exml_fast import ops
from exml_fast.engine.statistics import LayerStatistics
from exml_fast.inversion.settings import Classification, Matching, Priors, StudentCompetition

__all__ = [
    "L2",
    "Blur",
    "Competition",
    "CrossEntropy",
    "Objective",
    "Prior",
    "StatisticsDistance",
    "Step",
    "Term",
    "TotalVariation",
]


EPSILON = 1e-5


@dataclass(frozen=True)
class Prior:
    """How a natural-image prior reads the images."""

    per_image: bool = True
    """True: norms over each image, a term (N,). False: norms over the whole batch, a scalar."""
    augmented: bool = False
    """True: of the augmented images. False: of the images before augmentation."""
    kernel_size: int = 3
    sigma: float = 1.0


@dataclass
class Step:
    """One forward pass: what the terms read."""

    images: Tensor
    """(N, C, H, W), the leaf that is optimised."""
    inputs: Tensor
    """(N, C, H, W), augmented."""
    logits: Tensor
    """(N, K)."""
    targets: Tensor
    """Logit positions (N,) int64, or soft targets (N, K)."""
    layers: Sequence[LayerStatistics] = ()
    student_logits: Tensor | None = None
    """(N, K): the logits of the student with which the images compete."""
    whole: int | None = None
    """Number of images of a batch of which these N are one process's part; None where N is the whole batch. A term of
    the batch then reads the whole batch (:func:`exml_fast.inversion.rank_statistics.over_ranks`)."""
    number: Tensor | None = None
    """int64 (1,), on the device: the number of this step, from 0."""
    _priors: dict[Prior, tuple[Tensor, ...]] = field(default_factory=dict)

    def prior(self, prior: Prior) -> tuple[Tensor, ...]:
        """``tv_l1, tv_l2, blur, l2`` of :func:`exml_fast.ops.image_prior`, computed once for all terms."""
        if prior not in self._priors:
            x = self.inputs if prior.augmented else self.images
            self._priors[prior] = ops.image_prior(x, prior.kernel_size, prior.sigma, prior.per_image)
        return self._priors[prior]


class Term(Protocol):
    """One part of the loss."""

    @property
    def name(self) -> str:
        """The term's key in the history."""
        ...

    @property
    def weight(self) -> float:
        """The term's factor in the total."""
        ...

    @property
    def couples(self) -> bool:
        """Whether the term is of the batch: the gradient of an image then depends on the other images."""
        ...

    def __call__(self, step: Step) -> Tensor:
        """(N,), or a scalar if the term couples the images; unweighted."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """−Σ_k y_k log softmax(logits / τ)_k for class indices or soft targets (Carta 2022, 4; Nayak 2021, Eq. 2)."""

    weight: float = 1.0
    temperature: float = 1.0
    name: str = "ce"
    couples: bool = False

    def __call__(self, step: Step) -> Tensor:
        """(N,)."""
        return ops.soft_cross_entropy(step.logits, step.targets, self.temperature, "none")


@dataclass(frozen=True)
class Competition:
    """1 − JS(teacher, student), which is low where student and teacher disagree (Yin 2020, Eq. 8)."""

    weight: float
    temperature: float = 1.0
    name: str = "compete"
    couples: bool = False

    def __call__(self, step: Step) -> Tensor:
        """(N,). ValueError without a student."""
        if step.student_logits is None:
            raise ValueError("the competition term needs a student")
        return ops.jensen_shannon(step.logits, step.student_logits, self.temperature, "none")


@dataclass(frozen=True)
class StatisticsDistance:
    """The sum over BatchNorm calls of the distance to the running statistics (Yin 2020, Eq. 4).

    ``distance`` and ``moment`` as in :func:`exml_fast.ops.bn_match`: Yin's norms are "l2" of the "var", Carta's
    squares (Carta 2022, 4.1) "squared" of the "std". ``first`` multiplies the layer that runs first. "gaussian_kl"
    adds 1e-5 to the variances, as BatchNorm does, because dead channels of real networks have a variance of zero.
    ``average`` divides by the number of channels of all layers, so that one weight suits networks of any width.
    """

    weight: float
    distance: str = "l2"
    moment: str = "var"
    first: float = 1.0
    average: bool = False
    name: str = "bn"
    couples: bool = True

    def __call__(self, step: Step) -> Tensor:
        """Scalar."""
        _, means, variances, target_means, target_variances = map(list, zip(*step.layers, strict=True))
        if self.distance == "gaussian_kl":
            variances, target_variances = ([v + EPSILON for v in vs] for vs in (variances, target_variances))
        share = 1 / sum(map(len, means)) if self.average else 1.0
        weights = [self.first * share] + [share] * (len(means) - 1)
        return ops.match_statistics(
            means, variances, target_means, target_variances, weights, self.distance, self.moment
        )


@dataclass(frozen=True)
class _PriorTerm:
    weight: float
    prior: Prior = Prior()

    @property
    def couples(self) -> bool:
        """Whether the norms are over the batch."""
        return not self.prior.per_image


@dataclass(frozen=True)
class TotalVariation(_PriorTerm):
    """Σᵢ ‖dᵢ‖ over the four neighbour differences (Yin 2020, Eq. 3, B.1); ``norm`` "l1": Σᵢ mean|dᵢ|."""

    norm: str = "l2"

    @property
    def name(self) -> str:
        """``tv_l1`` or ``tv_l2``."""
        return f"tv_{self.norm}"

    def __call__(self, step: Step) -> Tensor:
        """(N,) or scalar."""
        return step.prior(self.prior)[0 if self.norm == "l1" else 1]


@dataclass(frozen=True)
class Blur(_PriorTerm):
    """‖x − blur(x)‖, or its square (Carta 2022, 4.1)."""

    squared: bool = False
    name: str = "blur"

    def __call__(self, step: Step) -> Tensor:
        """(N,) or scalar."""
        value = step.prior(self.prior)[2]
        return value**2 if self.squared else value


@dataclass(frozen=True)
class L2(_PriorTerm):
    """‖x‖ (Yin 2020, Eq. 3), or its square (Carta 2022, 4.1)."""

    squared: bool = False
    name: str = "l2"

    def __call__(self, step: Step) -> Tensor:
        """(N,) or scalar."""
        value = step.prior(self.prior)[3]
        return value**2 if self.squared else value


class Objective:
    """A weighted sum of terms with distinct names. ValueError without terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        names = [term.name for term in self.terms]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"terms must be at least one, with distinct names, got {names}")
        self._known = dict[Any, Tensor]()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values that a call returns: each term's, then "loss"."""
        return (*(term.name for term in self.terms), "loss")

    @property
    def couples(self) -> bool:
        """Whether a term makes the gradient of an image depend on the other images of the batch."""
        return any(term.couples for term in self.terms)

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """The total to differentiate, and detached values (T + 1,): the unweighted terms, then the mean loss."""
        count = len(step.images)
        found = [term(step) for term in self.terms]
        couples = tuple(not value.dim() for value in found)
        dtype = found[0].dtype
        sums = torch.stack([value.sum().to(dtype) if value.dim() else value.to(dtype) for value in found])
        counts, weights, factors = self._factors(couples, count, step.whole, sums)
        total, values = sums @ factors, sums.detach() * counts
        loss = total.detach() if step.whole is None else values @ weights
        return total, torch.cat([values, loss[None]]) / count

    def _factors(self, couples: tuple[bool, ...], count: int, whole: int | None, like: Tensor) -> Tensor:
        """Three rows: how many images a value counts for, the terms' weights, and the values' shares in the total.

        They are made once and kept: a captured CUDA graph cannot take them from the host, and goes on reading them.
        """
        key = couples, count, whole, like.dtype, like.device
        if key not in self._known:
            counts = [float(count) if couple else 1.0 for couple in couples]
            weights = [float(term.weight) for term in self.terms]
            # A value of a part of a batch counts for the images of the whole batch.
            shares = [
                weight * (float(whole) if couple and whole is not None else images)
                for weight, images, couple in zip(weights, counts, couples, strict=True)
            ]
            self._known[key] = torch.tensor([counts, weights, shares], dtype=like.dtype, device=like.device)
        return self._known[key]

    @classmethod
    def of(
        cls,
        classification: Classification,
        priors: Priors,
        matching: Matching | None = None,
        competition: StudentCompetition | None = None,
        others: Sequence[Term] = (),
    ) -> Objective:
        """The terms to which a recipe's groups give a positive weight, then ``others``; ValueError if there is none."""
        tv = Prior(priors.tv_scope == "image", priors.prior_augmented)
        norm = Prior(priors.norm_scope == "image", priors.prior_augmented, priors.blur_kernel, priors.blur_sigma)
        if tv.per_image == norm.per_image:
            tv = norm  # then one pass computes all priors
        candidates: list[Term] = [
            CrossEntropy(classification.ce, classification.temperature),
            TotalVariation(priors.tv_l1, tv, "l1"),
            TotalVariation(priors.tv_l2, tv, "l2"),
            Blur(priors.blur, norm, priors.norm_squared),
            L2(priors.l2, norm, priors.norm_squared),
        ]
        if matching is not None:
            candidates.append(
                StatisticsDistance(
                    matching.bn, matching.bn_distance, matching.bn_moment, matching.bn_first, matching.bn_average
                )
            )
        if competition is not None:
            candidates.append(Competition(competition.compete, competition.compete_temperature))
        return cls([*(term for term in candidates if term.weight > 0), *others])
