"""A whole protocol: accuracies, resume, and learners on digits in the expected order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_learners import IDS, SPEC, everything, in_small_blocks, made, net, same, split_of, tasks
from torch import Tensor, nn

from exml_fast.continual.class_incremental import IncrementalResult, Task, incremental, learner, tasks_of
from exml_fast.data import Split, load

TEST = split_of([c for group in IDS for c in group], 6, 9)


class Wrong:
    """Predicts the class before, in the order in which they came."""

    def __init__(self, taught: Any) -> None:
        self.taught = taught

    def __call__(self, images: Tensor) -> Tensor:
        known = self.taught.classes
        brightest = images[:, 0].mean(2).argmax(1).tolist()
        true = [next(c for c in known if c % 8 == column) for column in brightest]
        return torch.tensor([known[known.index(c) - 1] for c in true])


def test_accuracies_and_confusion_are_those_of_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    taught, told = made("fine-tuning"), list[int]()
    monkeypatch.setattr(taught, "predict", Wrong(taught))
    found = incremental(taught, tasks(), TEST, after=lambda result: told.append(len(result.tasks)))
    assert [t.accuracies for t in found.tasks] == [[0.0], [0.0, 0.0], [0.0, 0.0, 0.0]] and told == [1, 2, 3]
    assert torch.equal(found.tasks[-1].confusion, 6 * torch.eye(5, dtype=torch.int64).roll(-1, 1))
    assert found.average == found.last == 0 and found.learner is taught


def test_averages() -> None:
    taught = made("joint", epochs=30)
    found = incremental(taught, tasks(), TEST)
    for number, task in enumerate(found.tasks):
        classes = [c for group in IDS[: number + 1] for c in group]
        images = TEST.of_classes(classes)
        assert task.confusion.sum(1).tolist() == [6] * len(classes)
        if number == 2:
            right = taught.predict(SPEC.prepare(images.images)) == images.labels
            assert task.accuracy == pytest.approx(float(right.double().mean()))
            parts = [float(right[torch.isin(images.labels, torch.tensor(g))].double().mean()) for g in IDS]
            assert task.accuracies == pytest.approx(parts)
    assert found.average == pytest.approx(sum(t.accuracy for t in found.tasks) / 3)
    assert found.last == found.tasks[-1].accuracy > 0.5


def values(found: IncrementalResult) -> list[Any]:
    return [
        (t.accuracies, t.accuracy, t.confusion.tolist(), t.learned.history, t.learned.nbytes, t.learned.working_bytes)
        for t in found.tasks
    ]


@pytest.mark.parametrize("method", ["icarl", "skd", "r-dfcil"])
def test_a_protocol_resumes_bit_for_bit(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted within tasks and after their tests."""
    in_small_blocks(monkeypatch)
    whole, calls, stops = made(method), 0, 0
    expected = incremental(whole, tasks(), TEST)

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt

    while True:
        taught = made(method)
        try:
            found = incremental(taught, tasks(), TEST, progress=interrupt, after=interrupt, checkpoint_dir=tmp_path)
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 60
    assert stops >= 2 and values(found) == values(expected) and same(everything(taught), everything(whole))
    assert [p.name for p in tmp_path.iterdir()] == ["incremental.pt"]
    again = made(method)
    told: list[Any] = []
    found = incremental(again, tasks(), TEST, progress=lambda *a: told.append(a), checkpoint_dir=tmp_path)
    assert not told and values(found) == values(expected), "a finished run is not learned again"
    with pytest.raises(ValueError, match="belongs to another run"):
        incremental(made(method, seed=3), tasks(), TEST, checkpoint_dir=tmp_path)


def test_an_interrupted_test_does_not_learn_the_task_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = made("icarl")

    def stop(_images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(taught, "predict", stop)
    with pytest.raises(KeyboardInterrupt):
        incremental(taught, tasks(), TEST, checkpoint_dir=tmp_path)
    told: list[str] = []
    again = made("icarl")
    found = incremental(again, tasks(), TEST, progress=lambda *a: told.append(a[0]), checkpoint_dir=tmp_path)
    assert set(told) == {"task 2: learn", "task 3: learn"} and len(found.tasks) == 3
    assert found.tasks[0].learned.seconds["learn"] > 0


def test_a_network_of_the_first_task_is_not_learned_again(tmp_path: Path) -> None:
    base, told = made("fine-tuning"), list[str]()
    base.learn(tasks()[0])
    first = base.network
    found = incremental(made("lwf"), tasks(), TEST, first=first, progress=lambda *a: told.append(a[0]))
    assert set(told) == {"task 2: learn", "task 3: learn"} and found.tasks[0].learned.history == {}
    with pytest.raises(ValueError, match="network of the first task"):
        incremental(made("lwf"), tasks(), TEST, first=net(5))


def test_bad_runs_are_named_before_anything_is_learned() -> None:
    told: list[Any] = []
    known = made("fine-tuning")
    known.learn(tasks()[0])
    twice = [*tasks()[:2], Task((4, 9), split_of([4, 9]))]
    cases: list[tuple[Any, list[Task], Split, str]] = [
        (made("fine-tuning"), [], TEST, "tasks must hold at least one task"),
        (known, tasks()[1:], TEST, "learner must be before its first task, but knows 2 classes"),
        (made("fine-tuning"), twice, TEST, r"tasks must have each class once, got \[4\] twice"),
        (made("fine-tuning"), tasks(), TEST.of_classes([7, 2, 30]), r"test has no images of the classes \[4, 5\]"),
        (made("icarl", total=4), tasks(), TEST, "total must be at least the number of classes, 5, got 4"),
        (made("abd", images=3), tasks(), TEST, "images must be at least the number of old classes, 4, got 3"),
        (made("lwf", network=net(4), head="full"), tasks(), TEST, "within the 4 logits of the full head"),
    ]
    for taught, given, test, message in cases:
        with pytest.raises(ValueError, match=message):
            incremental(taught, given, test, progress=lambda *a: told.append(a))
    assert not told


def test_learners_of_digits_are_in_the_expected_order() -> None:
    """Fine-tuning < LwF.MC < iCaRL <= joint training, five tasks of two digits each."""
    data, last = load("digits"), dict[str, float]()
    data = dataclasses.replace(data, train=data.train.subset(torch.arange(0, len(data.train), 2)))

    def network() -> nn.Module:
        torch.manual_seed(0)
        layers = [(1, 8), (8, 16), (16, 32)]
        blocks = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in layers]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    for method in ("fine-tuning", "lwf-mc", "icarl", "joint"):
        settings: dict[str, Any] = {"epochs": 8, "batch_size": 32, "augmentation": {}, "precision": "float32"}
        settings |= {"total": 200} if method == "icarl" else {}
        taught = learner(method, network(), data.spec, **settings)
        last[method] = incremental(taught, tasks_of(data, "b0-5"), data.test).last
    assert last["fine-tuning"] + 0.05 < last["lwf-mc"] and last["lwf-mc"] + 0.2 < last["icarl"] <= last["joint"]
    assert last["joint"] > 0.9
