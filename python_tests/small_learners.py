"""Small networks, tasks and settings that the tests of class-incremental learning share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exml_fast.continual.class_incremental import METHODS, Learner, Task, learner
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.synthesis import Synthesis
from exml_fast.data import InputSpec, Split
from exml_fast.inversion import Synthesizer
from exml_fast.training import Batch, Loop, Rounded, Training

SPEC = InputSpec(1, (8, 8), (0.5,), (0.25,))
# Ids of three tasks, in no order.
IDS = ((7, 2), (30, 4), (5,))


class Net(nn.Module):
    """A convolution with BatchNorm. The final layer is registered first, before another linear layer."""

    def __init__(self, outputs: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.last = nn.Linear(6, outputs, bias=bias)
        self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first = nn.Linear(4 * 16, 6)

    def features(self, x: Tensor) -> Tensor:
        return self.first(self.norm(self.conv(x)).relu().flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


def net(outputs: int = 3, seed: int = 0, bias: bool = True) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(outputs, bias)


def split_of(classes: Sequence[int], per_class: int = 12, seed: int = 0) -> Split:
    """Noise with a bright line whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(per_class)
    images = torch.randint(0, 90, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label % 8] += 150
    return Split(images, labels)


def tasks(ids: Sequence[Sequence[int]] = IDS, per_class: int = 12) -> list[Task]:
    return [Task(tuple(group), split_of(group, per_class, seed)) for seed, group in enumerate(ids)]


# What makes each method short.
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "augmentation": {"shift": 1}, "precision": "float32"}


def quick(method: str) -> dict[str, Any]:
    """Settings with which ``method`` takes a moment."""
    settings = dict(QUICK)
    fields = METHODS[method].learner.settings.__dataclass_fields__  # type: ignore[attr-defined]
    if "exemplars" in fields:
        settings |= {"total": 20}
        if "inversion" in METHODS[method].settings:
            settings |= {"inversion_steps": 12}
    if "synthesis" in fields:
        settings |= {"images": 12, "recipe": "deep_inversion/cifar10-quick", "recipe_steps": 12}
        settings |= {"engine_precision": "float32"}
    if "rounds" in fields:
        settings |= {"rounds": 4, "generator_width": 2}
    if method == "icarl-no-augmentation":
        settings.pop("augmentation")
    return settings


def made(method: str, seed: int = 1, network: nn.Module | None = None, **overrides: Any) -> Learner[Any]:
    """A new learner of short settings."""
    settings = {"tasks": 2} | quick(method) | overrides
    return learner(method, net() if network is None else network, SPEC, seed=seed, **settings)


def everything(taught: Learner[Any]) -> dict[str, Tensor | Any]:
    """The state of a learner with one entry a tensor."""
    flat: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                add(f"{name}/{key}", entry)
        else:
            flat[name] = value.clone() if isinstance(value, Tensor) else value

    add("", taught.state_dict())
    return flat


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two learners have the same bits."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in a
    )


def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told, and an interruption possible, every few steps."""
    run, init = Loop.run, Synthesizer.__init__

    def run_in_blocks(self: Any, *args: Any, block_steps: int = 4, **options: Any) -> None:
        run(self, *args, block_steps=min(block_steps, 12), **options)

    def short_blocks(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **{"block": 5} | options)

    monkeypatch.setattr(Loop, "run", run_in_blocks)
    monkeypatch.setattr(Synthesizer, "__init__", short_blocks)


class Stage:
    """A training that a method asked for: its networks, batches and loss."""

    def __init__(self, lesson: Lesson, network: nn.Module, batches: Any, loss: Any, config: Training, **more: Any):
        self.lesson, self.model, self.batches, self.loss, self.config = lesson, network, batches, loss, config
        self.name, self.beside = more.get("stage", "learn"), more.get("beside")

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """What the loss says of a batch; the network is in evaluation mode."""
        found = self.loss(Rounded(self.model.eval(), "float32"), batch)
        return {"loss": found} if isinstance(found, Tensor) else dict(found)


def stages(monkeypatch: pytest.MonkeyPatch, taught: Learner[Any], task: Task, synthetic: Split | None) -> list[Stage]:
    """The trainings of a task, none of which changes a weight; ``synthetic`` are the images of the old classes."""
    seen: list[Stage] = []

    def remember(self: Lesson, network: nn.Module, batches: Any, loss: Any, config: Training, **more: Any) -> nn.Module:
        seen.append(Stage(self, network, batches, loss, config, **more))
        return network

    monkeypatch.setattr(Lesson, "learn", remember)
    monkeypatch.setattr(Synthesis, "of_old_classes", lambda self, lesson: synthetic)
    taught.learn(task)
    return seen


def second_task(
    monkeypatch: pytest.MonkeyPatch, method: str, **overrides: Any
) -> tuple[Learner[Any], list[Stage], Net]:
    """The learner and the trainings of its second task; and what the network before gave for images."""
    taught, (first, second, _) = made(method, **overrides), tasks()
    taught.learn(first)
    before = net(taught.network.get_submodule("last").out_features)
    before.load_state_dict(taught.network.state_dict())
    synthetic = Split(split_of([0, 1], 4, seed=9).images, torch.arange(8) % 2)
    return taught, stages(monkeypatch, taught, second, synthetic), before.eval()


def batch_of(images: int = 8, labels: Sequence[int] = (2, 3, 3, 2, 0, 1, 1, 0)) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(torch.randn(images, *SPEC.shape, generator=generator), torch.tensor(labels[:images]))


# One of each way to keep, to make or to leave out images of old classes.
SOME = [
    "joint", "fine-tuning", "fixed-representation", "lwf-mc", "icarl", "icarl-collage-random-crop",
    "synthetic-exemplars-adaptive", "inverted-random-images", "deep-inversion", "dual-distillation", "skd",
    "skd-without-generator", "skd-inverted", "abd", "r-dfcil", "analytic",
]  # fmt: skip


def continued(method: str, state: dict[str, Any]) -> Learner[Any]:
    """A learner of another process."""
    taught = made(method)
    taught.load_state_dict(copy.deepcopy(state))
    return taught
