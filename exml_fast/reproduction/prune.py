"""Pruning on images of several origins: Table 4 of Yin 2020."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import ImageData, ImageSource, NaturalFields, Noise, load
from exml_fast.evaluation import accuracy
from exml_fast.inversion import Result, invert, recipes
from exml_fast.models import create, resize_layers
from exml_fast.reproduction.lab_settings import TeacherTable, read_settings
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.storage import load_checkpoint, load_json, save_checkpoint, save_json
from exml_fast.training import placed, train_classifier
from exml_fast.transfer import Distillation, Pruning, prune
from exml_fast.transfer.pruning.filters import pruning
from exml_fast.transfer.pruning.prune import FINE_TUNING
from exml_fast.validation import Count, from_flat, require, settings, with_flat_changes

__all__ = ["PruneTask", "check", "run"]

Row = Literal["No finetune", "Real images", "Noise", "Natural fields", "DeepInversion", "Adaptive DeepInversion"]
ROWS: tuple[Row, ...] = get_args(Row)
SHOWN, NOISE_IMAGES = 64, 4096


@settings
class PruneTask:
    """A preset of task "prune".

    Attributes:
        data: name or file of the data set.
        teacher: network and training of the network that is pruned, or the folder of an expert.
        ratios: shares of the filters to remove.
        rows: of the table. "No finetune" ranks the filters on DeepInversion images and does not learn after the
            last removal; between two removals it does, as all rows.
        count: synthetic images. One half of "Adaptive DeepInversion" are those of "DeepInversion"; the others compete
            with the network that was pruned on these.
        recipe: of the synthetic images, with the variant "adaptive_"; ``recipe_steps`` changes its steps.
        pruning: fields of :class:`exml_fast.transfer.Pruning`.
        fine_tuning: fields of :class:`exml_fast.Distillation`.
    """

    data: str
    teacher: TeacherTable
    ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2,)
    rows: tuple[Row, ...] = ROWS
    count: Count = 2000
    recipe: str = "deep_inversion/cifar10-transferable"
    recipe_steps: Count | None = None
    pruning: Pruning = field(default_factory=Pruning)
    fine_tuning: Distillation = FINE_TUNING

    def check(self) -> None:
        for name in (self.recipe, f"adaptive_{self.recipe}"):
            recipes.get(name)


class Table:
    """The cells of the table, with one seed."""

    def __init__(self, preset: Preset, context: Context) -> None:
        self.context, self.settings, self.outcome = context, _read(preset), Outcome()
        self._seconds = context.folder / "seconds.json"
        if self._seconds.is_file():
            self.outcome.seconds = load_json(self._seconds)
        self.data: ImageData = load(self.settings.data, context.data_root)
        self.outcome.class_names = list(self.data.class_names)
        self.expert = None if self.settings.teacher.expert is None else Expert.load(self.settings.teacher.expert)
        self.spec = self.data.spec if self.expert is None else self.expert.input_spec
        self.device = torch.device(context.device)
        self.options: dict[str, Any] = {"seed": context.seed, "progress": context.progress, "spec": self.spec}

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
        """The network with random weights, or the expert's."""
        if self.expert is not None:
            return placed(self.expert.model, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed)
            architecture, arguments = self._architecture()
            return placed(create(architecture, **arguments), self.device)

    def teacher(self) -> nn.Module:
        """The network before pruning; kept in the context's folder."""
        folder = self.context.folder / "teacher"
        if self.expert is not None:
            return self.network().eval()
        if not (folder / "card.json").is_file():
            with self.stage("teacher"):
                model = train_classifier(
                    self.network(), self.data.train, self.spec, config=self.settings.teacher.training,
                    seed=self.context.seed, progress=self.context.progress,
                    checkpoint_dir=self.context.folder / "checkpoints",
                ).model  # fmt: skip
            ids = tuple(range(len(self.data.class_names)))
            made = {"task": "prune", "data": self.data.name, "seed": self.context.seed}
            card = Card(*self._architecture(), ids, ids, tuple(self.data.class_names), self.spec, made)
            Expert(model, card).save(folder)
        return placed(Expert.load(folder).model, self.device).eval()

    def images(self, row: str, teacher: nn.Module) -> Result | Tensor | ImageSource:
        """The images of a row."""
        if row == "Real images":
            return self.spec.prepare(self.data.train.images)
        if row == "Noise":
            generator = torch.Generator().manual_seed(self.context.seed)
            return Noise().draw(NOISE_IMAGES, self.spec, generator)
        if row == "Natural fields":
            return NaturalFields()
        adaptive = row.startswith("Adaptive")
        place = self.context.folder / ("adaptive" if adaptive else "deep-inversion")
        if not (place / "result.json").is_file():
            first = self.images("DeepInversion", teacher) if adaptive else None
            student = self.pruned("DeepInversion", self.settings.ratios[0], teacher) if adaptive else None
            with self.stage(f"images: {row}"):
                made = self._inverted(teacher, student)
            if isinstance(first, Result):
                half = len(first) - len(made)
                made.images = torch.cat([first.images[:half], made.images])
                made.labels, made.logits = torch.cat([first.labels[:half], made.labels]), None
            made.save(place)
        found = Result.load(place)
        rank = torch.arange(min(SHOWN, len(found)))
        self.outcome.samples[row] = (found.pixels()[-len(rank) :], found.labels[-len(rank) :])
        return found

    def _inverted(self, teacher: nn.Module, student: nn.Module | None) -> Result:
        classes, config = len(self.data.class_names), self.settings
        count = config.count if student is None else config.count // 2
        changes: dict[str, Any] = {} if config.recipe_steps is None else {"steps": config.recipe_steps}
        recipe = config.recipe if student is None else f"adaptive_{config.recipe}"
        return invert(
            teacher, per_class=max(1, round(count / classes)), recipe=recipe, student=student,
            checkpoint_dir=self.context.folder / "checkpoints", **changes, **self.options,
        )  # fmt: skip

    def pruned(self, row: str, ratio: float, teacher: nn.Module) -> nn.Module:
        """The network of a cell; kept in the context's folder."""
        file = self.context.folder / f"{row}-{100 * ratio:g}".replace(" ", "-") / "network.pt"
        if not file.is_file():
            given = self.images("DeepInversion" if row == "No finetune" else row, teacher)
            with self.stage(f"{row}, {100 * ratio:g} %"):
                result = prune(
                    teacher, given, ratio, config=self.settings.pruning,
                    fine_tuning=None if row == "No finetune" else self.settings.fine_tuning,
                    checkpoint_dir=self.context.folder / "checkpoints", **self.options,
                )  # fmt: skip
            save_checkpoint(file, {"widths": result.widths, "state": result.model.state_dict()})
        saved = load_checkpoint(file, self.device)
        small = resize_layers(self.network(), saved["widths"]).to(self.device)
        small.load_state_dict(saved["state"])
        return small.eval()

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        return 100 * accuracy(model, self.data.test, self.spec)

    def _architecture(self) -> tuple[str, dict[str, Any]]:
        table, outputs = self.settings.teacher, len(self.data.class_names)
        assert table.architecture is not None
        return table.architecture, complete_arguments(table.architecture, table.arguments, outputs, self.spec)


