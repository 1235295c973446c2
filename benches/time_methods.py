"""The methods of benches/time_to_accuracy.py: how each makes images and teaches the student, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deep_inversion import accuracy
from published_loop import PublishedDistillation
from time_budget import Clock, Times, now
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import DeadLeaves, NaturalFields
from exml_fast.data.procedural import ImageSource
from exml_fast.inversion import recipes
from exml_fast.models import create
from exml_fast.storage import load_json, save_json

# Steps of the student that are timed, after as many that are not; and rounds of images after the first.
TIMED_STEPS = 10

# Settings of the student that all methods but "published" share. warmup is a share of the steps.
STUDENT: dict[str, Any] = {
    "batch_size": 128, "lr": 0.1, "schedule": "cosine", "warmup": 0.05, "mixup": 1.0, "temperature": 8.0,
    "precision": "bfloat16",
}  # fmt: skip
OURS = "deep_inversion/cifar10-transferable"
INVERSION: dict[str, Any] = {**STUDENT, "share": 0.5, "until": 0.9, "image_steps": 60, "per_round": 256}
SOURCE: dict[str, Any] = {**STUDENT, "images": 20_000}
# Yin 2020, A.1; weight decay and augmentation are those of exml_fast.Distillation.
PUBLISHED: dict[str, Any] = {
    "recipe": "deep_inversion/cifar10", "steps": 48750, "generate_every": 50, "rounds": 975, "image_steps": 2000,
    "per_round": 256, "evaluate_every": 50,
}  # fmt: skip
# Settings that are no fields of exml_fast.Distillation.
SCHEDULE = ("share", "until", "image_steps", "images", "warmup", "evaluate_every", "recipe")


@dataclass(frozen=True)
class Domain:
    """What all methods share."""

    name: str
    teacher: nn.Module
    spec: xf.InputSpec
    classes: int
    student: tuple[str, dict[str, Any]]
    images: Tensor
    labels: Tensor
    device: str

    def new_student(self, seed: int) -> nn.Module:
        """The student at the start of every cell of this seed."""
        torch.manual_seed(seed)
        architecture, arguments = self.student
        return create(architecture, **arguments)

    def accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.images, self.labels, self.spec)


@dataclass
class Cell:
    """A method, a budget and a seed."""

    domain: Domain
    settings: dict[str, Any]
    minutes: float
    seed: int
    folder: Path
    schedule: dict[str, Any]
    clock: Clock
    commit: str
    stop: Callable[[], bool]
    """Whether the process shall end now, ready to continue."""
    write: Callable[[], None]
    """Writes the results of all cells."""

    def spent(self, times: Times | None = None) -> float:
        """Minutes in the measure of the domain's device."""
        return (times or self.clock.times())[self.domain.device == "cuda"] / 60

    def progress(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        self.clock.tick(stage, step)
        if self.stop():
            raise SystemExit(75)

    def evaluate(self, model: nn.Module) -> float:
        """Accuracy now; the point joins the curve on disk."""
        with self.clock.paused():
            found = self.domain.accuracy(model.eval())
            cpu, wall = (value / 60 for value in self.clock.times())
            path = self.folder / "cell.json"
            new = {"seed": self.seed, "curve": [], "commits": [], "done": False}
            cell, step = load_json(path) if path.is_file() else new, self.clock.step
            cell["curve"] = [point for point in cell["curve"] if point[0] < step] + [[step, cpu, wall, found]]
            cell["commits"] = sorted({*cell["commits"], self.commit})
            save_json(path, cell)
            print(f"{self.folder}: step {step}, {cpu:.1f} core minutes, {found:.2f} %", flush=True)
            self.write()
        return found


@dataclass(frozen=True)
class Method:
    """How students learn: what was known beside the teacher, default settings, seconds of a step and a round."""

    known: str
    settings: dict[str, Any]
    costs: Callable[[Domain, dict[str, Any]], tuple[float, float]] | None
    run: Callable[[Cell], None]


def config_of(settings: Mapping[str, Any], **schedule: Any) -> xf.Distillation:
    """The student's settings; ValueError for a name that exml_fast.Distillation does not have."""
    given = {name: value for name, value in settings.items() if name not in SCHEDULE and not name.startswith("recipe.")}
    config = xf.Distillation().replace(**(given | schedule))
    if 0 < settings.get("warmup", 0) < 1:
        return config.replace(warmup=int(settings["warmup"] * config.training.steps))
    return config.replace(warmup=settings.get("warmup", 0))


def recipe_of(settings: Mapping[str, Any]) -> xf.Recipe:
    changes = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("recipe.")}
    size = {"steps": settings["image_steps"], "batch_size": settings["per_round"]}
    return recipes.get(settings["recipe"]).replace(**(size | changes))


