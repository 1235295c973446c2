"""A teacher on a data set, its impressions and its students: what the experiments of Nayak 2021 share."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec, Split, load
from exml_fast.inversion import Result, Synthesizer, class_similarity, invert
from exml_fast.models import create
from exml_fast.ownership import remove_tree
from exml_fast.reproduction.lab_settings import (
    LabSettings,
    read_settings,
)
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.storage import load_json, save_json
from exml_fast.training import placed, train_classifier
from exml_fast.transfer.robustness import Attack, adversarial_training
from exml_fast.transfer.zskd import zskd

__all__ = ["CLASS_IMPRESSIONS", "Lab", "first_images", "sampled"]

CLASS_IMPRESSIONS = {"targets": "hard"}
# Images of each class on the page.
SHOWN = 4


class Lab:
    """The teacher, impressions and students that a preset of type ``kind`` asks for."""

    def __init__(self, preset: Preset, kind: type[LabSettings], context: Context) -> None:
        """Whatever is wrong with the settings raises ValueError or ImportError here, before anything is computed."""
        self.task, self.context = preset["task"], context
        self.settings: Any = read_settings(kind, preset)
        self.outcome = Outcome()
        self._seconds = context.folder / "seconds.json"
        if self._seconds.is_file():
            self.outcome.seconds = load_json(self._seconds)
        self.recipe = self.settings.impressions.changed_recipe()
        self.data = load(self.settings.data, context.data_root)
        self.classes = len(self.data.class_names)
        self.outcome.class_names = list(self.data.class_names)
        if (count := self.settings.impressions.count) % self.classes:
            raise ValueError(f"impressions.count must be a multiple of the {self.classes} classes, got {count}")
        self.expert = self._given_expert()
        # Pixels in [0, 1] go into the networks as they are (Nayak 2021, 4.1.2.1).
        channels = self.data.spec.channels
        self.spec = InputSpec(channels, self.data.spec.size, (0.0,) * channels, (1.0,) * channels)
        if self.expert is not None:
            self.spec = self.expert.card.input_spec

    def try_networks(self) -> None:
        """ValueError unless the teacher and the student take the images and suit the recipe."""
        for table in ("teacher", "student"):
            if hasattr(self.settings, table):
                self._try(table)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the seconds of a block, also if it is interrupted."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.outcome.seconds[name] = round(self.outcome.seconds.get(name, 0.0) + took, 3)
            save_json(self._seconds, self.outcome.seconds)

    def network(self, table: str, offset: int = 0) -> nn.Module:
        """The freshly initialised network of a table ("teacher" or "student"), or the expert that the table names."""
        if table == "teacher" and self.expert is not None:
            return placed(copy.deepcopy(self.expert.model), torch.device(self.context.device))
        architecture, arguments = self._architecture(table)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed + offset)
            return placed(create(architecture, **arguments), torch.device(self.context.device))

    def teacher(self, train: Split | None = None, robust: bool = False) -> nn.Module:
        """The teacher, trained with cross-entropy or on PGD examples; kept in the context's folder."""
        name = "robust teacher" if robust else "teacher"
        folder = self.context.folder / name.replace(" ", "_")
        if (folder / "card.json").is_file():
            return placed(Expert.load(folder).model, torch.device(self.context.device))
        model = self.network("teacher")
        if self.expert is not None:
            return model
        train, config = train or self.data.train, self.settings.teacher.training
        options: dict[str, Any] = {"seed": self.context.seed, "progress": self.context.progress}
        with self.stage(name):
            if robust:
                table = self.settings.attack
                config = dataclasses.replace(config, steps=table.training_steps or config.steps)
                model = adversarial_training(
                    model, train, self.spec, config=config, attack=table.training, **options
                ).model
            else:
                model = train_classifier(model, train, self.spec, config=config, **options).model
        self.save(model, "teacher", folder.name)
        return model

    def impressions(self, teacher: nn.Module, name: str = "impressions", **changes: Any) -> Result:
        """Images of all classes and scaling factors; kept in the context's folder, and resumed if interrupted."""
        folder = self.context.folder / name.replace(" ", "_")
        if (folder / "result.json").is_file():
            return self._noted(Result.load(folder), name)
        checkpoints = folder.with_suffix(".checkpoint")
        with self.stage(name):
            result = invert(
                teacher, per_class=self.settings.impressions.count // self.classes,
                recipe=self.recipe.replace(**changes), spec=self.spec,
                seed=self.context.seed, device=self.context.device, precision=self.settings.impressions.precision,
                progress=self.context.progress, checkpoint_dir=checkpoints,
            )  # fmt: skip
        result.save(folder)
        remove_tree(checkpoints)
        return self._noted(result, name)

    def _noted(self, result: Result, name: str) -> Result:
        keys = ("images", "steps", "images_per_second", "teacher_accuracy", "confidence", "precision")
        self.outcome.settings[name] = {key: result.summary[key] for key in keys}
        self.show(name.capitalize(), result.pixels(), result.labels)
        return result

    def student(self, teacher: nn.Module, images: Tensor, stage: str, attack: Attack | None = None) -> nn.Module:
        """A student distilled from ``images``, or from what ``attack`` makes of them."""
        student, table = self.network("student", 1000), self.settings.distillation
        with self.stage(stage):
            return zskd(
                teacher, student, images, spec=self.spec, config=table.training, temperature=table.temperature,
                attack=attack, seed=self.context.seed, progress=self.context.progress,
            ).model  # fmt: skip

    def save(self, model: nn.Module, table: str, name: str) -> None:
        """Save a network as an expert, which every command can read."""
        architecture, arguments = self._architecture(table)
        ids = tuple(range(self.classes))
        made = {"task": self.task, "data": self.data.name, "seed": self.context.seed}
        card = Card(architecture, arguments, ids, ids, tuple(self.data.class_names), self.spec, made)
        Expert(model, card).save(self.context.folder / name)

    def show(self, title: str, pixels: Tensor, labels: Tensor) -> None:
        """Some images of every class."""
        chosen = torch.cat([torch.nonzero(labels == c)[:SHOWN, 0] for c in range(self.classes)])
        self.outcome.samples[title] = (pixels[chosen], labels[chosen])

    def similarity(self, teacher: nn.Module) -> None:
        """Note the class similarities that the targets of the impressions are drawn by, if they are."""
        if self.recipe.classification.targets == "dirichlet":
            self.outcome.matrices["Class similarities of the teacher"] = self._similarity(teacher)

    def percent(self, cell: str, share: float) -> None:
        """Note a figure."""
        self.outcome.values[cell] = 100 * share

    def _given_expert(self) -> Expert | None:
        """The teacher that the preset gives; ValueError unless its logits are the data's classes in their order."""
        folder = self.settings.teacher.expert
        if folder is None:
            return None
        expert = Expert.load(folder)
        if expert.card.units != tuple(range(self.classes)):
            raise ValueError(
                f"teacher.expert must have a logit for each of the {self.classes} classes, in their order; "
                f"its logits are of classes {list(expert.card.units)}"
            )
        return expert

    def _similarity(self, teacher: nn.Module) -> Tensor:
        example = torch.zeros(1, *self.spec.shape, device=next(teacher.parameters()).device)
        settings = self.recipe.classification
        return class_similarity(
            teacher, normalize=settings.similarity_minmax, layer=settings.similarity_layer, example=example
        )

    def _try(self, table: str) -> None:
        """ValueError unless the network of a table gives one logit a class for an image and suits the recipe."""
        network = self.network(table).eval()
        image = torch.zeros(1, *self.spec.shape, device=next(network.parameters()).device)
        try:
            with torch.no_grad():
                logits = network(image)
        except RuntimeError as error:
            raise ValueError(f"{table}: the network does not take images of {self.spec.shape}: {error}") from error
        if tuple(logits.shape) != (1, self.classes):
            raise ValueError(f"{table} must give {self.classes} logits an image, got shape {tuple(logits.shape)}")
        if table == "teacher":
            if self.recipe.classification.targets == "dirichlet":
                self._similarity(network)
            # The synthesizer refuses a recipe that needs layers which the network lacks.
            Synthesizer(network, self.spec, self.recipe, engine=False)

    def _architecture(self, table: str) -> tuple[str, dict[str, Any]]:
        if table == "teacher" and self.expert is not None:
            return self.expert.card.architecture, dict(self.expert.card.arguments)
        given = getattr(self.settings, table)
        return given.architecture, complete_arguments(given.architecture, given.arguments, self.classes, self.spec)


def first_images(split: Split, count: int | None) -> Split:
    """The first ``count`` images of a split; all if None."""
    return split if count is None else Split(split.images[:count], split.labels[:count])


def sampled(split: Split, count: int | None, generator: torch.Generator) -> Split:
    """``count`` random images of a split; all if None (Nayak 2021, 4.2: 2000 of MNIST and 1800 of USPS)."""
    if count is None:
        return split
    if not 0 < count <= len(split):
        raise ValueError(f"a sample must have between 1 and {len(split)} images, got {count}")
    chosen = torch.randperm(len(split), generator=generator)[:count]
    return Split(split.images[chosen], split.labels[chosen])
