"""What synthetic images give away of the training images: copies, and who was in the training set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import Split
from exml_fast.evaluation.features import features, logits
from exml_fast.evaluation.images import opened
from exml_fast.inversion import Result

__all__ = ["Distances", "Leaks", "Membership", "leaks", "membership"]

# An image counts as near if at most this share of held-out images is nearer to the training images.
NEAR = 0.01
# The probability of so many near images by chance, below which the images are said to hold copies.
CHANCE = 1e-3


@dataclass(frozen=True)
class Distances:
    """Distances of images to the nearest training image, in one space."""

    nearest: Tensor
    """Position of the training image nearest to each synthetic image, int64 (N,)."""
    synthetic: Tensor
    """Its distance, float32 (N,)."""
    held_out: Tensor
    """The yardstick: the distance of each held-out image to its nearest training image, float32 (M,)."""

    @property
    def shares(self) -> Tensor:
        """For each synthetic image (1 + number of held-out images at most as far) / (M + 1), float64 (N,).

        Small values are suspicious: hardly any unseen real image is so near to the training images.
        """
        nearer = torch.searchsorted(self.held_out.sort().values, self.synthetic, right=True)
        return (1 + nearer.double()) / (1 + len(self.held_out))

    @property
    def near(self) -> float:
        """Share of the synthetic images whose :attr:`shares` are at most 0.01."""
        return float((self.shares <= NEAR).double().mean())

    @property
    def copies(self) -> bool:
        """Whether there are more near images than chance explains, if they were unseen real images."""
        count = len(self.synthetic)
        return _tail(count, round(self.near * count), 2 * NEAR) < CHANCE


@dataclass(frozen=True)
class Membership:
    """How well the loss of a network tells training images from held-out images."""

    auc: float
    """Area under the ROC curve: 0.5 is chance, 1 tells every image."""
    error: float
    """Standard error of ``auc`` (Hanley 1982)."""
    found: float
    """Share of the training images that are found where 1 % of the held-out images are taken for training images."""

    @property
    def reveals(self) -> bool:
        """Whether ``auc`` is more than three standard errors above chance."""
        return self.auc > 0.5 + 3 * self.error


@dataclass(frozen=True)
class Leaks:
    """The result of :func:`leaks`."""

    pixels: Distances
    """By pixels: root of the mean square difference."""
    features: Distances | None
    """By features of the first network; None without one."""
    loss: dict[str, Membership] = field(default_factory=dict)
    """For each network: its loss alone tells members (Yeom 2018)."""
    calibrated: dict[str, Membership] = field(default_factory=dict)
    """For each network: its loss minus the mean loss of the reference networks (Watson 2022); empty without any."""

    @property
    def copies(self) -> bool:
        """Whether the images hold copies of training images, by pixels or by features."""
        return self.pixels.copies or (self.features is not None and self.features.copies)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        spaces = {"pixels": self.pixels} | ({} if self.features is None else {"features": self.features})
        return {
            "copies": self.copies,
            "distances": {
                name: {
                    "near": found.near, "copies": found.copies, "smallest": float(found.synthetic.min()),
                    "median": float(found.synthetic.median()), "held_out_median": float(found.held_out.median()),
                    "nearest": found.nearest.tolist(), "shares": found.shares.tolist(),
                }
                for name, found in spaces.items()
            },
            "membership": {name: vars(found) | {"reveals": found.reveals} for name, found in self.loss.items()},
            "calibrated": {name: vars(found) | {"reveals": found.reveals} for name, found in self.calibrated.items()},
        }  # fmt: skip


def leaks(
    images: Result,
    training: Split,
    held_out: Split,
    *,
    networks: Mapping[str, Any] | None = None,
    references: Sequence[Any] = (),
) -> Leaks:
    """Measure what synthetic images, and networks that learned from them, give away of the training images.

    Copies: the distance of each synthetic image to the nearest training image, beside the same distance of real images
    that were not trained on. Membership: whether the loss of a network on an image tells if the image was trained on.

    Args:
        images: the synthetic images.
        training: images that the teacher was trained on, or a random part of them.
        held_out: images of the same distribution that no network was trained on, at least 100.
        networks: by name, first the teacher, then for example students of the images. A network is a classifier for
            the input of the images, an Expert, or a pair of a classifier and its InputSpec.
        references: networks that were trained on other images of the same classes. They say how hard an image is.

    Raises:
        ValueError: naming the argument: too few images, other image sizes, or a class for which a network has no logit.
    """
    if len(held_out) < 100:
        raise ValueError(f"held_out must hold at least 100 images, got {len(held_out)}")
    if len(training) == 0 or len(images) == 0:
        raise ValueError(f"images and training must not be empty, got {len(images)} and {len(training)}")
    made, seen, unseen = images.pixels(), images.spec.fit(training.images), images.spec.fit(held_out.images)
    root = math.sqrt(made[0].numel())
    by_pixels = _distances(made.flatten(1) / root, seen.flatten(1) / root, unseen.flatten(1) / root)
    asked = networks or {}
    by_features = None
    if asked:
        name, first = next(iter(asked.items()))
        network, spec, _ = opened(name, first, images.spec)
        made, seen, unseen = (features(network, spec.prepare(x)) for x in (made, training.images, held_out.images))
        by_features = _distances(made, seen, unseen)
    loss, calibrated = {}, {}
    hard = [_losses(f"references[{i}]", each, images, training, held_out) for i, each in enumerate(references)]
    for name, each in asked.items():
        of_members, of_others = _losses(name, each, images, training, held_out)
        loss[name] = membership(-of_members, -of_others)
        if hard:
            usual_members = torch.stack([members for members, _ in hard]).mean(0)
            usual_others = torch.stack([others for _, others in hard]).mean(0)
            calibrated[name] = membership(usual_members - of_members, usual_others - of_others)
    return Leaks(by_pixels, by_features, loss, calibrated)


def membership(members: Tensor, others: Tensor) -> Membership:
    """How well a score, larger for members, tells members from others.

    Args:
        members, others: scores (N,) and (M,), finite, at least one each.

    Raises:
        ValueError: for another shape, or a score that is not finite.
    """
    for name, scores in (("members", members), ("others", others)):
        if scores.dim() != 1 or len(scores) == 0 or not bool(scores.isfinite().all()):
            raise ValueError(f"{name} must be finite scores (N,) with N > 0, got shape {tuple(scores.shape)}")
    low = others.double().sort().values
    found = members.double()
    below = torch.searchsorted(low, found, right=False) + torch.searchsorted(low, found, right=True)
    auc = float(below.double().mean()) / (2 * len(low))
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    n, m = len(found), len(low)
    variance = auc * (1 - auc) + (n - 1) * (first - auc**2) + (m - 1) * (second - auc**2)
    threshold = low[max(0, math.ceil(0.99 * m) - 1)]
    return Membership(auc, math.sqrt(max(variance, 0.0) / (n * m)), float((found > threshold).double().mean()))


def _losses(name: str, given: Any, images: Result, training: Split, held_out: Split) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a network on each training and each held-out image."""
    network, spec, units = opened(name, given, images.spec)
    found = []
    for split in (training, held_out):
        says = logits(network, spec.prepare(split.images)).double()
        known = list(range(says.shape[1])) if units is None else units
        place = {unit: j for j, unit in enumerate(known)}
        if missing := sorted(set(split.labels.tolist()) - set(known)):
            raise ValueError(f"network {name!r} has no logit for the classes {missing[:8]}")
        wanted = torch.tensor([place[label] for label in split.labels.tolist()])
        found.append(torch.nn.functional.cross_entropy(says, wanted, reduction="none"))
    return found[0], found[1]


def _distances(made: Tensor, seen: Tensor, unseen: Tensor, chunk: int = 512) -> Distances:
    found = [torch.cdist(part, seen).min(1) for part in made.split(chunk)]
    yardstick = [torch.cdist(part, seen).amin(1) for part in unseen.split(chunk)]
    return Distances(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]), torch.cat(yardstick))


def _tail(count: int, least: int, share: float) -> float:
    """The probability of at least ``least`` of ``count`` independent events of probability ``share``."""
    below = sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(share) + (count - k) * math.log1p(-share)
        )
        for k in range(least)
    )  # fmt: skip
    return max(0.0, 1.0 - below)
