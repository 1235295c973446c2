"""`learn` and `demo`: strategies, baselines and seeds on the same experts, resumable, with results on file.

A run's folder::

    run.json          what was asked for: --resume needs nothing else
    experts/          the stream, if it was trained here (experts/seed_<k>/ with several seeds)
    checkpoints/      of the part that is running
    parts/            each finished part: result, ex-model, images
    ex-model/         the ex-model (ex-model/<strategy>[-seed_<k>]/ where there are several)
    results.json      the rows
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.cli.progress import Reporter
from exml_fast.continual import (
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    DistillationConfig,
    DrawnInversion,
    EnsembleAverage,
    ExModelDistillation,
    Expert,
    ExpertStream,
    MinEntropy,
    ModelInversion,
    MultiHead,
    Oracle,
    ParameterAverage,
    Procedural,
    Replay,
    ResponseCalibration,
    Strategy,
    average_accuracy,
    confusion_matrix,
    experience_accuracies,
    joint,
    new_classes,
    new_instances,
    train_stream,
)
from exml_fast.continual.baselines import DifferentNetworks
from exml_fast.continual.expert import SCHEDULES, complete_arguments
from exml_fast.continual.scenarios import Predictor
from exml_fast.continual.teachers import open_teacher
from exml_fast.data import SOURCES, Augmentation, ImageData, ImageSource, PenStrokes, load, some_images
from exml_fast.data.core50 import EVERY
from exml_fast.data.sets import NAMES
from exml_fast.inversion import recipes
from exml_fast.models import create
from exml_fast.profiling import Meter
from exml_fast.progress import Progress
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors
from exml_fast.training import ARITHMETIC

__all__ = ["BASELINES", "RECIPES", "SCENARIOS", "STRATEGIES", "Settings", "Study", "experiences_of", "train_experts"]

STRATEGIES = {
    "model-inversion": "Model Inversion",
    "data-impression": "Data Impression",
    "auxiliary-data": "Auxiliary Data",
    "adaptive-inversion": "Adaptive Inversion",
    "natural-fields": "Natural Fields",
    "dead-leaves": "Dead Leaves",
    "pen-strokes": "Pen Strokes",
    "inverted-strokes": "Inverted Strokes",
    "replay": "Replay",
}
# What --strategy all means: the paper's.
ALL = ["model-inversion", "data-impression", "auxiliary-data"]
RECIPES = {
    "model-inversion": "model_inversion",
    "data-impression": "data_impressions",
    "adaptive-inversion": "model_inversion",
    "inverted-strokes": "drawn_inversion",
}
# Strategies whose images are of a kind, before a background of random ones.
DRAWN = {"inverted-strokes": PenStrokes}
# What random images are drawn from, by the strategies that have them.
RANDOM = SOURCES | DRAWN
# How an ex-model learns from random images: from calibrated logits that are kept with the images (docs/ex_model.md).
RANDOM_IMAGES: dict[str, Any] = {
    "iterations": 2000, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "onecycle", "loss": "kl",
    "lambda_ce": 0.0, "targets": "stored", "augmentation": {"shift": 0},
}  # fmt: skip
BEFORE_BACKGROUND = RANDOM_IMAGES | {"targets": "experts", "background_share": 0.8, "renormalise": True}
BASELINES: dict[str, Callable[[Iterable[Expert]], Predictor]] = {
    "Oracle": Oracle,
    "Ensemble Avg.": EnsembleAverage,
    "Min. Entropy": MinEntropy,
    "Param. Avg.": ParameterAverage,
}
SCENARIOS = {"joint": "Joint", "new-classes": "NC", "multi-task": "MT", "new-instances": "NI"}
# What the paper asks in a scenario: who knows the task need not guess it, and no expert is the right one for an image
# of a test set that all share.
SHOWN_BASELINES = {
    "joint": ["Oracle"],
    "new-classes": list(BASELINES),
    "multi-task": ["Oracle", "Param. Avg."],
    "new-instances": ["Ensemble Avg.", "Min. Entropy", "Param. Avg."],
}
SAMPLES_PER_CLASS = 8
# Of a folder; as many as one expert is asked about.
AUXILIARY_IMAGES = 20000
STAGES = ("generate", "distil", "evaluate")
FIGURES = ("average_accuracy", "forgetting")
# Carta 2022, Tables 2 and 3, in percent.
PAPER = {
    "mnist/Joint/Oracle": 93.71, "mnist/Joint/Model Inversion": 93.09, "mnist/Joint/Data Impression": 92.12,
    "mnist/Joint/Auxiliary Data": 89.35, "mnist/NC/Oracle": 99.42, "mnist/NC/Ensemble Avg.": 33.40,
    "mnist/NC/Min. Entropy": 39.41, "mnist/NC/Param. Avg.": 20.11, "mnist/NC/Model Inversion": 43.23,
    "mnist/NC/Data Impression": 36.05, "mnist/NC/Auxiliary Data": 35.48,
    "cifar10/Joint/Oracle": 87.37, "cifar10/Joint/Model Inversion": 64.55, "cifar10/Joint/Data Impression": 52.64,
    "cifar10/Joint/Auxiliary Data": 76.94, "cifar10/NC/Oracle": 96.58, "cifar10/NC/Ensemble Avg.": 51.85,
    "cifar10/NC/Min. Entropy": 52.03, "cifar10/NC/Param. Avg.": 10.00, "cifar10/NC/Model Inversion": 17.40,
    "cifar10/NC/Data Impression": 24.70, "cifar10/NC/Auxiliary Data": 41.35, "cifar10/MT/Oracle": 96.58,
    "cifar10/MT/Param. Avg.": 51.85, "cifar10/MT/Model Inversion": 61.71, "cifar10/MT/Data Impression": 61.15,
    "cifar10/MT/Auxiliary Data": 60.72,
    "core50/Joint/Oracle": 85.73, "core50/Joint/Model Inversion": 50.06, "core50/Joint/Data Impression": 52.91,
    "core50/Joint/Auxiliary Data": 81.82, "core50/NC/Oracle": 96.04, "core50/NC/Ensemble Avg.": 26.30,
    "core50/NC/Min. Entropy": 42.41, "core50/NC/Param. Avg.": 2.00, "core50/NC/Model Inversion": 33.10,
    "core50/NC/Data Impression": 17.57, "core50/NC/Auxiliary Data": 34.87, "core50/NI/Ensemble Avg.": 69.92,
    "core50/NI/Min. Entropy": 61.36, "core50/NI/Param. Avg.": 2.00, "core50/NI/Model Inversion": 44.38,
    "core50/NI/Data Impression": 43.26, "core50/NI/Auxiliary Data": 44.51,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Carta 2022's lengths for a data set (App. A and B); a run below one of them is labelled reduced."""

    iterations: int
    steps: int
    epochs: Mapping[str, int]
    """Of the experts, by scenario."""
    architecture: str
    experiences: Mapping[str, list[int]]
    """Numbers of classes, by scenario."""
    buffer: int = 5000


