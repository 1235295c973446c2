"""The methods of benches/time_to_accuracy.py: how each makes images and teaches the student, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deep_inversion import accuracy
from published_loop import PublishedDistillation
from time_budget import LEARN, Clock, Times, now
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import DeadLeaves, NaturalFields, Photographs
from exml_fast.data.procedural import ImageSource
from exml_fast.inversion import recipes
from exml_fast.models import create
from exml_fast.storage import load_json, save_json

# Steps of the student that are timed, after as many that are not; and rounds of images after the first.
TIMED_STEPS = 10

# Settings of the student that all methods but "published" share. warmup is a share of the steps.
STUDENT: dict[str, Any] = {
    "batch_size": 128, "lr": 0.1, "schedule": "cosine", "warmup": 0.05, "mixup": 1.0, "temperature": 8.0,
    "average": 0.999, "precision": "auto",
}  # fmt: skip
OURS = "deep_inversion/cifar10-transferable"
INVERSION: dict[str, Any] = {**STUDENT, "share": 0.5, "until": 0.9, "image_steps": 60, "per_round": 256}
SOURCE: dict[str, Any] = {**STUDENT, "generate_every": 50}
FAST: dict[str, Any] = {**STUDENT, "share": 0.5, "until": 0.9, "per_round": 256}
# A step is a round: five imitations and an exploration (Ye 2022). The learning rate falls to zero with the budget.
DELEGATOR: dict[str, Any] = {
    "batch_size": 256, "lr": 0.1, "schedule": "cosine", "warmup": 0.05, "precision": "auto", "generate_every": 1,
}  # fmt: skip
# Yin 2020, A.1; weight decay and augmentation are those of exml_fast.Distillation.
PUBLISHED: dict[str, Any] = {
    "recipe": "deep_inversion/cifar10", "steps": 48750, "generate_every": 50, "rounds": 975, "image_steps": 2000,
    "per_round": 256, "evaluate_every": 50, "until": 1.0,
}  # fmt: skip
# Settings that are no fields of exml_fast.Distillation.
SCHEDULE = ("share", "until", "image_steps", "warmup", "evaluate_every", "recipe")


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
    photographs: tuple[Path, ...] = ()
    """Files or folders, for the method of that name."""

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

    known: Callable[[Domain], str]
    settings: dict[str, Any]
    costs: Callable[[Domain, dict[str, Any]], tuple[float, float]]
    run: Callable[[Cell], None]


def config_of(settings: Mapping[str, Any], **schedule: Any) -> xf.Distillation:
    """The student's settings; ValueError for a name that exml_fast.Distillation does not have."""
    given = {name: value for name, value in settings.items() if name not in SCHEDULE and "." not in name}
    config = xf.Distillation().replace(**(given | schedule))
    if 0 < settings.get("warmup", 0) < 1:
        return config.replace(warmup=int(settings["warmup"] * config.training.steps))
    return config.replace(warmup=settings.get("warmup", 0))


def prefixed(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Settings whose name begins so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}


def recipe_of(settings: Mapping[str, Any]) -> xf.Recipe:
    changes = prefixed(settings, "recipe.")
    size = {"steps": settings["image_steps"], "batch_size": settings["per_round"]}
    return recipes.get(settings["recipe"]).replace(**(size | changes))


def seconds_of_steps(domain: Domain, **options: Any) -> list[float]:
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
    stamps = seconds_of_steps(domain, images=images, config=config, evaluate_every=TIMED_STEPS)
    return (stamps[2] - stamps[0]) / (2 * TIMED_STEPS)


