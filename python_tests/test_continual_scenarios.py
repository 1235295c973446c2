from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_experts import quadrants, trained

from exml_fast.continual.expert import Expert
from exml_fast.continual.scenarios import (
    MultiHead,
    confusion_matrix,
    experience_accuracies,
    joint,
    new_classes,
    new_instances,
    stream_accuracy,
)
from exml_fast.continual.train import train_stream


@given(st.integers(1, 6), st.none() | st.integers(0, 100))
def test_new_classes_covers_every_class_once(step: int, seed: int | None) -> None:
    experiences = new_classes(quadrants(), step, seed)
    assert sorted(c for classes in experiences for c in classes) == [0, 1, 2, 3]
    assert all(len(classes) == step for classes in experiences[:-1])
    assert experiences == new_classes(quadrants(), step, seed)


def test_new_classes_of_several_sizes() -> None:
    assert new_classes(quadrants(), [1, 2]) == [[0], [1, 2], [3]]
    for wrong in ([], [2, 0], 0):
        with pytest.raises(ValueError, match="classes_per_step must be positive"):
            new_classes(quadrants(), wrong)


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


def test_new_instances_share_the_images_of_each_class() -> None:
    data = quadrants()
    parts = new_instances(data, 3, seed=1)
    sizes = torch.stack([torch.bincount(part.train.labels, minlength=4) for part in parts])
    assert sizes.sum(0).tolist() == [40] * 4 and int(sizes.max() - sizes.min()) <= 1
    every = torch.cat([part.train.images for part in parts]).flatten(1).double().sum(1).sort().values
    torch.testing.assert_close(every, data.train.images.flatten(1).double().sum(1).sort().values)
    assert all(part.test is data.test for part in parts)
    again = new_instances(data, 3, seed=1)
    assert all(torch.equal(a.train.labels, b.train.labels) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ValueError, match="steps must be at most 40, the images of class 0, got 41"):
        new_instances(data, 41)


def test_new_instances_keep_sessions_together() -> None:
    data = quadrants()
    sessions = torch.arange(len(data.train)) % 4 + 7
    recorded = dataclasses.replace(data, train=dataclasses.replace(data.train, groups=sessions))
    for session, part in enumerate(new_instances(recorded, 4)):
        assert part.train.groups is not None
        assert part.train.groups.unique().tolist() == [session + 7]
    with pytest.raises(ValueError, match="groups must be int64 of shape"):
        dataclasses.replace(data.train, groups=sessions[:3])


def test_a_multi_head_predictor_chooses_among_the_classes_of_the_task() -> None:
    data = quadrants()
    expert = trained()[0]  # of classes 0 and 1, with a unit for each of the four
    images = expert.input_spec.prepare(data.test.images)
    heads = MultiHead(expert, [[2, 0], [1, 3]])
    logits = expert.logits(images)
    assert heads.predict(images, task=0).tolist() == torch.tensor([2, 0])[logits[:, [2, 0]].argmax(1)].tolist()
    assert set(heads.predict(images, task=1).tolist()) <= {1, 3}
    for task in (None, 2, -1):
        with pytest.raises(ValueError, match="task must be an experience, 0 to 1"):
            heads.predict(images, task=task)
    with pytest.raises(ValueError, match=r"classes \[9\] are not among the expert's units"):
        MultiHead(expert, [[9]])


def test_a_stream_on_parts_of_the_data() -> None:
    parts = new_instances(quadrants(), 2)
    stream = train_stream(parts, [parts[0].classes] * 2, epochs=2)
    assert [card.training["samples"] for card in stream.cards] == [80, 80]
    with pytest.raises(ValueError, match="data must be one data set or 3, one an experience, got 2"):
        train_stream(parts, [parts[0].classes] * 3)
