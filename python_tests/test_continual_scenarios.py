from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_experts import quadrants, trained

from exml_fast.continual.expert import Expert
from exml_fast.continual.scenarios import (
    confusion_matrix,
    experience_accuracies,
    joint,
    new_classes,
    stream_accuracy,
    train_stream,
)


@given(st.integers(1, 6), st.none() | st.integers(0, 100))
def test_new_classes_covers_every_class_once(step: int, seed: int | None) -> None:
    experiences = new_classes(quadrants(), step, seed)
    assert sorted(c for classes in experiences for c in classes) == [0, 1, 2, 3]
    assert all(len(classes) == step for classes in experiences[:-1])
    assert experiences == new_classes(quadrants(), step, seed)


def test_named_scenarios() -> None:
    assert joint(quadrants()) == [[0, 1, 2, 3]]
    assert new_classes(quadrants()) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="classes_per_step must be positive"):
        new_classes(quadrants(), 0)


def test_accuracies_and_confusion() -> None:
    first, _ = trained()
    data, experiences = quadrants(), new_classes(quadrants(), 2)
    accuracies = experience_accuracies(first, data, [*experiences, [9]])
    assert accuracies[0] >= 0.95 and accuracies[1] == 0 and math.isnan(accuracies[2])
    assert stream_accuracy(first, data, experiences) == pytest.approx(accuracies[0] / 2)
    assert stream_accuracy(first, data) == pytest.approx(accuracies[0] / 2)
    matrix = confusion_matrix(first, data, experiences)
    assert matrix.sum(1).tolist() == [10] * 4 and matrix[:, 2:].sum() == 0
    assert int(matrix.trace()) == round(10 * 2 * accuracies[0])


def test_train_stream_saves_experts_with_a_common_initialisation(tmp_path: Path) -> None:
    stages: list[str] = []
    stream = train_stream(
        quadrants(), new_classes(quadrants()), tmp_path, epochs=0, seed=4,
        progress=lambda stage, step, total, terms: stages.append(stage),
    )  # fmt: skip
    one, two = stream
    assert one.fingerprint() == two.fingerprint() and stream.experiences == [[0, 1], [2, 3]]
    assert one.card.training["common_initialisation"] is True
    assert Expert.load(tmp_path / "expert_01").card == one.card
    train_stream(quadrants(), [[0, 1], [2, 3]], tmp_path, epochs=1, progress=lambda s, *_: stages.append(s))
    assert stages == ["expert 1/2: train", "expert 2/2: train"]
    apart = train_stream(quadrants(), [[0], [1, 2]], epochs=0, head="own", common_initialisation=False)
    assert [e.units for e in apart] == [(0,), (1, 2)]
    assert not torch.equal(
        apart[0].model.state_dict()["features.0.bias"], apart[1].model.state_dict()["features.0.bias"]
    )
    with pytest.raises(ValueError, match="common_initialisation needs head='all'"):
        train_stream(quadrants(), [[0], [1]], head="own")