def costs_of_inversion(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step of the student, and of a round of images."""
    return _costs_of_rounds(domain, settings, recipe=recipe_of(settings))


def costs_of_fast(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
    """As :func:`costs_of_inversion`."""
    return _costs_of_rounds(domain, settings, images=fast_of(settings))


def _costs_of_rounds(domain: Domain, settings: dict[str, Any], **images: Any) -> tuple[float, float]:
    step = step_seconds(domain, settings)
    config = config_of(settings, steps=2, rounds=2, generate_every=1)
    stamps = seconds_of_steps(domain, config=config, evaluate_every=1, **images)
    return step, max(stamps[1] - stamps[0] - step, 1e-3)


def fast_of(settings: Mapping[str, Any]) -> xf.generators.Fast:
    return xf.generators.Fast().replace(**prefixed(settings, "fast."))


def by_fast(cell: Cell) -> None:
    _distill(cell, images=fast_of(cell.settings))


def by_inversion(cell: Cell) -> None:
    _distill(cell, recipe=recipe_of(cell.settings))


def by_source(source_of: Callable[[Domain], ImageSource]) -> Method:
    """Images that a source draws while the student learns."""

    def costs(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
        every = settings["generate_every"]
        per_round = settings.get("per_round")
        drawn = None if per_round is None else max(1, round(per_round * TIMED_STEPS / every))
        schedule = {"steps": 3 * TIMED_STEPS, "generate_every": TIMED_STEPS, "per_round": drawn}
        options = {"config": config_of(settings, **schedule), "evaluate_every": TIMED_STEPS}
        stamps = seconds_of_steps(domain, images=source_of(domain), **options)
        # Each step with the images that are drawn for it.
        return (stamps[2] - stamps[0]) / (2 * TIMED_STEPS), 0.0

    def run(cell: Cell) -> None:
        _distill(cell, images=source_of(cell.domain))

    return Method(lambda domain: source_of(domain).domain, SOURCE, costs, run)


def _distill(cell: Cell, **images: Any) -> None:
    schedule = {name: cell.schedule[name] for name in ("steps", "rounds", "generate_every") if name in cell.schedule}
    xf.distill(
        cell.domain.teacher, cell.domain.new_student(cell.seed), **images, config=config_of(cell.settings, **schedule),
        spec=cell.domain.spec, seed=cell.seed, device=cell.domain.device, evaluate=cell.evaluate,
        evaluate_every=cell.schedule["evaluate_every"], progress=cell.progress, checkpoint_dir=cell.folder,
        pool_dir=cell.folder / "pool",
    )  # fmt: skip


def published_loop(
    domain: Domain, settings: dict[str, Any], schedule: dict[str, Any], seed: int, **options: Any
) -> PublishedDistillation:
    config = config_of(settings, **{name: schedule[name] for name in ("steps", "rounds", "generate_every")})
    return PublishedDistillation(
        domain.teacher, domain.new_student(seed), domain.spec, domain.classes, config.training,
        temperature=config.temperature, recipe=recipe_of(settings), per_round=settings["per_round"],
        generate_every=config.generation.generate_every, rounds=config.generation.rounds or 0, seed=seed,
        device=domain.device, **({"image_steps": settings["image_steps"]} | options),
    )  # fmt: skip


def costs_of_published_loop(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
    """Needed only where settings are changed: the published ones decide the steps."""
    column, stamps = int(domain.device == "cuda"), [now()[int(domain.device == "cuda")]]
    schedule = {"steps": 4, "rounds": 1, "generate_every": 4}
    loop = published_loop(domain, settings, schedule, 0, image_steps=TIMED_STEPS)

    def between(step: int) -> bool:
        stamps.append(now()[column])
        return True

    loop.run(lambda *_: None, between)
    step = (stamps[4] - stamps[1]) / 3
    return step, (stamps[1] - stamps[0] - step) * settings["image_steps"] / TIMED_STEPS


def by_published_loop(cell: Cell) -> None:
    settings, domain = cell.settings, cell.domain
    loop = published_loop(domain, settings, cell.schedule, cell.seed, checkpoint_dir=cell.folder)

    def between(step: int) -> bool:
        over = cell.spent() >= cell.minutes or step == cell.schedule["steps"]
        if over or step % cell.schedule["evaluate_every"] == 0:
            cell.evaluate(loop.student)
        return not over

    loop.run(lambda stage, step: cell.progress(stage, step, 0, {}), between)


def photographs_of(domain: Domain) -> Photographs:
    """ValueError where there are none."""
    if not domain.photographs:
        raise ValueError("--photographs must be given for the method photographs")
    return Photographs(domain.photographs)


def nothing(domain: Domain) -> str:
    """Known of a domain where all images come out of the teacher."""
    return "nothing"


def delegator_of(settings: Mapping[str, Any], steps: int) -> xf.Delegator:
    others = (*SCHEDULE, "generate_every", "rounds", "steps")
    given = {name: value for name, value in settings.items() if name not in others}
    return xf.Delegator().replace(**given, steps=steps, warmup=int(settings["warmup"] * steps))


def costs_of_delegation(domain: Domain, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a round, in which student and generator take their steps."""
    stamps: list[float] = []
    column, rounds = int(domain.device == "cuda"), 2
    xf.delegate(
        domain.teacher, domain.new_student(0), config=delegator_of(settings, 3 * rounds), spec=domain.spec,
        device=domain.device, evaluate=lambda _: stamps.append(now()[column]), evaluate_every=rounds,
    )  # fmt: skip
    return (stamps[2] - stamps[0]) / (2 * rounds), 0.0


def by_delegation(cell: Cell) -> None:
    xf.delegate(
        cell.domain.teacher, cell.domain.new_student(cell.seed),
        config=delegator_of(cell.settings, cell.schedule["steps"]), spec=cell.domain.spec, seed=cell.seed,
        device=cell.domain.device, evaluate=cell.evaluate, evaluate_every=cell.schedule["evaluate_every"],
        progress=lambda _, step, total, terms: cell.progress(LEARN, step, total, terms), checkpoint_dir=cell.folder,
    )  # fmt: skip


METHODS: dict[str, Method] = {
    "published": Method(nothing, PUBLISHED, costs_of_published_loop, by_published_loop),
    "deep-inversion": Method(nothing, {**INVERSION, "recipe": OURS}, costs_of_inversion, by_inversion),
    "adaptive": Method(nothing, {**INVERSION, "recipe": f"adaptive_{OURS}"}, costs_of_inversion, by_inversion),
    "fast": Method(nothing, FAST, costs_of_fast, by_fast),
    "delegator": Method(nothing, DELEGATOR, costs_of_delegation, by_delegation),
    "photographs": by_source(photographs_of),
    "natural-fields": by_source(lambda domain: NaturalFields()),
    "dead-leaves": by_source(lambda domain: DeadLeaves()),
}
