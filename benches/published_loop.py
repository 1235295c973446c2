"""Distillation with DeepInversion in the style of published implementations: plain PyTorch, nothing of the engine.

Every ``generate_every`` steps of the student a round of images is made by the reference loop of benches/inversion.py
(hooks on every BatchNorm, a gradient for every weight of the teacher, `.item()` after each step). The round joins the
pool from which the student learns in float32.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from inversion_contenders import Draw, Problem, Published
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint
from exml_fast.data import InputSpec
from exml_fast.inversion import recipes
from exml_fast.training import Training

# Steps of a round between two reports of progress.
BLOCK = 10


class Draws:
    """Shifts of the images, from a generator whose state can be saved."""

    def __init__(self, jitter: int, flip: bool, seed: int) -> None:
        self.jitter, self.flip, self.source = jitter, flip, random.Random(seed)

    def __iter__(self) -> Draws:
        return self

    def __next__(self) -> Draw:
        shift = (self.source.randint(-self.jitter, self.jitter), self.source.randint(-self.jitter, self.jitter))
        return (*shift, self.flip and self.source.random() < 0.5)


class Round:
    """One round of images, which can be saved between two steps."""

    def __init__(self, teacher: nn.Module, spec: InputSpec, recipe: Any, labels: Tensor, seed: int) -> None:
        device = next(teacher.parameters()).device
        start = torch.randn(len(labels), *spec.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        self.draws = Draws(recipe.augmentation.jitter, recipe.augmentation.flip, seed)
        problem = Problem(teacher, spec, recipe, labels.to(device), start, lambda: self.draws)
        self.loop, self.labels, self.seed, self.done = Published(problem), labels, seed, 0

    def step(self) -> None:
        self.loop.step()
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self.draws.source.getstate()
        return {
            "x": self.loop.x.detach().clone(), "optimizer": copy.deepcopy(self.loop.optimizer.state_dict()),
            "draws": [version, list(numbers), gauss], "done": self.done, "labels": self.labels, "seed": self.seed,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, numbers, gauss = state["draws"]
        self.loop.x.data.copy_(state["x"])
        self.loop.optimizer.load_state_dict(state["optimizer"])
        self.draws.source.setstate((version, tuple(numbers), gauss))
        self.done = state["done"]


def augmented(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image cropped at random from itself padded by ``shift``, and flipped in half of the cases."""
    count, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    down, right = (torch.randint(2 * shift + 1, (count, 1), generator=generator) for _ in range(2))
    columns = right + torch.arange(width)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flips, columns.flip(1), columns)
    rows = down + torch.arange(height)
    picked = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class PublishedDistillation:
    """The student, the pool and the round at hand.

    Args:
        teacher, student: networks; copied.
        spec: of their input.
        classes: number of the teacher's classes.
        training: of the student: steps, batch size, SGD, schedule, and the shift of the augmentation.
        temperature: of the divergence.
        recipe: name of a recipe of inversion, whose terms the reference loop has.
        image_steps, per_round, generate_every, rounds: of the rounds of images.
        seed: decides everything random.
        checkpoint_dir: where the state is written once a minute and on Ctrl-C.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        spec: InputSpec,
        classes: int,
        training: Training,
        *,
        temperature: float,
        recipe: str,
        image_steps: int,
        per_round: int,
        generate_every: int,
        rounds: int,
        seed: int,
        device: str = "cpu",
        checkpoint_dir: Path | None = None,
        **recipe_changes: Any,
    ) -> None:
        self.teacher = copy.deepcopy(teacher).to(device).eval()
        self.student, self.spec, self.classes, self.training = (
            copy.deepcopy(student).to(device),
            spec,
            classes,
            training,
        )
        self.recipe = recipes.get(recipe).replace(**recipe_changes)
        self.temperature, self.image_steps, self.per_round = temperature, image_steps, per_round
        self.generate_every, self.rounds, self.device = generate_every, rounds, device
        self.optimizer = training.new_optimizer(self.student.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        self.images, self.made, self.step = torch.empty(0, *spec.shape), 0, 0
        self.round: Round | None = None
        settings = [training.to_dict(), temperature, self.recipe.to_dict(), image_steps, per_round, generate_every]
        path = None if checkpoint_dir is None else checkpoint_dir / "published.pt"
        self.checkpoint = Checkpoint(path, {"settings": settings, "rounds": rounds, "seed": seed})
        if (state := self.checkpoint.load()) is not None:
            self._restore(state)

    def run(self, tick: Callable[[str, int], None], between: Callable[[int], bool]) -> None:
        """Learn until the last step, or until ``between(step)``, which is called after each step, returns False."""
        with self.checkpoint:
            while self.step < self.training.steps:
                self.checkpoint.keep(self._state)
                if self.made < self.rounds and self.step == self.made * self.generate_every:
                    self._make(tick)
                self._learn()
                tick("learn", self.step)
                if not between(self.step):
                    break
            self.checkpoint.keep(self._state, write=True)

    def _make(self, tick: Callable[[str, int], None]) -> None:
        if self.round is None:
            labels = torch.randint(self.classes, (self.per_round,), generator=self.generator)
            seed = int(torch.randint(2**62, (), generator=self.generator))
            self.round = Round(self.teacher, self.spec, self.recipe, labels, seed)
        while self.round.done < self.image_steps:
            if self.round.done % BLOCK == 0:
                tick("invert", self.round.done)
                self.checkpoint.keep(self._state)
            self.round.step()
        self.images = torch.cat([self.images, self.round.loop.x.detach().cpu()])
        self.made, self.round = self.made + 1, None

    def _learn(self) -> None:
        size = min(self.training.batch_size, len(self.images))
        rows = torch.randint(len(self.images), (size,), generator=self.generator)
        images = augmented(self.images[rows], self.training.augmentation.shift, self.generator).to(self.device)
        with torch.no_grad():
            wanted = F.softmax(self.teacher(images) / self.temperature, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(self.step)
        self.student.train()
        found = F.log_softmax(self.student(images) / self.temperature, 1)
        loss = F.kl_div(found, wanted, reduction="batchmean") * self.temperature**2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _state(self) -> dict[str, Any]:
        return {
            "student": copy.deepcopy(self.student.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()), "generator": self.generator.get_state(),
            "images": self.images, "made": self.made, "step": self.step,
            "round": None if self.round is None else self.round.state_dict(),
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.images, self.made, self.step = state["images"], state["made"], state["step"]
        if (saved := state["round"]) is not None:
            self.round = Round(self.teacher, self.spec, self.recipe, saved["labels"], saved["seed"])
            self.round.load_state_dict(saved)
