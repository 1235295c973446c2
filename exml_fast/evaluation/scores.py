"""Scores computed from logits and from features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Neighbours", "agreement", "diversity", "inception_score", "nearest_neighbours"]


def agreement(logits: Tensor, positions: Tensor, top: int = 1) -> Tensor:
    """For each image whether its class is among the ``top`` largest logits (Yin 2020, Table 2).

    Args:
        logits: (N, K), of an independent network.
        positions: int64 (N,), the position of each image's class among the logits.
        top: between 1 and K.

    Returns:
        bool (N,).

    Raises:
        ValueError: for another shape or an impossible ``top``.
    """
    if logits.dim() != 2 or positions.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, K) and positions (N,), got {tuple(logits.shape)}, {tuple(positions.shape)}"
        )
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top must be between 1 and the {logits.shape[1]} logits, got {top}")
    return (logits.topk(top, 1).indices == positions[:, None]).any(1)


def inception_score(logits: Tensor, splits: int = 1) -> tuple[float, float]:
    """Inception score exp E KL(p(y | x) ‖ p(y)), between 1 and K (Salimans 2016; Yin 2020, Table 3).

    Scores are comparable between sets of images of the same classes, and only if the same network gave the logits.

    Args:
        logits: (N, K).
        splits: number of equal parts of the images, between 1 and N.

    Returns:
        Mean and (biased) standard deviation over the parts; the deviation of one part is 0.

    Raises:
        ValueError: for another shape or an impossible number of parts.
    """
    if logits.dim() != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"splits must be between 1 and the {len(logits)} images, got {splits}")
    scores = []
    for part in logits.double().log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - torch.tensor(float(len(part))).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


@dataclass(frozen=True)
class Neighbours:
    """The real images nearest to each synthetic one, in feature space."""

    index: Tensor
    """Positions of the nearest real images, nearest first, int64 (N, k)."""
    distance: Tensor
    """Their Euclidean distances, float32 (N, k)."""
    usual: float
    """Median distance between a real image and the real image nearest to it."""

    @property
    def memorised(self) -> float:
        """Share of the synthetic images whose distance to a real image is less than half of ``usual``."""
        return float((self.distance[:, 0] < 0.5 * self.usual).double().mean())


def nearest_neighbours(synthetic: Tensor, real: Tensor, k: int = 1, chunk: int = 1024) -> Neighbours:
    """Find the real images nearest to each synthetic image, by Euclidean distance of features (Yin 2020, Fig. 8).

    Args:
        synthetic: features (N, D).
        real: features (M, D), with M of at least 2.
        k: number of neighbours, between 1 and M.
        chunk: images compared at once, which bounds the memory.

    Raises:
        ValueError: for another shape or an impossible ``k``.
    """
    if synthetic.dim() != 2 or real.dim() != 2 or synthetic.shape[1] != real.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(synthetic.shape)} and {tuple(real.shape)}")
    if len(real) < 2 or not 1 <= k <= len(real):
        raise ValueError(
            f"k must be between 1 and the number of real images, at least 2, got k = {k} for {len(real)} images"
        )
    found = [torch.cdist(part, real).topk(k, 1, largest=False) for part in synthetic.float().split(chunk)]
    own = []
    for start in range(0, len(real), chunk):
        distance = torch.cdist(real[start : start + chunk].float(), real.float())
        distance[torch.arange(len(distance)), start + torch.arange(len(distance))] = torch.inf
        own.append(distance.amin(1))
    index, distances = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    return Neighbours(index, distances, float(torch.cat(own).median()))


def diversity(features: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean cosine distance between the images of each class, between 0 (copies) and 2.

    Args:
        features: (N, D).
        labels: (N,).

    Returns:
        The distance by class. A class with a single image has none.

    Raises:
        ValueError: for another shape.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be (N, D) and labels (N,), got {tuple(features.shape)}, {tuple(labels.shape)}")
    found = {}
    for label in labels.unique().tolist():
        unit = torch.nn.functional.normalize(features[labels == label].double(), dim=1)
        count = len(unit)
        if count > 1:
            # The cosines of all ordered pairs add up to the squared norm of the sum, minus one for each image itself.
            found[int(label)] = 1 - (float(unit.sum(0).square().sum()) - count) / (count * (count - 1))
    return found
