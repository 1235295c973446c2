"""Classifiers on features of exemplars."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from exml_fast.continual.class_incremental.classifiers import CLASSIFIERS, NearestMean


def clusters(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    return 2 * torch.eye(3, 5)[labels] + 0.3 * torch.randn(len(labels), 5, generator=generator), labels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_tells_clusters_apart(name: str) -> None:
    answer = CLASSIFIERS[name](*clusters(10, 0), 3)
    features, labels = clusters(20, 1)
    found = answer(features)
    assert found.dtype == torch.int64 and found.shape == (60,)
    assert (found == labels).double().mean() > 0.95
    assert torch.equal(found, CLASSIFIERS[name](*clusters(10, 0), 3)(features)), "the seed decides"


def test_the_nearest_mean_is_that_by_hand() -> None:
    features, labels = clusters(7, 0)
    unit = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([unit[labels == c].mean(0) for c in range(3)])
    means /= means.norm(dim=1, keepdim=True)
    asked = torch.randn(50, 5)
    distances = torch.cdist(asked / asked.norm(dim=1, keepdim=True), means)
    assert torch.equal(NearestMean(features, labels)(asked), distances.argmin(1))


def test_few_exemplars_have_fewer_than_five_neighbours() -> None:
    answer = CLASSIFIERS["k-nearest"](torch.eye(3)[:2], torch.tensor([0, 1]), 0)
    assert answer(torch.eye(3)[:1]).shape == (1,)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    found = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'exml_fast\[eval\]'"):
        CLASSIFIERS["svm"](*clusters(2, 0), 0)
