"""A task resumes bit for bit whatever interrupts it, and an interrupted task changes nothing."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_learners import SOME, SPEC, continued, everything, in_small_blocks, made, net, same, split_of, tasks
from torch import Tensor, nn

from exml_fast.continual.class_incremental import Learner, Lesson, Task
from exml_fast.data import Split

FIRST, SECOND, _ = tasks()


class Interrupts:
    """Raises at call ``at`` of progress."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.told = at, error, list[tuple[Any, ...]]()

    def __call__(self, *told: Any) -> None:
        self.told.append(told)
        torch.rand(3)  # what progress draws changes nothing
        if len(self.told) == self.at:
            raise self.error


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
