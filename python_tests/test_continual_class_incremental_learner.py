"""What all learners share: nothing changes where a task fails, it resumes bit for bit, heads, images, bad input."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_learners import IDS, QUICK, SPEC, Net, everything, in_small_blocks, made, net, same, split_of, tasks
from small_training import everything as everything_of
from small_training import unchanged
from torch import Tensor, nn

from exml_fast.continual.class_incremental import METHODS, FineTuning, Learner, Task
from exml_fast.continual.class_incremental.learner import as_bytes
from exml_fast.data import InputSpec, Split
from exml_fast.training import Training

# One of each way to keep, to make or to leave out images of old classes.
SOME = [
    "joint", "fine-tuning", "fixed-representation", "lwf-mc", "icarl", "icarl-collage-random-crop",
    "synthetic-exemplars-adaptive", "inverted-random-images", "deep-inversion", "dual-distillation", "skd",
    "skd-without-generator", "skd-inverted", "abd", "r-dfcil", "analytic",
]  # fmt: skip
FIRST, SECOND, THIRD = tasks()


class Interrupts:
    """Raises at call ``at`` of progress."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.told = at, error, list[tuple[Any, ...]]()

    def __call__(self, *told: Any) -> None:
        self.told.append(told)
        torch.rand(3)  # what progress draws changes nothing
        if len(self.told) == self.at:
            raise self.error


def continued(method: str, state: dict[str, Any]) -> Learner[Any]:
    """A learner of another process."""
    taught = made(method)
    taught.load_state_dict(copy.deepcopy(state))
    return taught


@pytest.mark.parametrize("method", SOME)
def test_a_task_is_learned_bit_for_bit_whatever_interrupts_it(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process is interrupted after one more block; one by an error after which no checkpoint is written."""
    in_small_blocks(monkeypatch)
    whole = made(method)
    whole.learn(FIRST)
    start, before = whole.state_dict(), everything(whole)
    learned = whole.learn(SECOND)
    for error in (KeyboardInterrupt, RuntimeError):
        folder = tmp_path / error.__name__
        for count in itertools.count(2):
            taught = continued(method, start)
            interrupts = Interrupts(2 if error is KeyboardInterrupt else count, error)
            caller = torch.get_rng_state()
            try:
                found = taught.learn(SECOND, progress=interrupts, checkpoint_dir=folder)
            except error:
                assert same(everything(taught), before), "an interrupted task changes nothing"
                assert taught.predict(torch.zeros(2, *SPEC.shape)).shape == (2,)
                assert count < 200
            else:
                break
            finally:
                torch.set_rng_state(caller)
        assert same(everything(taught), everything(whole))
        assert not list(folder.iterdir()), "nothing is left behind"
        assert found.history == learned.history and found.nbytes == learned.nbytes
        assert found.working_bytes == learned.working_bytes and found.seconds.keys() == learned.seconds.keys()
        assert found.seconds["all"] >= sum(s for stage, s in found.seconds.items() if stage != "all") >= 0


@pytest.mark.parametrize("method", ["icarl", "skd", "analytic", "r-dfcil"])
def test_a_learner_of_another_process_goes_on_with_the_same_bits(method: str) -> None:
    whole = made(method)
    state = torch.get_rng_state()
    for task in tasks():
        whole.learn(task)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    parted = made(method)
    for task in tasks():
        torch.rand(2)
        parted.learn(task)
        state = torch.get_rng_state()
        parted = continued(method, parted.state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    images = SPEC.prepare(split_of([7, 2, 30, 4, 5], 3, 5).images)
    assert same(everything(whole), everything(parted)) and torch.equal(whole.predict(images), parted.predict(images))
    other = made(method, seed=2)
    other.learn(FIRST)
    assert not same(everything(continued(method, other.state_dict())), everything(whole))


def test_projections_beside_the_network_are_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of R-DFCIL end equal whether the training was interrupted, finished in another process, or whole."""
    in_small_blocks(monkeypatch)
    from exml_fast.continual.class_incremental.lesson import Lesson

    ended: list[dict[str, Tensor]] = []
    learn = Lesson.learn

    def remembering(self: Lesson, *args: Any, beside: nn.Module | None = None, **options: Any) -> nn.Module:
        first = None if beside is None else copy.deepcopy(beside.state_dict())
        taught = learn(self, *args, beside=beside, **options)
        if beside is not None and first is not None:
            assert any(not torch.equal(first[name], value) for name, value in beside.state_dict().items())
            ended.append(copy.deepcopy(dict(beside.state_dict())))
        return taught

    monkeypatch.setattr(Lesson, "learn", remembering)
    taught = made("r-dfcil")
    taught.learn(FIRST)
    start = taught.state_dict()
    continued("r-dfcil", start).learn(SECOND)
    for at in (5, 3):  # while the representation is learned, and in the refinement
        interrupts = Interrupts(at, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            continued("r-dfcil", start).learn(SECOND, progress=interrupts, checkpoint_dir=tmp_path)
    assert {told[0] for told in interrupts.told} >= {"task 2: represent", "task 2: refine"}
    continued("r-dfcil", start).learn(SECOND, checkpoint_dir=tmp_path)
    assert len(ended) >= 3
    for other in ended[1:]:
        assert all(torch.equal(value, other[name]) for name, value in ended[0].items())


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    def interrupted(taught: Learner[Any], task: Task) -> None:
        with pytest.raises(KeyboardInterrupt):
            taught.learn(task, progress=Interrupts(1, KeyboardInterrupt), checkpoint_dir=tmp_path)

    interrupted(made("fine-tuning"), FIRST)
    others: list[tuple[Learner[Any], Task]] = [
        (made("fine-tuning", seed=2), FIRST),
        (made("fine-tuning", lr=0.2), FIRST),
        (made("fine-tuning", network=net(seed=3)), FIRST),
        (made("lwf"), FIRST),
        (made("fine-tuning"), Task((2, 7), FIRST.split)),
        (made("fine-tuning"), Task(FIRST.classes, Split(255 - FIRST.split.images, FIRST.split.labels))),
    ]
    for taught, task in others:
        with pytest.raises(ValueError, match="belongs to another run"):
            taught.learn(task, checkpoint_dir=tmp_path)
    made("fine-tuning").learn(FIRST, checkpoint_dir=tmp_path)


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
