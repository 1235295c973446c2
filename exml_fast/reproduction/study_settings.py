"""Settings of a study: a stream of experts, and what an ex-model learns from them with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from exml_fast.data import Augmentation
from exml_fast.data.core50 import EVERY
from exml_fast.reproduction.published import published
from exml_fast.validation import Count, NonNegative, Positive, field_names, nearest, settings, to_dict

__all__ = [
    "ALL", "SCENARIOS", "SMALL_DATA", "ExpertSettings", "RunOptions", "Settings", "chosen_strategies", "require_fields",
    "usual_settings",
]  # fmt: skip

# Scenarios with their names in the paper.
SCENARIOS = {"joint": "Joint", "new-classes": "NC", "multi-task": "MT", "new-instances": "NI"}
# The strategies of the paper; --strategy all stands for them.
ALL = ("model-inversion", "data-impression", "auxiliary-data")

# Lengths for small data such as digits, on which the paper's settings for MNIST would take hours.
SMALL_DATA: dict[str, dict[str, Any]] = {
    "inversion": {"steps": 200, "lr": 0.05, "blur": 0.01, "stop_confidence": None},
    "distillation": {"buffer_size": 300, "steps": 800, "lr": 0.02},
    "random_images": {"buffer_size": 1000, "steps": 400},
}


@settings
class ExpertSettings:
    """How the experts are trained.

    Attributes:
        architecture: name of a network, with ``arguments`` of its constructor.
        epochs: None takes the paper's number for the data and scenario (Carta 2022, App. A), or 40 (digits) or 20.
        lr: learning rate; the peak with schedule "onecycle".
        augmentation: fields of :class:`exml_fast.data.Augmentation`; fields that are not given change no image.
        precision: of the convolutions.
        pretrained: weights to start from, as "DEFAULT"; the head is initialised anew.
        initial: "common", all experts start from the same random weights, as in Carta 2022; or "own", each starts from
            its own, as experts of strangers do. Averages of weights need a common start.
    """

    architecture: str = "lenet5"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: Count | None = None
    lr: Positive = 0.01
    batch_size: Count = 32
    schedule: Literal["constant", "onecycle"] = "constant"
    augmentation: dict[str, Any] = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"
    pretrained: str | None = None
    initial: Literal["common", "own"] = "common"

    def check(self) -> None:
        self.augmented()

    def augmented(self) -> Augmentation:
        """The augmentation of the training images; ValueError for an unknown field."""
        require_fields("augmentation", Augmentation, self.augmentation)
        return Augmentation(**self.augmentation)


@settings
class Settings:
    """What a preset of task "learn" holds: everything that decides a study's results but the seed.

    Attributes:
        data: name of a data set, a .npz file or an image folder.
        every: of CORe50's films, one frame in so many is read.
        scenario: "joint", "new-classes", "multi-task" or "new-instances".
        classes_per_step: number of classes of each expert in new-classes and multi-task; the last one repeats.
        parts: number of experts in new-instances.
        strategies: where images come from; see :mod:`exml_fast.reproduction.methods`.
        auxiliary: data set or folder of images for strategy "auxiliary-data".
        photographs: file or folder of photographs for strategy "photographs".
        variant: published variant of the recipes: "mnist", "cifar10" or "core50".
        inversion: ``recipe``, a recipe's name in place of the variant's, and changed fields of the recipe, for methods
            that invert pixels.
        drawn_inversion: changed fields of the recipe, for methods that invert the parameters of drawings.
        distillation: fields of the distillation's configuration.
        random_images: the same for strategies of random images, over their own defaults.
        sources: fields of sources of random images by the source's name, as ``{"pen-strokes": {"box": 0.9}}``.
        calibration: source of random images on which the experts' logits are calibrated, or "none".
        typicality: see :class:`exml_fast.continual.ResponseCalibration`; for methods with a calibration.
        background: source of random images for ``distillation.background_share``.
        merging: where the baselines that merge weights take images from: a source of random images, or a strategy
            that inverts pixels, as "model-inversion".
    """

    data: str = "digits"
    every: Count = EVERY
    scenario: Literal["joint", "new-classes", "multi-task", "new-instances"] = "new-classes"
    classes_per_step: tuple[Count, ...] = (2,)
    parts: Count = 8
    experts: ExpertSettings = field(default_factory=ExpertSettings)
    strategies: tuple[str, ...] = ("model-inversion",)
    auxiliary: str = "fashion-mnist"
    photographs: str | None = None
    variant: str = "mnist"
    inversion: dict[str, Any] = field(default_factory=dict)
    drawn_inversion: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    random_images: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: str | None = None
    typicality: NonNegative = 0.0
    background: str | None = None
    merging: str = "natural-fields"

    def check(self) -> None:
        if not self.classes_per_step:
            raise ValueError("classes_per_step must name at least one number of classes, got none")

    def resolved_experts(self) -> ExpertSettings:
        """The experts' settings with the number of epochs, where None stands for the default."""
        if self.experts.epochs is not None:
            return self.experts
        found = published(Path(self.data).stem, self.scenario)
        usual = 40 if self.data == "digits" else 20
        return dataclasses.replace(self.experts, epochs=usual if found is None else found.epochs)

    def public(self) -> dict[str, Any]:
        """JSON values for files of results, without folders of this machine."""
        photographs = None if self.photographs is None else Path(self.photographs).name
        return to_dict(dataclasses.replace(self, auxiliary=Path(self.auxiliary).name, photographs=photographs))


@settings
class RunOptions:
    """Options of one run, which no preset decides.

    Attributes:
        seed: the first seed; ``seeds`` runs take the next ones.
        data_root: folder of downloaded data sets.
        experts_dir: folder of experts that are trained already.
        buffer_dir: folder in which images are kept in a file instead of in memory.
    """

    seed: int = 0
    seeds: Count = 1
    device: str = "cpu"
    data_root: str | None = None
    experts_dir: str | None = None
    buffer_dir: str | None = None


def usual_settings(data: str) -> dict[str, Any]:
    """Settings of a study without a preset: short for digits, Carta 2022's lengths for MNIST for other data."""
    found = published("mnist", "new-classes")
    assert found is not None
    lengths = {"buffer_size": found.buffer_size, "steps": found.distillation_steps}
    return copy.deepcopy(SMALL_DATA) if data == "digits" else {"distillation": lengths}


def chosen_strategies(names: Iterable[str]) -> list[str]:
    """Strategies by name, each once; "all" stands for the paper's."""
    names = list(dict.fromkeys(names))
    return list(ALL) if "all" in names else names


def require_fields(what: str, kind: type[Any], values: Mapping[str, Any]) -> None:
    """ValueError that names the first of ``values`` that is no field of ``kind``."""
    known = field_names(kind)
    for name in values:
        if name not in known:
            raise ValueError(f"{what}: no field {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