def run(preset: Preset, context: Context) -> Outcome:
    """The test accuracy of each cell, "20 %/DeepInversion", and of the network before."""
    table = Table(preset, context)
    teacher = table.teacher()
    table.outcome.values["Base model"] = table.accuracy(teacher)
    for ratio in table.settings.ratios:
        for row in table.settings.rows:
            table.outcome.values[f"{100 * ratio:g} %/{row}"] = table.accuracy(table.pruned(row, ratio, teacher))
    table.outcome.summary = "Filters were removed on the images of each row; the network then learned from itself."
    return table.outcome


def check(preset: Preset, context: Context) -> None:
    """ValueError or ImportError for a preset that cannot be run; nothing is computed."""
    pruning()
    table = Table(preset, context)
    model, wanted = table.network().eval(), (1, len(table.data.class_names))
    try:
        with torch.no_grad():
            outputs = tuple(model(torch.zeros(1, *table.spec.shape, device=table.device)).shape)
    except RuntimeError as error:
        raise ValueError(f"teacher: the network does not take images of {table.spec.shape}: {error}") from error
    require(outputs == wanted, "teacher", f"of {wanted[1]} logits", outputs)


def _read(preset: Preset) -> PruneTask:
    plain = dict(preset)
    pruned = from_flat(Pruning, plain.pop("pruning", {}), "pruning")
    changes = plain.pop("fine_tuning", {})
    require(isinstance(changes, dict), "fine_tuning", "a table", changes)
    try:
        tuned = with_flat_changes(FINE_TUNING, changes)
    except ValueError as error:
        raise ValueError(f"fine_tuning: {error}") from None
    return read_settings(PruneTask, plain | {"pruning": pruned, "fine_tuning": tuned})
