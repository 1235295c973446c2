"""The scores, of logits and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Neighbours", "agreement", "diversity", "inception_score", "nearest_neighbours"]


def agreement(logits: Tensor, positions: Tensor, top: int = 1) -> Tensor:
    """Whether each image's class is among the ``top`` largest logits, (N,) bool (Yin 2020, Table 2).

    Args:
        logits: (N, K) of an independent network.
        positions: (N,) int64, the logit of each image's class.
    """
    if logits.dim() != 2 or positions.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, K) and positions (N,), got {tuple(logits.shape)}, {tuple(positions.shape)}"
        )
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top must be between 1 and the {logits.shape[1]} logits, got {top}")
    return (logits.topk(top, 1).indices == positions[:, None]).any(1)


def inception_score(logits: Tensor, splits: int = 1) -> tuple[float, float]:
    """Mean and deviation over ``splits`` of exp E KL(p(y | x) ‖ p(y)) (Salimans 2016; Yin 2020, Table 3).

    ``logits``: (N, K) of the network that judges: a network of one's own gives a score that compares image sets of the
    same classes, not papers. Between 1 and K. The deviation is biased, 0 for one split. ValueError for fewer images
    than splits.
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
    """(N, k) int64: which."""
    distance: Tensor
    """(N, k) float32: how far."""
    usual: float
    """Median distance of a real image to its own nearest among the other real ones."""

    @property
    def memorised(self) -> float:
        """Share of synthetic images nearer to a real one than half of what is usual among the real ones."""
        return float((self.distance[:, 0] < 0.5 * self.usual).double().mean())


def nearest_neighbours(synthetic: Tensor, real: Tensor, k: int = 1, chunk: int = 1024) -> Neighbours:
    """Nearest real images by Euclidean distance of features, (N, D) and (M, D) (Yin 2020, Fig. 8).

    ValueError unless both have the same D, and M is at least two and at least ``k``.
    """
    if synthetic.dim() != 2 or real.dim() != 2 or synthetic.shape[1] != real.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(synthetic.shape)} and {tuple(real.shape)}")
    if len(real) < 2 or not 1 <= k <= len(real):
        raise ValueError(f"k must be between 1 and the number of real images (two at least), got {k} of {len(real)}")
    found = [torch.cdist(part, real).topk(k, 1, largest=False) for part in synthetic.float().split(chunk)]
    own = []
    for start in range(0, len(real), chunk):
        distance = torch.cdist(real[start : start + chunk].float(), real.float())
        distance[torch.arange(len(distance)), start + torch.arange(len(distance))] = torch.inf
        own.append(distance.amin(1))
    index, distances = torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
    return Neighbours(index, distances, float(torch.cat(own).median()))


def diversity(features: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean cosine distance, 0 to 2, between the images of each class; classes of one image are left out.

    ``features`` (N, D), ``labels`` (N,). A generator that makes the same image again has 0.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be (N, D) and labels (N,), got {tuple(features.shape)}, {tuple(labels.shape)}")
    found = {}
    for label in labels.unique().tolist():
        unit = torch.nn.functional.normalize(features[labels == label].double(), dim=1)
        count = len(unit)
        if count > 1:
            # Σ over ordered pairs of the cosines is the squared norm of the sum, less the N of each with itself.
            found[int(label)] = 1 - (float(unit.sum(0).square().sum()) - count) / (count * (count - 1))
    return found
