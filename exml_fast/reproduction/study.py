"""A study: strategies, baselines and seeds on the same experts, resumable, with results on file.

Its folder::

    experts/          the stream, if it was trained here (experts/seed_<k>/ with several seeds)
    checkpoints/      of the part that is running
    parts/            each finished part: result, images
    ex-model/         the ex-model (ex-model/<strategy>[-seed_<k>]/ if there are several)
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual import (
    METHODS,
    AuxiliaryData,
    Expert,
    ExpertStream,
    MultiHead,
    Oracle,
    ParameterAverage,
    Replay,
    average_accuracy,
    confusion_matrix,
    experience_accuracies,
)
from exml_fast.continual.baselines import CannotMerge
from exml_fast.continual.ex_model.result import STAGES
from exml_fast.continual.merging import Merged
from exml_fast.continual.scenarios import Predictor
from exml_fast.data import ImageData, load, some_images
from exml_fast.data.sets import NAMES
from exml_fast.ownership import remove_tree
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, Renamed
from exml_fast.reproduction.experts import experiences_of, train_experts
from exml_fast.reproduction.methods import (
    BASELINES,
    MERGES,
    STRATEGIES,
    check_methods,
    merge_images,
    note_of,
    plan_of,
)
from exml_fast.reproduction.study_settings import RunOptions, Settings
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors

__all__ = ["SHOWN_BASELINES", "Study", "part_name"]

log = logging.getLogger(__name__)

# The baselines that the paper shows in a scenario, and those that merge weights. Where the task is given, no method has
# to guess it; with new instances no expert is the right one for a test image, as all experts share the test set.
SHOWN_BASELINES = {
    "joint": ["Oracle"],
    "new-classes": ["Oracle", "Ensemble Avg.", "Min. Entropy", "Param. Avg.", *MERGES],
    "multi-task": ["Oracle", "Param. Avg.", *MERGES],
    "new-instances": ["Ensemble Avg.", "Min. Entropy", "Param. Avg.", *MERGES],
}
SAMPLES_PER_CLASS = 8
# Images that are read from a folder: as many as one expert labels.
AUXILIARY_IMAGES = 20000


class Study:
    """Runs what :class:`Settings` ask for; finished parts found in ``out`` are not run again.

    ``title`` is shown before the names of stages. ``trained`` is the folder of the experts that are trained here,
    default ``out/experts``; studies can share it.
    """

    def __init__(
        self,
        settings: Settings,
        run: RunOptions,
        out: Path,
        *,
        progress: Progress | None = None,
        title: str = "",
        trained: Path | None = None,
    ) -> None:
        check_methods(settings)
        self.settings, self.options, self.out, self.title = settings, run, out, title
        self.trained = trained or out / "experts"
        self.data = load(settings.data, run.data_root, every=settings.every)
        self.experiences = [classes for _, classes in self._parts()]
        self.networks = {network_name(settings.experts.architecture, settings.experts.arguments)}
        self.seeds = list(range(run.seed, run.seed + run.seeds))
        self._progress = progress
        if "auxiliary-data" in settings.strategies:  # so that a mistake shows before anything is computed
            if folder := self._folder():
                some_images(folder, self.data.spec.size, 1)
            else:
                _ = self._auxiliary

    def run(self) -> None:
        """Compute everything that is not on file."""
        for seed in self.seeds:
            stream = self.stream(seed)
            for strategy in self.settings.strategies:
                self._learn(strategy, seed, stream)
            self._baselines(seed, stream)
        remove_tree(self.out / "checkpoints")

    def stream(self, seed: int) -> ExpertStream:
        """The experts of a seed; they are trained unless they are on file or given."""
        settings, given = self.settings, self.options.experts_dir
        if given is not None:
            stream = ExpertStream(given, self.options.device)
            self.experiences = stream.experiences
            self.networks = {network_name(card.architecture, card.arguments) for card in stream.cards}
            if extra := sorted({c for e in stream.experiences for c in e} - set(self.data.classes)):
                raise ValueError(f"{given}: the experts know classes {extra}, which {self.data.name!r} does not have")
            require = {"new-instances": stream.require_same_classes, "joint": stream.require_same_classes}
            try:
                require.get(settings.scenario, stream.require_new_classes)()
            except ValueError as error:
                raise ValueError(f"scenario {settings.scenario}: {error}") from error
            return stream
        folder, device = self.trained / (f"seed_{seed}" if len(self.seeds) > 1 else ""), self.options.device
        part = self.part_file("experts", seed)
        if part.exists():
            return ExpertStream(folder, device)
        progress = self._named_progress(self._prefix("", seed))
        with Meter(device) as meter:
            stream = train_experts(
                self._parts(), folder, settings.resolved_experts(), seed=seed, device=device, progress=progress
            )
        save_json(part, {"seconds": {"train experts": meter.seconds}, "peak_mb": meter.peak_mb})
        return stream

    def part(self, name: str, seed: int | None = None) -> dict[str, Any]:
        """The stored result of a method ("model-inversion", "experts", "Oracle") for a seed (the first)."""
        return load_json(self.part_file(part_name(name), self.seeds[0] if seed is None else seed))

    def samples(self, strategy: str) -> tuple[Tensor, Tensor]:
        """Pixels (N, C, H, W) in [0, 1] and labels of some images of the first seed's final buffer."""
        tensors = load_tensors(self.out / "parts" / f"{strategy}-seed_{self.seeds[0]}.safetensors")
        return tensors["images"], tensors["labels"]

    def seen(self) -> list[float]:
        """Percent of the test images whose class some expert knows, after each expert."""
        if self.settings.scenario == "new-instances":
            return [100.0] * len(self.experiences)
        sizes = [len(self.data.test.of_classes(classes)) for classes in self.experiences]
        return [100 * sum(sizes[: i + 1]) / max(sum(sizes), 1) for i in range(len(sizes))]

    def ex_model_folder(self, strategy: str, seed: int) -> Path:
        """Where the ex-model of a strategy and seed is saved."""
        several, folder = len(self.seeds) > 1, self.out / "ex-model"
        if len(self.settings.strategies) == 1 and not several:
            return folder
        return folder / (f"{strategy}-seed_{seed}" if several else strategy)

    def _learn(self, name: str, seed: int, stream: ExpertStream) -> None:
        part = self.part_file(name, seed)
        if part.exists():
            return
        prefix, options = self._prefix(STRATEGIES[name], seed), self.options
        images = Path(options.buffer_dir) / f"{name}-seed_{seed}" if options.buffer_dir else None
        method = plan_of(self.settings, name).build(
            self.data_of(name, stream), seed=seed, device=options.device, buffer_dir=images
        )
        checkpoints = self.out / "checkpoints" / f"{name}-seed_{seed}"

        def evaluate(expert: Expert) -> list[float]:
            return self._accuracies(self._asked(expert))

        begun = time.perf_counter()
        with Meter(options.device) as meter:
            result = method.run(
                stream, progress=self._named_progress(prefix), checkpoint_dir=checkpoints, evaluate=evaluate
            )
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
            "seconds": result.seconds,
            "stage_peak_mb": {key: max(each.peak_mb[key] for each in result.learned) for key in STAGES},
            "wall_seconds": time.perf_counter() - begun,
            "peak_mb": meter.peak_mb,
            "buffer": len(result.buffer),
            "buffer_classes": {str(c): int((labels == c).sum()) for c in labels.unique().tolist()},
            "note": note_of(self.settings, name),
        }
        save_json(part, value)
        for folder in (checkpoints, images):
            if folder is not None:
                remove_tree(folder)
        log.info("%s: %.2f %% of the test images", prefix, 100 * after[-1])

    def _baselines(self, seed: int, stream: ExpertStream) -> None:
        notes = {
            "Oracle": "all experts, and which one to ask" if len(stream) > 1 else "the expert itself",
            "Ensemble Avg.": "all experts",
            "Min. Entropy": "all experts",
            "Param. Avg.": "one model of averaged weights",
            "Re-Basin": "one model of averaged weights, after permutations",
            "RegMean": "one model, each layer fitted to those of the experts",
            "ZipIt": "one model of averaged features",
        }
        for name in self.shown_baselines():
            part = self.part_file(part_name(name), seed)
            if part.exists():
                continue
            value: dict[str, Any]
            with Meter(self.options.device) as meter:
                try:
                    accuracies = self._accuracies(self._asked(self._baseline(name, seed, stream)))
                except (CannotMerge, ImportError) as error:  # the other rows do not depend on this one
                    log.info("%s left out: %s", name, error)
                    value = {"left_out": str(error)}
                else:
                    value = {
                        "accuracy": self._weighted(accuracies), "experiences": [_or_none(a) for a in accuracies],
                        "average_accuracy": _or_none(average_accuracy([accuracies])),
                    }  # fmt: skip
            note = f"{notes[name]}; images: {self.settings.merging}" if name in MERGES else notes[name]
            value |= {"seconds": {"predict": meter.seconds}, "peak_mb": meter.peak_mb, "note": note}
            save_json(part, value)

    def _baseline(self, name: str, seed: int, stream: ExpertStream) -> Predictor:
        if name in MERGES:
            return MERGES[name](stream, merge_images(self.settings), seed=seed)
        return BASELINES[name](stream)

    def shown_baselines(self) -> list[str]:
        """The baselines that the scenario has."""
        return SHOWN_BASELINES[self.settings.scenario if len(self.experiences) > 1 else "joint"]

    def tests(self) -> list[list[int]]:
        """The classes of each part of the test set: one part an experience, or one in all with new instances."""
        return self.experiences[:1] if self.settings.scenario == "new-instances" else self.experiences

    def _asked(self, predictor: Predictor) -> Predictor:
        """``predictor``, told the task where the scenario tells it."""
        if self.settings.scenario != "multi-task" or isinstance(predictor, Oracle):
            return predictor
        expert = predictor.expert if isinstance(predictor, ParameterAverage | Merged) else predictor
        assert isinstance(expert, Expert)
        return MultiHead(expert, self.experiences)

    def _accuracies(self, predictor: Predictor) -> list[float]:
        return experience_accuracies(predictor, self.data, self.tests())

    def _weighted(self, accuracies: Sequence[float]) -> float:
        """Accuracy over all test images from those of the experiences."""
        sizes = [len(self.data.test.of_classes(classes)) for classes in self.tests()]
        return sum(a * n for a, n in zip(accuracies, sizes, strict=True) if n) / max(sum(sizes), 1)

    def _folder(self) -> Path | None:
        """The folder of auxiliary images; None if the settings name a data set."""
        folder = Path(self.settings.auxiliary).expanduser()
        return folder if self.settings.auxiliary not in NAMES and folder.is_dir() else None

    @functools.cached_property
    def _auxiliary(self) -> AuxiliaryData:
        """Training images of a data set, or some images below a folder, at any depth."""
        if folder := self._folder():
            return AuxiliaryData(some_images(folder, self.data.spec.size, AUXILIARY_IMAGES), folder.name)
        found = load(self.settings.auxiliary, self.options.data_root)
        return AuxiliaryData(found.train.images, found.name)

    def data_of(self, name: str, stream: ExpertStream) -> AuxiliaryData | Replay | None:
        """The data that a method needs; with "replay" each expert gets its own training data again."""
        needs = METHODS[name].needs
        if needs is None:
            return None
        if needs == "images":
            return self._auxiliary
        parts = [] if self.options.experts_dir else [part for part, _ in self._parts()]
        return Replay(self.data, dict(zip(stream.fingerprints(), parts, strict=False)))

    def _parts(self) -> list[tuple[ImageData, list[int]]]:
        """The training data and classes of each expert; anew at each call, as new instances are copies."""
        return experiences_of(self.data, self.settings, self.options.seed)

    def part_file(self, name: str, seed: int) -> Path:
        """Where the result of a part is stored."""
        return self.out / "parts" / f"{name}-seed_{seed}.json"

    def _prefix(self, name: str, seed: int) -> str:
        words = [self.title, name, f"seed {seed}" if len(self.seeds) > 1 else ""]
        return ", ".join(word for word in words if word)

    def _named_progress(self, prefix: str) -> Progress | None:
        """The progress callback, with ``prefix`` before the names of stages."""
        progress = self._progress
        if progress is None or not prefix:
            return progress
        return Renamed(progress, lambda stage: f"{prefix} · {stage}")


def network_name(architecture: str, arguments: Mapping[str, Any]) -> str:
    """An architecture with the arguments that do not follow from the data."""
    own = {name: value for name, value in arguments.items() if name not in ("num_classes", "in_channels")}
    return f"{architecture} {own}" if own else architecture


def part_name(name: str) -> str:
    """A method's name in names of files: "Ensemble Avg." becomes "ensemble-avg"."""
    return name.lower().replace(".", "").replace(" ", "-")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