PUBLISHED = {
    "mnist": Published(
        30000, 3000, {"joint": 100, "new-classes": 20}, "lenet5", {"joint": [10], "new-classes": 5 * [2]},
    ),
    "cifar10": Published(
        50000, 500, {"joint": 100, "new-classes": 100, "multi-task": 100}, "slim_resnet18",
        {"joint": [10], "new-classes": 5 * [2], "multi-task": 5 * [2]},
    ),
    "core50": Published(
        20000, 500, {"joint": 40, "new-classes": 4, "new-instances": 10}, "torchvision/mobilenet_v2",
        {"joint": [50], "new-classes": [10, *8 * [5]], "new-instances": 8 * [50]},
    ),
}  # fmt: skip


@dataclass
class Settings:
    """Everything that decides a study's results, as JSON values."""

    data: str = "digits"
    data_root: str | None = None
    every: int = EVERY
    """Of CORe50's films one frame of so many (:func:`exml_fast.data.load`)."""
    scenario: str = "new-classes"
    classes_per_step: list[int] = field(default_factory=lambda: [2])
    parts: int = 8
    seed: int = 0
    seeds: int = 1
    device: str = "cpu"
    experts: str | None = None
    architecture: str = "lenet5"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    expert_lr: float = 0.01
    expert_batch_size: int = 32
    expert_schedule: str = "constant"
    expert_augmentation: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`exml_fast.data.Augmentation`, none of which changes an image when not given."""
    expert_arithmetic: str = "float32"
    pretrained: str | None = None
    strategies: list[str] = field(default_factory=lambda: ["model-inversion"])
    auxiliary: str = "fashion-mnist"
    variant: str = "mnist"
    inversion: dict[str, Any] = field(default_factory=dict)
    """Fields of the inverting strategies' recipes, over those of the variant or of ``inversion_recipe``."""
    inversion_recipe: str | None = None
    """Name of a recipe for all inverting strategies but those of drawings, in place of the variant's."""
    distillation: dict[str, Any] = field(default_factory=dict)
    random_images: dict[str, Any] = field(default_factory=dict)
    """Fields of the distillation with the strategies of random images, over RANDOM_IMAGES, in place of those above."""
    calibration: str | None = None
    """A source for all strategies, or "none"; by default random images calibrate the experts on themselves."""
    typicality: float = 0.0
    """Of the calibration (:class:`ResponseCalibration`)."""
    background: str | None = None
    """Source of the random images of ``distillation.background_share``, where a strategy has none of its own."""
    buffer_dir: str | None = None

    def expert_epochs(self) -> int:
        """As given, or the paper's for the data and scenario (Carta 2022, App. A), or 40 (digits) or 20."""
        if self.epochs is not None:
            return self.epochs
        published = PUBLISHED.get(Path(self.data).stem)
        usual = 40 if self.data == "digits" else 20
        return usual if published is None else published.epochs.get(self.scenario, usual)

    def augmentation(self) -> Augmentation:
        """Of the experts' training images. ValueError naming a field that does not exist."""
        _require_fields("--augment", Augmentation, self.expert_augmentation)
        return Augmentation(**{"shift": 0, **self.expert_augmentation})

    def recipe(self, strategy: str) -> recipes.Recipe:
        """The recipe of an inverting strategy."""
        name = RECIPES[strategy]
        if strategy not in DRAWN:
            name = self.inversion_recipe or f"{name}/{self.variant}"
        recipe = recipes.get(name).replace(**self.inversion)
        return recipe if strategy == "adaptive-inversion" else recipe.replace(compete=0.0)

    def config(self, strategy: str) -> DistillationConfig:
        """How the ex-model is distilled with a strategy."""
        if strategy in RANDOM:
            return config((BEFORE_BACKGROUND if strategy in DRAWN else RANDOM_IMAGES) | self.random_images)
        task_known = {"task_labels": True} if self.scenario == "multi-task" else {}
        return config(task_known | self.distillation)

    def calibration_of(self, strategy: str) -> ResponseCalibration | None:
        """On what the experts' logits are calibrated with a strategy."""
        source = RANDOM.get(self.calibration or strategy)
        return None if source is None else ResponseCalibration(source(), typicality=self.typicality)

    def background_of(self, strategy: str) -> ImageSource | None:
        """Where the random images come from that a strategy's are put before."""
        if strategy in DRAWN:
            return DRAWN[strategy]()
        return None if self.background is None or strategy in SOURCES else SOURCES[self.background]()

    def published(self) -> dict[str, Any]:
        """For the file of results: without where files lie on this machine, which decides nothing."""
        own = dataclasses.asdict(self) | {"auxiliary": Path(self.auxiliary).name}
        return {k: v for k, v in own.items() if k not in ("data_root", "experts", "buffer_dir")}

    def check(self) -> None:
        """ValueError for what can be seen to be wrong before anything is computed."""
        if self.scenario not in SCENARIOS:
            raise ValueError(f"--scenario must be one of {list(SCENARIOS)}, got {self.scenario!r}")
        if unknown := [s for s in self.strategies if s not in STRATEGIES]:
            raise ValueError(f"--strategy must be one of {[*STRATEGIES, 'all']}, got {unknown[0]!r}")
        if not self.classes_per_step or min(self.classes_per_step) < 1:
            raise ValueError(f"--classes-per-step must be positive numbers, got {self.classes_per_step}")
        if self.parts < 1:
            raise ValueError(f"--parts must be at least 1, got {self.parts}")
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if not self.expert_lr > 0:
            raise ValueError(f"--expert-lr must be positive, got {self.expert_lr}")
        if self.expert_batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.expert_batch_size}")
        for option, value, choices in (
            ("--schedule", self.expert_schedule, SCHEDULES), ("--arithmetic", self.expert_arithmetic, ARITHMETIC),
        ):  # fmt: skip
            if value not in choices:
                raise ValueError(f"{option} must be one of {list(choices)}, got {value!r}")
        self.augmentation()
        if self.calibration not in (None, "none", *SOURCES):
            raise ValueError(f"--calibration must be one of {['none', *SOURCES]}, got {self.calibration!r}")
        if not 0 <= self.typicality < math.inf:
            raise ValueError(f"typicality must not be negative, got {self.typicality!r}")
        if self.background not in (None, *SOURCES):
            raise ValueError(f"background must be one of {list(SOURCES)}, got {self.background!r}")
        for strategy in self.strategies:
            share = self.config(strategy).background_share
            if (self.background_of(strategy) is not None) != (share > 0):
                raise ValueError(
                    "background must be a source if and only if background_share is positive, "
                    f"got {self.background!r} and {share} for {strategy}"
                )
            if self.typicality and self.calibration_of(strategy) is None:
                raise ValueError(f"typicality needs a calibration, which {strategy} has not, got {self.typicality!r}")
        for strategy in set(self.strategies) & set(RECIPES):
            self.recipe(strategy)
        if "adaptive-inversion" in self.strategies and not self.inversion.get("compete", 1) > 0:
            raise ValueError(f"compete must be positive for adaptive-inversion, got {self.inversion['compete']!r}")


