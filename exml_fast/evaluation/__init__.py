"""Scores of synthetic images: recognition by other networks, diversity, copies, leaks (Yin 2020, 4.2 and C.5)."""

from exml_fast.evaluation.features import features, logits
from exml_fast.evaluation.images import Evaluation, evaluate
from exml_fast.evaluation.leaks import Distances, Leaks, Membership, leaks, membership
from exml_fast.evaluation.predictions import accuracy, class_accuracies
from exml_fast.evaluation.scores import (
    Neighbours,
    agreement,
    diversity,
    inception_score,
    nearest_neighbours,
)

__all__ = [
    "Distances",
    "Evaluation",
    "Leaks",
    "Membership",
    "Neighbours",
    "accuracy",
    "agreement",
    "class_accuracies",
    "diversity",
    "evaluate",
    "features",
    "inception_score",
    "leaks",
    "logits",
    "membership",
    "nearest_neighbours",
]
