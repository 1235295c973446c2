"""What a student learns from a knowledge delegator: Tables I and II of Ye 2022."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from typing import Any

import numpy as np
import torch
from torch import nn

from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import ImageData, Split, load
from exml_fast.evaluation import accuracy, features
from exml_fast.generators import Delegator, Generator, delegate
from exml_fast.models import create
from exml_fast.reproduction.lab_settings import TeacherTable, read_settings, require_package
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.storage import load_json, save_json
from exml_fast.training import placed, train_classifier
from exml_fast.transfer.adaptation import tsne
from exml_fast.validation import Count, Natural, flat_names, from_flat, require, settings, with_flat_changes

__all__ = ["DelegatorTask", "check", "run"]

# Images of the generator on the page.
SHOWN = 64


@settings
class DelegatorTask:
    """A preset of task "delegator".

    Attributes:
        data: name or file of the data set.
        row: name of the data set in the paper's table, which begins the names of the cells.
        classes: how many classes T0 knows; the first of a random order.
        class_order: seed of NumPy's generator, which decides the order.
        held_out: training images of each class that are the test images instead; for choosing settings.
        tsne: images of each kind whose features are drawn (Fig. 4).
        teacher: network and training of T0.
        delegation: fields of :class:`exml_fast.generators.Delegator`.
        ablations: by the name of the row, fields of ``delegation`` that it changes (Table II).
    """

    data: str
    classes: Count
    teacher: TeacherTable
    delegation: Delegator
    row: str = "CIFAR-100"
    class_order: Natural = 1993
    held_out: Natural = 0
    tsne: Natural = 0
    ablations: dict[str, Delegator] = field(default_factory=dict)

    def check(self) -> None:
        if self.teacher.architecture is None:
            raise ValueError("teacher.expert: task 'delegator' trains its teacher, on some of the classes")
        if self.tsne:
            require_package("sklearn", "eval", "scikit-learn")


class Delegated:
    """T0 and what is delegated from it, with one seed."""

    def __init__(self, preset: Preset, context: Context) -> None:
        """Whatever is wrong with the settings raises ValueError or ImportError here, before anything is computed."""
        self.context, self.settings = context, _read(preset)
        self.outcome = Outcome()
        self._seconds = context.folder / "seconds.json"
        if self._seconds.is_file():
            self.outcome.seconds = load_json(self._seconds)
        self.data = _of_first_classes(load(self.settings.data, context.data_root), self.settings)
        self.outcome.class_names = list(self.data.class_names)
        self.options: dict[str, Any] = {"seed": context.seed, "progress": context.progress}

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

    def network(self) -> nn.Module:
        """T0 with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed)
            architecture, arguments = self._architecture()
            return placed(create(architecture, **arguments), torch.device(self.context.device))

    def teacher(self) -> nn.Module:
        """T0, trained on the images of its classes; kept in the context's folder."""
        folder = self.context.folder / "teacher"
        if (folder / "card.json").is_file():
            return placed(Expert.load(folder).model, torch.device(self.context.device))
        with self.stage("teacher"):
            trained = train_classifier(
                self.network(), self.data.train, self.data.spec, config=self.settings.teacher.training,
                checkpoint_dir=self.context.folder / "checkpoints", **self.options,
            ).model  # fmt: skip
        self._save(trained, "teacher")
        return trained

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test images that are recognised, in percent."""
        return 100 * accuracy(model, self.data.test, self.data.spec)

    def delegate(self, teacher: nn.Module, name: str, config: Delegator) -> float:
        """Test accuracy of the student in percent; student and generator are kept in a folder of this name."""
        folder = self.context.folder / name.replace("/", "-")
        found = folder / "found.json"
        if not found.is_file():
            with self.stage(name):
                result = delegate(
                    teacher, config=config, spec=self.data.spec, checkpoint_dir=self.context.folder / "checkpoints",
                    **self.options,
                )  # fmt: skip
            self._save(result.model, f"{folder.name}/student")
            result.generator.save(folder / "generator")
            save_json(found, {"accuracy": self.accuracy(result.model), "history": result.history})
        self._show(teacher, name, Generator.load(folder / "generator"))
        noted = load_json(found)
        history = noted["history"]
        self.outcome.lines[f"Losses, {name}"] = {
            term: list(zip(history["step"], values, strict=True)) for term, values in history.items() if term != "step"
        }
        self.outcome.axes[f"Losses, {name}"] = ("rounds", "loss")
        return float(noted["accuracy"])

    def _show(self, teacher: nn.Module, name: str, generator: Generator) -> None:
        images = generator.sample(max(SHOWN, self.settings.tsne), self.context.seed)
        device = torch.device(self.context.device)
        with torch.no_grad():
            labels = teacher(images[:SHOWN].to(device)).argmax(1).cpu()
        pixels = self.data.spec.denormalize(images[:SHOWN]).clamp(0, 1)
        self.outcome.samples[f"Images of the generator, {name}"] = (pixels, labels)
        if shown := self.settings.tsne:
            chosen = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(self.context.seed))
            real = self.data.spec.prepare(self.data.train.images[chosen[:shown]])
            with self.stage("t-SNE"):
                flat = tsne([features(teacher, x.to(device)).cpu() for x in (real, images[:shown])], self.context.seed)
            kinds = ("training images", "images of the generator")
            self.outcome.points[f"t-SNE of the features, {name}"] = dict(zip(kinds, flat, strict=True))

    def _save(self, model: nn.Module, name: str) -> None:
        ids = tuple(range(len(self.data.class_names)))
        made = {"task": "delegator", "data": self.data.name, "seed": self.context.seed}
        card = Card(*self._architecture(), ids, ids, tuple(self.data.class_names), self.data.spec, made)
        Expert(model, card).save(self.context.folder / name)

    def _architecture(self) -> tuple[str, dict[str, Any]]:
        table = self.settings.teacher
        assert table.architecture is not None
        outputs = len(self.data.class_names)
        return table.architecture, complete_arguments(table.architecture, table.arguments, outputs, self.data.spec)


def run(preset: Preset, context: Context) -> Outcome:
    """Table I: test accuracy of T0, of the student S0, and the gap. With ``[ablations]`` also Table II."""
    task = Delegated(preset, context)
    row, teacher = task.settings.row, task.teacher()
    upper = task.accuracy(teacher)
    found = {"S0": task.delegate(teacher, "S0", task.settings.delegation)}
    for name, config in task.settings.ablations.items():
        found[name] = task.delegate(teacher, name, config)
    task.outcome.values |= {f"{row}/T0": upper, f"{row}/S0": found.pop("S0")}
    task.outcome.values[f"{row}/gap"] = upper - task.outcome.values[f"{row}/S0"]
    task.outcome.values |= {f"{row}/{name}": value for name, value in found.items()}
    task.outcome.settings["data"] = {
        "name": task.data.name, "classes": len(task.data.class_names), "test images": len(task.data.test),
        "training images": len(task.data.train),
    }  # fmt: skip
    return task.outcome


def check(preset: Preset, context: Context) -> None:
    """ValueError or ImportError for a preset that cannot be run; nothing is trained."""
    task = Delegated(preset, context)
    model = task.network().eval()
    image = torch.zeros(1, *task.data.spec.shape, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            outputs = tuple(model(image).shape)
    except RuntimeError as error:
        raise ValueError(f"teacher: the network does not take images of {task.data.spec.shape}: {error}") from error
    require(outputs == (1, len(task.data.class_names)), "teacher", f"of {len(task.data.class_names)} logits", outputs)


def _read(preset: Preset) -> DelegatorTask:
    """The settings of a preset; the ablations are read as changes of its delegation."""
    plain = dict(preset)
    delegation = from_flat(Delegator, plain.pop("delegation", {}), "delegation")
    ablations = plain.pop("ablations", {})
    require(isinstance(ablations, Mapping), "ablations", "a table of tables", ablations)
    changed = {}
    for name, changes in ablations.items():
        known = f"a table with some of {', '.join(flat_names(Delegator))}"
        require(isinstance(changes, Mapping), f"ablations.{name}", known, changes)
        try:
            changed[name] = with_flat_changes(delegation, changes)
        except ValueError as error:
            raise ValueError(f"ablations.{name}: {error}") from None
    return read_settings(DelegatorTask, plain | {"delegation": delegation, "ablations": changed})


def _of_first_classes(data: ImageData, task: DelegatorTask) -> ImageData:
    """The data of the first classes of the random order, which become the labels 0, 1, …; ValueError for too many."""
    names = data.class_names
    require(task.classes <= len(names), "classes", f"at most the {len(names)} of {data.name!r}", task.classes)
    chosen = np.random.RandomState(task.class_order).permutation(len(names))[: task.classes].tolist()
    place = torch.full((len(names),), -1)
    place[torch.tensor(chosen)] = torch.arange(len(chosen))

    def of(split: Split) -> Split:
        part = split.of_classes(chosen)
        return Split(part.images, place[part.labels])

    train, test = of(data.train), of(data.test)
    if task.held_out:
        rows = [torch.nonzero(train.labels == label)[:, 0] for label in range(len(chosen))]
        least = min(map(len, rows))
        require(task.held_out < least, "held_out", f"less than the {least} images of a class", task.held_out)
        test = train.subset(torch.cat([each[-task.held_out :] for each in rows]))
        train = train.subset(torch.cat([each[: -task.held_out] for each in rows]))
    return dataclasses.replace(data, train=train, test=test, class_names=[names[c] for c in chosen])