def config(values: dict[str, Any]) -> DistillationConfig:
    """A distillation's configuration from JSON values; ValueError naming a field that does not exist."""
    _require_fields("--distillation", DistillationConfig, values)
    return DistillationConfig.from_dict(values)


def _require_fields(option: str, kind: type[Augmentation] | type[DistillationConfig], values: dict[str, Any]) -> None:
    """ValueError naming the option and the first value that is no field of ``kind``."""
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{option}: no field {unknown[0]!r}, expected one of {known}")


def experiences_of(data: ImageData, settings: Settings) -> list[tuple[ImageData, list[int]]]:
    """The training data and the classes of each experience."""
    if settings.scenario == "new-instances":
        return [(part, data.classes) for part in new_instances(data, settings.parts, settings.seed)]
    experiences = joint(data) if settings.scenario == "joint" else new_classes(data, settings.classes_per_step)
    return [(data, classes) for classes in experiences]


def train_experts(data: ImageData, folder: Path, settings: Settings, seed: int, report: Progress) -> ExpertStream:
    """The stream of :func:`train_stream`, saved expert by expert; those already in ``folder`` are kept."""
    experiences = experiences_of(data, settings)
    arguments = complete_arguments(settings.architecture, settings.arguments, len(data.classes), data.spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initial = create(settings.architecture, **arguments).state_dict()
    if settings.pretrained is not None:
        initial |= _pretrained(settings.architecture, settings.pretrained, initial)
    for i, (part, classes) in enumerate(experiences):
        place = folder / f"expert_{i + 1:02d}"
        if (place / "card.json").is_file():
            continue

        def progress(_stage: str, step: int, total: int, terms: dict[str, float], i: int = i) -> None:
            report(f"training expert {i + 1}/{len(experiences)}, epochs", step, total, terms)

        (expert,) = train_stream(
            part, [classes], seed=seed + i, progress=progress, initial=initial, architecture=settings.architecture,
            arguments=settings.arguments, epochs=settings.expert_epochs(), lr=settings.expert_lr,
            batch_size=settings.expert_batch_size, schedule=settings.expert_schedule,
            augmentation=settings.augmentation(), arithmetic=settings.expert_arithmetic, device=settings.device,
        )  # fmt: skip
        expert.save(place)
    return ExpertStream(folder, settings.device)


def _pretrained(architecture: str, weights: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights, but for the layers of other shapes: the head."""
    found = open_teacher(architecture, weights).model.state_dict()
    return {name: value for name, value in found.items() if name in like and value.shape == like[name].shape}


class Study:
    """Runs what :class:`Settings` ask for; finished parts found in ``out`` are not run again.

    ``trained``: where its experts go and are looked for, ``out/experts`` if None; studies can share them.
    """

    def __init__(
        self, settings: Settings, out: Path, report: Reporter, title: str = "", trained: Path | None = None
    ) -> None:
        settings.check()
        self.settings, self.out, self.report, self.title = settings, out, report, title
        self.trained = trained or out / "experts"
        self.data = load(settings.data, settings.data_root, every=settings.every)
        self.experiences = [classes for _, classes in experiences_of(self.data, settings)]
        self.networks = {_network(settings.architecture, settings.arguments)}
        self.seeds = list(range(settings.seed, settings.seed + settings.seeds))
        if "auxiliary-data" in settings.strategies:  # what is wrong with it shows before anything is computed
            if folder := self._folder():
                some_images(folder, self.data.spec.size, 1)
            else:
                _ = self._auxiliary

    def run(self) -> list[dict[str, Any]]:
        """Everything, and the rows of the table (see :meth:`rows`)."""
        for seed in self.seeds:
            stream = self.stream(seed)
            for strategy in self.settings.strategies:
                self._learn(strategy, seed, stream)
            self._baselines(seed, stream)
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
        return self.rows()

    def stream(self, seed: int) -> ExpertStream:
        """The experts of a seed, trained if they are not there."""
        settings = self.settings
        if settings.experts is not None:
            stream = ExpertStream(settings.experts, settings.device)
            self.experiences = stream.experiences
            self.networks = {_network(card.architecture, card.arguments) for card in stream.cards}
            if extra := sorted({c for e in stream.experiences for c in e} - set(self.data.classes)):
                raise ValueError(f"{settings.experts}: the experts know classes {extra}, {self.data.name!r} has not")
            require = {"new-instances": stream.require_same_classes, "joint": stream.require_same_classes}
            try:
                require.get(settings.scenario, stream.require_new_classes)()
            except ValueError as error:
                raise ValueError(f"--scenario {settings.scenario}: {error}") from error
            return stream
        folder = self.trained / (f"seed_{seed}" if settings.seeds > 1 else "")
        self.report.prefix = self._prefix("", seed)
        part = self._part("experts", seed)
        if part.exists():
            return ExpertStream(folder, settings.device)
        with Meter(settings.device) as meter:
            stream = train_experts(self.data, folder, settings, seed, self.report)
        save_json(part, {"seconds": {"train experts": meter.seconds}, "peak_mb": meter.peak_mb})
        return stream

    def rows(self) -> list[dict[str, Any]]:
        """A row a method: mean over the seeds, in percent, with the standard deviation where there are several."""
        rows = []
        names = [(STRATEGIES[s], s, "strategy") for s in self.settings.strategies]
        names += [(name, _slug(name), "baseline") for name in self._shown_baselines()]
        for name, slug, kind in names:
            parts = [load_json(self._part(slug, seed)) for seed in self.seeds]
            if any("accuracy" not in part for part in parts):
                continue
            values = [100 * part["accuracy"] for part in parts]
            key = f"{SCENARIOS[self.settings.scenario]}/{name}"
            shorter = self.shorter(slug if kind == "strategy" else None)
            row = {
                "cell": f"{_shown(self.data.name)}/{key}{' ED' if kind == 'strategy' else ''}",
                "name": name,
                "slug": slug,
                "kind": kind,
                "paper": PAPER.get(f"{self.data.name}/{key}") if self._as_published() else None,
                "ours": round(statistics.mean(values), 3),
                "std": round(statistics.stdev(values), 3) if len(values) > 1 else None,
                "seeds": len(values),
                "values": [round(v, 3) for v in values],
                "reduced": bool(shorter),
                "seconds": round(statistics.mean(_seconds(part) for part in parts), 3),
                "peak_mb": round(max(part["peak_mb"] for part in parts), 1),
                "note": "; ".join(filter(None, [parts[0].get("note", ""), ", ".join(shorter)])),
            }
            row["per_experience"] = _mean_columns([part["experiences"] for part in parts])
            row |= {name: _mean_percent([part[name] for part in parts]) for name in FIGURES if name in parts[0]}
            if kind == "strategy":
                row["after_each_expert"] = _mean_columns([part["after"] for part in parts])
                row["matrix"] = [
                    _mean_columns(lines) for lines in zip(*(part["matrix"] for part in parts), strict=True)
                ]
            rows.append(row)
        return rows

    def _as_published(self) -> bool:
        """Whether the experts know as many classes each, and are of the same network, as the paper's."""
        published, settings = PUBLISHED.get(self.data.name), self.settings
        return (
            published is not None
            and published.experiences.get(settings.scenario) == [len(classes) for classes in self.experiences]
            and sorted({c for classes in self.experiences for c in classes}) == self.data.classes
            and self.networks == {published.architecture}
        )

    def part(self, name: str, seed: int | None = None) -> dict[str, Any]:
        """The stored result of a method ("model-inversion", "experts", "Oracle") for a seed (the first)."""
        return load_json(self._part(_slug(name), self.seeds[0] if seed is None else seed))

    def samples(self, strategy: str) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) in [0, 1] and labels of some images of the first seed's final buffer."""
        tensors = load_tensors(self.out / "parts" / f"{strategy}-seed_{self.seeds[0]}.safetensors")
        return tensors["images"], tensors["labels"]

    def seen(self) -> list[float]:
        """Percent of the test images whose class has occurred after each expert."""
        if self.settings.scenario == "new-instances":
            return [100.0] * len(self.experiences)
        sizes = [len(self.data.test.of_classes(classes)) for classes in self.experiences]
        return [100 * sum(sizes[: i + 1]) / max(sum(sizes), 1) for i in range(len(sizes))]

    def ex_model_folder(self, strategy: str, seed: int) -> Path:
        """Where the ex-model of a strategy and seed is saved."""
        several, folder = self.settings.seeds > 1, self.out / "ex-model"
        if len(self.settings.strategies) == 1 and not several:
            return folder
        return folder / (f"{strategy}-seed_{seed}" if several else strategy)

    def _learn(self, name: str, seed: int, stream: ExpertStream) -> None:
        part = self._part(name, seed)
        if part.exists():
            return
        self.report.prefix = self._prefix(STRATEGIES[name], seed)
        strategy = self._strategy(name, stream)
        images = Path(self.settings.buffer_dir) / f"{name}-seed_{seed}" if self.settings.buffer_dir else None
        method = ExModelDistillation(
            strategy, self.settings.config(name), seed=seed, device=self.settings.device, buffer_dir=images,
            calibration=self.settings.calibration_of(name),
            background=self.settings.background_of(name),
        )  # fmt: skip
        checkpoints = self.out / "checkpoints" / f"{name}-seed_{seed}"

        def evaluate(expert: Expert) -> list[float]:
            return self._accuracies(self._asked(expert))

        begun = time.perf_counter()
        with Meter(self.settings.device) as meter:
            result = method.run(stream, self.report, checkpoints, evaluate)
        after = [self._weighted(accuracies) for accuracies in result.evaluations]
        result.expert.save(self.ex_model_folder(name, seed))
        labels = result.buffer.labels.cpu()
        chosen = torch.cat([torch.nonzero(labels == c)[:SAMPLES_PER_CLASS, 0] for c in labels.unique().tolist()])
        some = result.buffer.images[chosen.to(result.buffer.images.device)].cpu()
        pixels = result.expert.input_spec.denormalize(some).clamp(0, 1)
        save_tensors(part.with_suffix(".safetensors"), {"images": pixels, "labels": labels[chosen]})
        value = {
            "accuracy": after[-1],
            "after": after,
            "experiences": [_or_none(a) for a in result.evaluations[-1]],
            "matrix": [[_or_none(a) for a in row] for row in result.evaluations],
            "average_accuracy": _or_none(result.average_accuracy),
            "forgetting": _or_none(result.forgetting),
            "confusion": confusion_matrix(self._asked(result.expert), self.data, self.tests()).tolist(),
            "seconds": {key: sum(part[key] for part in result.seconds) for key in STAGES},
            "stage_peak_mb": {key: max(part[key] for part in result.peak_mb) for key in STAGES},
            "wall_seconds": time.perf_counter() - begun,
            "peak_mb": meter.peak_mb,
            "buffer": len(result.buffer),
            "buffer_classes": {str(c): int((labels == c).sum()) for c in labels.unique().tolist()},
            "note": self._source(name),
        }
        save_json(part, value)
        for folder in (checkpoints, images):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        self.report.say(f"{self.report.prefix}: {100 * after[-1]:.2f} % of the test images")

    def _baselines(self, seed: int, stream: ExpertStream) -> None:
        notes = {
            "Oracle": "all experts, and which one to ask" if len(stream) > 1 else "the expert itself",
            "Ensemble Avg.": "all experts",
            "Min. Entropy": "all experts",
            "Param. Avg.": "one model of averaged weights",
        }
        for name in self._shown_baselines():
            part = self._part(_slug(name), seed)
            if part.exists():
                continue
            value: dict[str, Any]
            with Meter(self.settings.device) as meter:
                try:
                    accuracies = self._accuracies(self._asked(BASELINES[name](stream)))
                except DifferentNetworks as error:  # no reason to lose the other rows
                    self.report.say(f"{name} left out: {error}")
                    value = {"left_out": str(error)}
                else:
                    value = {
                        "accuracy": self._weighted(accuracies), "experiences": [_or_none(a) for a in accuracies],
                        "average_accuracy": _or_none(average_accuracy([accuracies])),
                    }  # fmt: skip
            value |= {"seconds": {"predict": meter.seconds}, "peak_mb": meter.peak_mb, "note": notes[name]}
            save_json(part, value)

    def _shown_baselines(self) -> list[str]:
        return SHOWN_BASELINES[self.settings.scenario if len(self.experiences) > 1 else "joint"]

    def tests(self) -> list[list[int]]:
        """The classes of each part of the test set: an experience's, or all of them where all experiences have all."""
        return self.experiences[:1] if self.settings.scenario == "new-instances" else self.experiences

    def _asked(self, predictor: Predictor) -> Predictor:
        """``predictor`` with the task given where the scenario gives it."""
        if self.settings.scenario != "multi-task" or isinstance(predictor, Oracle):
            return predictor
        expert = predictor.expert if isinstance(predictor, ParameterAverage) else predictor
        assert isinstance(expert, Expert)
        return MultiHead(expert, self.experiences)

    def _accuracies(self, predictor: Predictor) -> list[float]:
        return experience_accuracies(predictor, self.data, self.tests())

    def _weighted(self, accuracies: Sequence[float]) -> float:
        """Accuracy over all test images from those of the experiences."""
        sizes = [len(self.data.test.of_classes(classes)) for classes in self.tests()]
        return sum(a * n for a, n in zip(accuracies, sizes, strict=True) if n) / max(sum(sizes), 1)

    def _source(self, name: str) -> str:
        if name in SOURCES:
            return f"random images, what is known: {SOURCES[name].domain}"
        if name in DRAWN:
            return f"random images and inverted ones of their kind, what is known: {DRAWN[name].domain}"
        if name == "replay":
            shown = "real images of the experts' classes"
        else:
            shown = (
                "images inverted from the experts"
                if name in RECIPES
                else f"images of {Path(self.settings.auxiliary).name}"
            )
        background = self.settings.background_of(name)
        return shown if background is None else f"{shown}, and random ones, what is known: {background.domain}"

    def _strategy(self, name: str, stream: ExpertStream) -> Strategy:
        if name == "replay":
            parts = [] if self.settings.experts else [part for part, _ in experiences_of(self.data, self.settings)]
            return Replay(self.data, dict(zip(stream.fingerprints(), parts, strict=False)))
        if name in SOURCES:
            return Procedural(SOURCES[name]())
        if name in DRAWN:
            return DrawnInversion(DRAWN[name](), self.settings.recipe(name))
        if name == "model-inversion":
            return ModelInversion(self.settings.recipe(name))
        if name == "adaptive-inversion":
            return AdaptiveInversion(self.settings.recipe(name))
        if name == "data-impression":
            return DataImpression(self.settings.recipe(name))
        return self._auxiliary

    def _folder(self) -> Path | None:
        """Of auxiliary images, unless a data set is named."""
        folder = Path(self.settings.auxiliary).expanduser()
        return folder if self.settings.auxiliary not in NAMES and folder.is_dir() else None

    @functools.cached_property
    def _auxiliary(self) -> AuxiliaryData:
        """Training images of a data set, or some of those that lie in a folder, at any depth."""
        if folder := self._folder():
            return AuxiliaryData(some_images(folder, self.data.spec.size, AUXILIARY_IMAGES), folder.name)
        found = load(self.settings.auxiliary, self.settings.data_root)
        return AuxiliaryData(found.train.images, found.name)

    def shorter(self, strategy: str | None) -> list[str]:
        """Where a row (None: a baseline's) fell short of the paper, of its MNIST where it has not these data."""
        published = PUBLISHED.get(self.data.name, PUBLISHED["mnist"])
        taken: dict[str, tuple[int, int]] = {}
        if self.data.name in PUBLISHED and self.settings.experts is None:
            epochs = self.settings.expert_epochs()
            taken["epochs of the experts"] = (epochs, published.epochs.get(self.settings.scenario, epochs))
        frames = (
            [f"one of {self.settings.every} frames"] if self.data.name == "core50" and self.settings.every > 1 else []
        )
        if strategy is not None:
            config = self.settings.config(strategy)
            if strategy not in RANDOM:  # a method of our own has no published length
                taken["distillation steps"] = (config.iterations, published.iterations)
            taken["images"] = (config.buffer_size, published.buffer)
        if strategy in RECIPES and strategy not in DRAWN:
            taken["inversion steps"] = (self.settings.recipe(strategy).steps, published.steps)
        return frames + [f"{ours} of {paper} {what}" for what, (ours, paper) in taken.items() if ours < paper]

    def _part(self, slug: str, seed: int) -> Path:
        return self.out / "parts" / f"{slug}-seed_{seed}.json"

    def _prefix(self, name: str, seed: int) -> str:
        words = [self.title, name, f"seed {seed}" if self.settings.seeds > 1 else ""]
        return ", ".join(word for word in words if word)


def _network(architecture: str, arguments: Mapping[str, Any]) -> str:
    own = {name: value for name, value in arguments.items() if name not in ("num_classes", "in_channels")}
    return f"{architecture} {own}" if own else architecture


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _seconds(part: Mapping[str, Any]) -> float:
    """What a method takes: measuring it is not part of it."""
    return sum(seconds for stage, seconds in part["seconds"].items() if stage != "evaluate")


def _mean_percent(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(100 * statistics.mean(known), 3) if known else None


def _mean_columns(lists: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean_percent(values) for values in zip(*lists, strict=True)]


def _slug(name: str) -> str:
    return name.lower().replace(".", "").replace(" ", "-")


def _shown(name: str) -> str:
    known = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "digits": "Digits", "cifar10": "CIFAR-10",
             "core50": "CORe50"}  # fmt: skip
    return known.get(name, name)
