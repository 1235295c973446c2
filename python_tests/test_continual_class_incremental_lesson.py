"""The network before a task, and stages that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_learners import SPEC, made, net, split_of, tasks
from torch import nn

from exml_fast.continual.class_incremental.lesson import Lesson, Previous
from exml_fast.data import Split
from exml_fast.profiling import Meter
from exml_fast.training import Rounded, Training


def lesson(folder: Path | None = None, **more: Any) -> Lesson:
    split = Split(split_of([0, 1], 7).images, torch.arange(14) % 2)
    config = Training(batch_size=4, precision="float32")
    given: dict[str, Any] = {"folder": folder, "identity": "this"} | more
    return Lesson(0, split, 0, 2, net(2), "last", None, SPEC, config, 3, 5, None, **given)


def test_the_previous_network_answers_and_does_not_learn() -> None:
    """Its final layer is neither the last one registered nor the last one in name."""
    network, images = net(3).train(), torch.randn(6, *SPEC.shape)
    previous = Previous(network, "last", "float32")
    network.eval()
    found = previous(images)
    torch.testing.assert_close(found.logits, network(images))
    torch.testing.assert_close(found.features, network.features(images))
    torch.testing.assert_close(previous.classifier(found.features), found.logits)
    assert not found.logits.requires_grad and not any(p.requires_grad for p in previous.model.parameters())
    with torch.no_grad():
        network.last.weight.zero_()
    assert torch.equal(previous(images).logits, found.logits), "it is a copy"
    assert not previous.model.get_submodule("last")._forward_pre_hooks
    rounded = Previous(network, "last", "bfloat16")(images)
    assert rounded.features.dtype == rounded.logits.dtype == torch.float32


@pytest.mark.parametrize("head", ["growing", "full"])
def test_the_previous_network_has_the_logits_of_old_classes_alone(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taught, seen = made("lwf", network=net(6), head=head), []
    first, second, _ = tasks()
    taught.learn(first)
    images = torch.randn(5, *SPEC.shape)
    expected = taught.network(images)[:, :2]
    monkeypatch.setattr(taught, "teach", lambda lesson: seen.append(lesson) or lesson.network)
    taught.learn(second)
    torch.testing.assert_close(seen[0].before()(images).logits, expected)
    torch.testing.assert_close(seen[0].network.eval()(images)[:, :2], expected)
    assert seen[0].network.get_submodule("last").out_features == (6 if head == "full" else 4)


def test_steps_are_those_of_the_epochs_over_the_images() -> None:
    taken = lesson()
    assert (taken.training.steps, taken.training.batch_size) == (3 * (14 // 4), 4)
    assert (taken.training_on(3).steps, taken.training_on(3).batch_size) == (3, 3)
    assert (taken.training_on(100).steps, taken.training_on(100).batch_size) == (75, 4)


def test_observed_features_have_gradients() -> None:
    taken, network = lesson(), Rounded(net(2), "float32")
    found = taken.observed(network, torch.randn(4, *SPEC.shape))
    found.features.sum().backward()
    assert network.model.get_submodule("conv").weight.grad is not None
    assert taken.classifier(network) is network.model.get_submodule("last")


def test_features_of_pixels() -> None:
    taken, network = lesson(), net(2).eval()
    torch.testing.assert_close(
        taken.features(network, taken.split.images), network.features(SPEC.prepare(taken.split.images))
    )
    with torch.no_grad():
        network.first.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="the features of Net must be finite"):
        taken.features(network, taken.split.images)


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    made_here: list[int] = []

    def make() -> dict[str, Any]:
        made_here.append(1)
        taken.record.history["stage/loss"] = [1.0, 2.0]
        return {"tensor": torch.rand(3), "number": 7}

    taken = lesson(tmp_path)
    state = torch.get_rng_state()
    first = taken.kept("stage", make)
    assert torch.equal(torch.get_rng_state(), state), "what a stage draws changes nothing"
    again = lesson(tmp_path)
    second = again.kept("stage", make)
    assert len(made_here) == 1 and torch.equal(first["tensor"], second["tensor"]) and second["number"] == 7
    assert again.record.seconds == taken.record.seconds and again.record.history == {"stage/loss": [1.0, 2.0]}
    assert torch.equal(lesson().kept("other", make)["tensor"], first["tensor"]), "as if it were the only stage"
    with pytest.raises(ValueError, match="belongs to another run"):
        lesson(tmp_path, identity="another").kept("stage", make)


def test_seconds_before_an_interruption_count() -> None:
    record = lesson().record
    record.seconds["learn"] = 100.0
    with Meter() as meter:
        pass
    record.add("learn", meter)
    record.add("exemplars", meter)
    assert record.seconds == {"learn": 100.0, "exemplars": meter.seconds} and record.peak_mb == meter.peak_mb


def test_progress_names_task_and_stage() -> None:
    told: list[Any] = []
    first, second, _ = tasks()
    taught = made("icarl")
    for task in (first, second):
        taught.learn(task, progress=lambda *a: told.append(a))
    assert [a[0] for a in told] == ["task 1: learn", "task 2: learn"]
    assert all(a[1] == a[2] and a[3]["loss"] > 0 for a in told)
    assert lesson().report("learn") is None and lesson().place("x") is None


def test_a_network_in_evaluation_mode_is_returned() -> None:
    taken = lesson()
    given = net(2)

    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch.images), batch.labels)

    found = taken.learn(given, taken.batches(taken.split, taken.training), loss, taken.training, stage="mine")
    assert not any(module.training for module in found.modules()) and found is not given
    assert not torch.equal(found.get_submodule("conv").weight, given.conv.weight)
    assert taken.record.history.keys() == {"mine/step", "mine/loss"} and taken.record.seconds["mine"] > 0
