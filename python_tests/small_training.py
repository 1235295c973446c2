"""Networks, settings and comparisons that the tests of training and of transfer share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.training import Training, TrainingResult, train_classifier

SPEC = InputSpec(1, (32, 32), (0.2,), (0.5,))
QUICK = Training(steps=60, batch_size=32, lr=3e-3)
SMALL = InputSpec(1, (8, 8), (0.5,), (0.25,))


def network(seed: int = 0, outputs: int = 4) -> nn.Sequential:
    """Of input :data:`SMALL`, with BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(45, outputs)
    )


@cache
def trained_lenet() -> nn.Module:
    """LeNet-5 that recognises the quadrants. Do not change it: copy it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = create("lenet5", num_classes=4, activation="relu")
    return train_classifier(model, quadrants().train, SPEC, config=QUICK).model


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def everything(model: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool], int]:
    """Parameters and buffers, training flags, which parameters are trained, and the number of hooks."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return state(model), [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], hooks


def unchanged(before: tuple[Any, ...], model: nn.Module) -> bool:
    """Whether :func:`everything` is as it was, and no gradient is left behind."""
    now = everything(model)
    return same(before[0], now[0]) and before[1:] == now[1:] and all(p.grad is None for p in model.parameters())


def assert_resumes(run: Callable[..., TrainingResult], folder: Path, at: int) -> None:
    """``run``, interrupted at the progress of step ``at``, continues and ends with the bits of a run without pause."""
    expected, told = run(), []

    def interrupt(_stage: str, step: int, *_: object) -> None:
        told.append(step)
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(checkpoint_dir=folder, progress=interrupt)
    assert told[-1] == at and any("continues from there" in note for note in caught.value.__notes__)
    assert len(list(folder.iterdir())) == 1
    torch.rand(3)  # the caller's random state plays no part
    told.clear()
    found = run(checkpoint_dir=folder, progress=lambda _stage, step, *_: told.append(step))
    assert told[0] == at, "the steps before the interrupted block are not taken again"
    assert same(expected.model.state_dict(), found.model.state_dict()) and found.history == expected.history
    assert not list(folder.iterdir()) and not found.model.training


def assert_seed_decides(run: Callable[..., TrainingResult], *given: nn.Module) -> None:
    """``run(seed=…)`` reads and moves no random state of the caller, and leaves the networks ``given`` as they were."""
    befores, state_of_caller = [everything(model) for model in given], torch.get_rng_state()
    first = run(seed=5)
    assert torch.equal(torch.get_rng_state(), state_of_caller)
    torch.rand(7)
    again, other = run(seed=5), run(seed=6)
    assert same(first.model.state_dict(), again.model.state_dict()) and first.history == again.history
    assert not same(first.model.state_dict(), other.model.state_dict())
    for before, model in zip(befores, given, strict=True):
        assert unchanged(before, model)
        assert all(a is not b for a in model.parameters() for b in first.model.parameters())
    assert not any(module.training for module in first.model.modules())