def seconds_of_steps(domain: Domain, settings: Mapping[str, Any], **options: Any) -> list[float]:
    """Time at each evaluation of a short run of xf.distill, in seconds."""
    stamps: list[float] = []
    column = int(domain.device == "cuda")
    xf.distill(
        domain.teacher, domain.new_student(0), spec=domain.spec, device=domain.device,
        evaluate=lambda _: stamps.append(now()[column]), **options,
    )  # fmt: skip
    return stamps


def step_seconds(domain: Domain, settings: Mapping[str, Any]) -> float:
    config = config_of(settings, steps=3 * TIMED_STEPS)
    images = torch.randn(config.training.batch_size, *domain.spec.shape)
    stamps = seconds_of_steps(domain, settings, images=images, config=config, evaluate_every=TIMED_STEPS)
    return (stamps[2] - stamps[0]) / (2 * TIMED_STEPS)


def costs_of_inversion(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step of the student, and of a round of images."""
    step = step_seconds(domain, settings)
    config = config_of(settings, steps=2, rounds=2, generate_every=1)
    stamps = seconds_of_steps(domain, settings, recipe=recipe_of(settings), config=config, evaluate_every=1)
    return step, max(stamps[1] - stamps[0] - step, 1e-3)


def by_inversion(cell: Cell) -> None:
    _distill(cell, recipe=recipe_of(cell.settings))


def by_source(source: ImageSource) -> Method:
    def costs(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
        generator, column = torch.Generator().manual_seed(0), int(domain.device == "cuda")
        source.draw(1, domain.spec, generator)  # computes what later draws reuse
        begun = now()[column]
        source.draw(1000, domain.spec, generator)
        return step_seconds(domain, settings), (now()[column] - begun) * settings["images"] / 1000

    def run(cell: Cell) -> None:
        generator = torch.Generator().manual_seed(cell.seed)
        _distill(cell, images=source.draw(cell.settings["images"], cell.domain.spec, generator))

    return Method(source.domain, SOURCE, costs, run)


def _distill(cell: Cell, **images: Any) -> None:
    schedule = {name: cell.schedule[name] for name in ("steps", "rounds", "generate_every")}
    xf.distill(
        cell.domain.teacher, cell.domain.new_student(cell.seed), **images, config=config_of(cell.settings, **schedule),
        spec=cell.domain.spec, seed=cell.seed, device=cell.domain.device, evaluate=cell.evaluate,
        evaluate_every=cell.schedule["evaluate_every"], progress=cell.progress, checkpoint_dir=cell.folder,
        pool_dir=cell.folder / "pool",
    )  # fmt: skip


def by_published_loop(cell: Cell) -> None:
    settings, domain = cell.settings, cell.domain
    config = config_of(settings, **{name: cell.schedule[name] for name in ("steps", "rounds", "generate_every")})
    recipe = recipe_of(settings)
    loop = PublishedDistillation(
        domain.teacher, domain.new_student(cell.seed), domain.spec, domain.classes, config.training,
        temperature=config.temperature, recipe=recipe, image_steps=settings["image_steps"],
        per_round=settings["per_round"], generate_every=config.generation.generate_every,
        rounds=config.generation.rounds or 0, seed=cell.seed, device=domain.device, checkpoint_dir=cell.folder,
    )  # fmt: skip

    def between(step: int) -> bool:
        over = cell.spent() >= cell.minutes or step == config.training.steps
        if over or step % cell.schedule["evaluate_every"] == 0:
            cell.evaluate(loop.student)
        return not over

    loop.run(lambda stage, step: cell.progress(stage, step, 0, {}), between)


METHODS: dict[str, Method] = {
    "published": Method("nothing", PUBLISHED, None, by_published_loop),
    "deep-inversion": Method("nothing", {**INVERSION, "recipe": OURS}, costs_of_inversion, by_inversion),
    "adaptive": Method("nothing", {**INVERSION, "recipe": f"adaptive_{OURS}"}, costs_of_inversion, by_inversion),
    "natural-fields": by_source(NaturalFields()),
    "dead-leaves": by_source(DeadLeaves()),
}
