"""What all learners share: heads, images, states, bad input, methods of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_learners import IDS, QUICK, SOME, SPEC, Net, continued, everything, made, net, same, split_of, tasks
from small_training import everything as everything_of
from small_training import unchanged
from torch import Tensor, nn

from exml_fast.continual.class_incremental import METHODS, FineTuning, Learner, Task, learner
from exml_fast.continual.class_incremental.learner import as_bytes
from exml_fast.data import InputSpec, Split
from exml_fast.models import create
from exml_fast.training import Training

FIRST, SECOND, THIRD = tasks()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_with_a_full_head(method: str) -> None:
    """Later logits are never predicted; the network that was given is left as it was."""
    given = net(7)
    with torch.no_grad():
        given.last.bias[5:] = 50.0  # classes that never come
    before = everything_of(given)
    taught = made(method, network=given, head="full")
    for task in tasks():
        learned = taught.learn(task)
        assert set(learned.seconds) >= {"all"} and learned.peak_mb >= 0
    images = SPEC.prepare(split_of([7, 2, 30, 4, 5], 4, 5).images)
    assert set(taught.predict(images).tolist()) <= {7, 2, 30, 4, 5}
    assert taught.network.get_submodule("last").out_features == 7 and unchanged(before, given)
    assert taught.features(images).shape == (20, 6) and not taught.network.training
    assert all(p.requires_grad for p in taught.network.parameters())
    with pytest.raises(ValueError, match=r"task must be within the 7 logits of the full head, got '8 classes'"):
        taught.learn(Task((50, 51, 52), split_of([50, 51, 52])))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in SOME])
def test_every_other_method_learns_with_a_growing_head(method: str) -> None:
    taught = made(method)
    for task in tasks():
        taught.learn(task)
    assert taught.classes == [7, 2, 30, 4, 5] and taught.number == 3
    assert taught.network.get_submodule("last").out_features == 5
    assert set(taught.predict(torch.randn(9, *SPEC.shape)).tolist()) <= {7, 2, 30, 4, 5}


def test_a_growing_head_keeps_the_rows_of_known_classes() -> None:
    taught = made("fine-tuning", epochs=1, lr=1e-9)
    taught.learn(FIRST)
    rows = taught.network.get_submodule("last").weight.clone()
    taught.learn(SECOND)
    torch.testing.assert_close(taught.network.get_submodule("last").weight[:2], rows, rtol=0, atol=1e-5)


def test_the_first_task_may_have_its_own_epochs() -> None:
    taught = made("fine-tuning", epochs=2, first_epochs=5)
    steps = [taught.learn(task).history["learn/step"][-1] for task in (FIRST, SECOND)]
    assert steps == [5 * 24 // 8, 2 * 24 // 8]
    small = made("joint", batch_size=20, epochs=1)
    small.learn(FIRST)
    assert small.learn(Task((1,), split_of([1], 6))).history["learn/step"] == [30 // 20], "batches are not the task's"


def test_images_of_another_size_and_floats_are_pixels_of_the_networks_input() -> None:
    large = torch.nn.functional.interpolate(FIRST.split.images.float(), (24, 24)).round().to(torch.uint8)
    split = SPEC.prepare(large)
    taught = made("icarl", total=8)
    taught.learn(Task(FIRST.classes, Split(large, FIRST.split.labels)))
    kept = taught.memory()["0"]
    assert kept.dtype == torch.uint8 and kept.shape[1:] == SPEC.shape and taught.nbytes == 8 * 64
    of_class = as_bytes(split[FIRST.split.labels == 7], SPEC)
    assert all(any(torch.equal(a, b) for b in of_class) for a in kept)
    floats, bytes_ = made("icarl", total=8), made("icarl", total=8)
    floats.learn(Task(FIRST.classes, Split(FIRST.split.images.float() / 255, FIRST.split.labels)))
    bytes_.learn(FIRST)
    assert same(everything(floats), everything(bytes_))


def test_a_network_of_the_first_task_is_adopted() -> None:
    base = made("fine-tuning")
    base.learn(FIRST)
    for method in ("icarl", "skd", "analytic", "fine-tuning"):
        taught = made(method)
        before = everything_of(base.network)
        learned = taught.adopt(FIRST, base.network)
        assert unchanged(before, base.network) and learned.history == {} and learned.working_bytes == 0
        images = torch.randn(5, *SPEC.shape)
        assert torch.equal(taught.features(images), base.features(images)) and taught.classes == [7, 2]
        taught.learn(SECOND)
        with pytest.raises(ValueError, match=r"task must be the first one, got 'task 3'"):
            taught.adopt(THIRD, net(1))
    for wrong, message in ((net(3), r"'last.weight' has shape \(3, 6\)"), (nn.Linear(2, 2), "missing")):
        taught = made("icarl")
        with pytest.raises(ValueError, match=f"network of the first task: weight .*{message}"):
            taught.adopt(FIRST, wrong)
        assert not taught.classes and len(taught.exemplars) == 0  # type: ignore[attr-defined]


def test_bad_networks_and_settings_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.out = nn.Linear(64, 5), nn.Conv1d(1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.last(x.flatten(1))[:, None])[:, 0]

    convolution = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    own = net()
    own.register_buffer("graph", own.last.weight.sum())
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (3, {}, "network must be a torch.nn.Module, got 'int'"),
        (convolution, {}, "no final linear layer"),
        (Two(), {}, "network must have a final linear layer that gives its 3 logits"),
        (nn.Linear(5, 3), {}, "Linear rejects images|must return logits"),
        (own, {}, "network must be one that can be copied, got Net"),
        (net(), {"epoch": 1}, "unknown field 'epoch'.*did you mean 'epochs'"),
        (net(), {"epochs": 0}, "epochs must be at least 1, got 0"),
        (net(), {"steps": 5}, "steps must be left out, as epochs decides it, got 5"),
        (net(), {"mixup": 0.5}, "mixup must be 0 in class-incremental learning, got 0.5"),
        (net(), {"head": "none"}, "head must be one of"),
        (net(), {"config": Training()}, "config must be a LabelSettings, got 'Training'"),
    ]
    for network, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            FineTuning(network, SPEC, **settings)
    with pytest.raises(ValueError, match="rejects images of shape"):
        FineTuning(net(), InputSpec(3, (8, 8), (0.5,) * 3, (0.2,) * 3))
    with pytest.raises(ValueError, match="learner must be asked after its first task"):
        made("icarl").predict(torch.zeros(1, *SPEC.shape))


def test_a_class_that_is_seen_twice_changes_nothing() -> None:
    taught = made("icarl")
    taught.learn(FIRST)
    before = everything(taught)
    with pytest.raises(ValueError, match=r"task has the classes \[2\], which earlier tasks had"):
        taught.learn(Task((9, 2), split_of([9, 2])))
    assert same(everything(taught), before)


@pytest.mark.parametrize("method", ["fine-tuning", "icarl", "analytic", "skd", "deep-inversion"])
def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing(method: str, tmp_path: Path) -> None:
    taught = made(method)
    taught.learn(FIRST)
    with torch.no_grad():
        taught.network.get_submodule("last").weight.fill_(float("nan"))
        taught.network.get_submodule("first").weight.fill_(float("nan"))
    before = {name: str(value) for name, value in everything(taught).items()}
    with pytest.raises((RuntimeError, ValueError), match=r"nan|NaN|finite"):
        taught.learn(SECOND, checkpoint_dir=tmp_path)
    assert {name: str(value) for name, value in everything(taught).items()} == before
    with pytest.raises(ValueError, match="finite"):
        taught.predict(torch.zeros(1, *SPEC.shape))


def test_the_state_is_a_copy() -> None:
    taught = made("icarl")
    taught.learn(FIRST)
    state, before = taught.state_dict(), everything(taught)
    taught.learn(SECOND)
    again = made("icarl")
    again.load_state_dict(state)
    assert same(everything(again), before) and again.classes == list(FIRST.classes)


def test_samples_are_some_images_of_earlier_classes() -> None:
    for method in ("icarl", "deep-inversion", "skd"):
        taught = made(method)
        taught.learn(FIRST)
        assert taught.samples is None
        taught.learn(SECOND)
        assert taught.samples is not None and taught.samples.images.dtype == torch.uint8
        assert set(taught.samples.labels.tolist()) <= {0, 1} and max(taught.samples.labels.bincount()) <= 4


def test_a_method_of_ones_own_is_a_subclass_with_teach() -> None:
    class Mine(Learner[Any]):
        def teach(self, lesson: Any) -> nn.Module:
            assert lesson.old == 2 and lesson.known == 4 and lesson.number == 1
            assert lesson.before()(torch.zeros(1, *SPEC.shape)).logits.shape == (1, 2)
            return lesson.network

    taught = Mine(net(), SPEC, **QUICK)
    taught.learn(FIRST)
    first = taught.network.state_dict()
    assert taught.learn(SECOND).seconds.keys() == {"all"} and taught.nbytes == 0
    assert torch.equal(taught.network.state_dict()["conv.weight"], first["conv.weight"])
    assert IDS[0] == tuple(taught.classes[:2]) and isinstance(taught.network, Net)


@pytest.mark.gpu
@pytest.mark.parametrize("method", SOME)
def test_learning_on_a_gpu(method: str, tmp_path: Path) -> None:
    taught = made(method, device="cuda")
    for task in tasks():
        taught.learn(task, checkpoint_dir=tmp_path)
    assert taught.features(torch.randn(3, *SPEC.shape)).device.type == "cpu"
    again = continued(method, taught.state_dict())
    images = SPEC.prepare(split_of([7, 2, 30, 4, 5], 3, 5).images)
    assert (again.predict(images) == taught.predict(images)).double().mean() > 0.7


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/mobilenet_v2"])
def test_networks_of_other_libraries(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    spec = InputSpec(3, (32, 32), (0.5,) * 3, (0.2,) * 3)
    taught = learner("icarl", create(name, num_classes=5), spec, total=8, epochs=1, batch_size=8)
    for group in ((3, 9), (1, 4)):
        labels = torch.tensor(group).repeat(8)
        taught.learn(Task(group, Split(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), labels)))
    images = torch.randn(4, 3, 32, 32)
    assert taught.network(images).shape == (4, 4) and set(taught.predict(images).tolist()) <= {3, 9, 1, 4}
