"""Scores of a set of synthetic images, by independent networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import DataSource, InputSpec, network_images
from exml_fast.evaluation.features import features, logits
from exml_fast.evaluation.scores import Neighbours, agreement, diversity, inception_score, nearest_neighbours
from exml_fast.inversion import Result

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """The result of :func:`evaluate`."""

    judges: dict[str, dict[str, Any]]
    """The scores of each judge: "top1" and "top5" (of fewer logits if it has fewer), shares in [0, 1]; "by_class", the
    "top1" of each class; "inception_score" and "inception_score_std"."""
    confusion: dict[str, Tensor]
    """For each judge the counts (C, C) of images by the class they were made for (rows) and the class that the judge
    predicts (columns), both in the order of ``classes``. Predictions outside ``classes`` are not counted."""
    classes: list[int]
    """The classes of the images, ascending."""
    diversity: dict[int, float]
    """For each class :func:`diversity`, in the feature space of the first judge."""
    neighbours: Neighbours | None = None
    """The nearest real images, in the feature space of the first judge; None without real images."""

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON values, without the confusion."""
        found: dict[str, Any] = {"judges": self.judges, "diversity": {str(c): d for c, d in self.diversity.items()}}
        if self.neighbours is not None:
            nearest = self.neighbours.distance[:, 0]
            found["memorisation"] = {
                "median_distance": float(nearest.median()),
                "smallest_distance": float(nearest.min()),
                "usual_distance_among_real": self.neighbours.usual,
                "memorised": self.neighbours.memorised,
                "nearest": self.neighbours.index[:, 0].tolist(),
            }
        return found


def evaluate(
    images: Result,
    judges: Mapping[str, Any],
    real: Tensor | DataSource | None = None,
    splits: int = 1,
) -> Evaluation:
    """Score synthetic images with independent networks, the judges.

    Args:
        images: result of an inversion.
        judges: the judges by name. A judge is a classifier for the same input; an object with a classifier as
            ``.model`` and its ``.input_spec`` and ``.units`` (an Expert); or a pair of a classifier and its InputSpec.
            Images are converted to the input of the judge. ``units[j]`` is the class of logit j; a judge without
            ``units`` has class j at logit j.
        real: pixels (M, c, h, w), uint8 or float in [0, 1], or a data set of images (whose floats are normalised
            already), among which copies are looked for.
        splits: number of parts over which the Inception score is averaged.

    Raises:
        ValueError: if there is no judge, a judge is no network, or a judge has no logit for a class of the images.
    """
    if not judges:
        raise ValueError("judges must hold at least one network")
    names = sorted(set(images.labels.tolist()))
    rows = torch.tensor([names.index(label) for label in images.labels.tolist()])
    found: dict[str, dict[str, Any]] = {}
    confusion: dict[str, Tensor] = {}
    space: tuple[nn.Module, InputSpec] | None = None
    for name, judge in judges.items():
        network, spec, units = opened(name, judge, images.spec)
        space = space or (network, spec)
        says = logits(network, _for(spec, images))
        known = list(range(says.shape[1])) if units is None else units
        if missing := [label for label in names if label not in known]:
            raise ValueError(f"judge {name!r} has no logit for the classes {missing[:8]}")
        place = {unit: j for j, unit in enumerate(known)}
        wanted = torch.tensor([place[label] for label in images.labels.tolist()])
        right = agreement(says, wanted)
        score, deviation = inception_score(says, splits)
        found[name] = {
            "top1": float(right.double().mean()),
            "top5": float(agreement(says, wanted, min(5, says.shape[1])).double().mean()),
            "by_class": {str(c): float(right[images.labels == c].double().mean()) for c in names},
            "inception_score": score,
            "inception_score_std": deviation,
        }
        among = says[:, [place[label] for label in names]].argmax(1)
        inside = torch.isin(says.argmax(1), torch.tensor([place[label] for label in names]))
        counts = torch.zeros(len(names), len(names), dtype=torch.int64)
        counts.index_put_((rows[inside], among[inside]), torch.ones(int(inside.sum()), dtype=torch.int64), True)
        confusion[name] = counts
    assert space is not None
    network, spec = space
    seen = features(network, _for(spec, images))
    neighbours = None if real is None else nearest_neighbours(seen, features(network, _real(real, spec)))
    return Evaluation(found, confusion, names, diversity(seen, images.labels), neighbours)


def _real(real: Tensor | DataSource, spec: InputSpec) -> Tensor:
    return spec.prepare(real) if isinstance(real, Tensor) else network_images(real, spec, name="real")


def _for(spec: InputSpec, images: Result) -> Tensor:
    return images.images if spec == images.spec else spec.prepare(images.pixels())


def opened(name: str, judge: Any, spec: InputSpec) -> tuple[nn.Module, InputSpec, list[int] | None]:
    """A network with its input (``spec`` if it names none) and its units. ValueError if it is no network."""
    units = getattr(judge, "units", None)
    if isinstance(judge, tuple):
        network, spec = judge[0], InputSpec.of(judge[1])
    elif not isinstance(judge, nn.Module) and isinstance(getattr(judge, "model", None), nn.Module):
        network, spec = judge.model, InputSpec.of(getattr(judge, "spec", judge))
    else:
        network = judge
    if not isinstance(network, nn.Module):
        raise ValueError(f"network {name!r} must be a torch.nn.Module, got {type(network).__name__}")
    return network, spec, None if units is None or isinstance(judge, nn.Module) else list(units)
