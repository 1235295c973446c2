"""A class-incremental study: several learners on the same tasks from the same first networks, resumable.

Its folder::

    first/<key>/                       networks that know the first task, each shared by the learners that begin alike
    <row>/<protocol>/checkpoint/       of the learner that is running
    <row>/<protocol>/others/           what other classifiers say about its features
    <row>/<protocol>/network/          an expert: the learner's network after the last task
    <row>/<protocol>/learned.json      what was measured; the file that says that this part has finished
    <row>/<protocol>/pictures.safetensors
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exml_fast.checkpoint import fingerprint
from exml_fast.continual import Card, Expert
from exml_fast.continual.class_incremental import (
    METHODS,
    ICaRL,
    IncrementalResult,
    Joint,
    Learner,
    Oracle,
    Task,
    incremental,
    learner,
    tasks_of,
)
from exml_fast.continual.class_incremental.icarl import ICaRLSettings
from exml_fast.continual.class_incremental.losses import cross_entropy, local_cross_entropy
from exml_fast.continual.class_incremental.synthesis import Synthesis
from exml_fast.continual.expert import complete_arguments, require_fit
from exml_fast.data import Split, load
from exml_fast.engine.substitution import copied
from exml_fast.models import create, final_linear
from exml_fast.ownership import remove_tree
from exml_fast.progress import Progress, Renamed
from exml_fast.reproduction.incremental_learned import FeatureMap, Learned, TaskFigures
from exml_fast.reproduction.incremental_settings import IncrementalSettings, changes_of, folder_of_row, usual_network
from exml_fast.reproduction.incremental_shared import FirstNetwork, OtherClassifiers
from exml_fast.reproduction.lab_settings import require_package
from exml_fast.storage import atomic_path, save_tensors

__all__ = ["MAP_CLASSES", "IncrementalStudy"]

# Classes of the first task whose features are mapped, and real images of each.
MAP_CLASSES, MAP_IMAGES = 5, 100


class IncrementalStudy:
    """Runs what :class:`IncrementalSettings` ask for with one seed; finished parts found in ``folder`` are kept.

    Whatever is wrong with the settings raises ValueError or ImportError here, before anything is computed.
    """

    def __init__(
        self,
        settings: IncrementalSettings,
        folder: Path,
        *,
        seed: int = 0,
        data_root: str | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.settings, self.folder, self.seed, self.device = settings, folder, seed, device
        self.data = load(settings.data, data_root).with_held_out(settings.held_out)
        self.progress = progress
        self._tasks: dict[str, list[Task]] = {}
        self.architecture, arguments = usual_network(self.data.spec, settings.architecture, settings.arguments)
        self.arguments = complete_arguments(self.architecture, arguments, len(self.data.classes), self.data.spec)
        require_fit(self.network(), self.data.spec, len(self.data.classes))
        for protocol in settings.protocols:
            for row in settings.methods:
                _require_possible(self.learner(row, protocol), self.tasks(protocol))

    def run(self, seen: Callable[[Learned], None] | None = None) -> list[Learned]:
        """What each learner reached, protocol by protocol. ``seen`` is called with each of them as it comes."""
        found = []
        for protocol in self.settings.protocols:
            for row in self.settings.methods:
                found.append(self.learned(row, protocol))
                if seen is not None:
                    seen(found[-1])
        return found

    def learned(self, row: str, protocol: str) -> Learned:
        """What the learner of a row reached on a protocol; it learns unless that is on file."""
        folder = self.place(row, protocol)
        if not (folder / "learned.json").is_file():
            self._learn(row, protocol, folder)
        return Learned.load(folder)

    def place(self, row: str, protocol: str) -> Path:
        """The folder of a learner."""
        return self.folder / folder_of_row(row) / protocol

    def tasks(self, protocol: str) -> list[Task]:
        """The tasks of a protocol. Only those that were asked for last are kept: they hold copies of all images."""
        if protocol not in self._tasks:
            order = self.settings.order_seed
            self._tasks = {
                protocol: tasks_of(self.data, protocol, None if order is None else order + self.seed)
            }  # fmt: skip
        return self._tasks[protocol]

    def network(self) -> nn.Module:
        """The network of every learner, with random weights and a logit for each class of the data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return create(self.architecture, **self.arguments)

    def learner(self, row: str, protocol: str) -> Learner[Any]:
        """The learner of a row, before its first task."""
        return learner(
            self.settings.methods[row]["method"], self.network(), self.data.spec, tasks=len(self.tasks(protocol)) - 1,
            seed=self.seed, device=self.device, **changes_of(self.settings, row),
        )  # fmt: skip

    def class_names(self, protocol: str) -> list[str]:
        """In the order in which the classes come."""
        return [self.data.class_names[c] for task in self.tasks(protocol) for c in task.classes]

    def first(self, row: str, protocol: str) -> FirstNetwork:
        """The network that knows the first task, for a learner to adopt; it is trained unless it is on file.

        Processes that share a study's folder must make this call one at a time.
        """
        pupil, task = self.learner(row, protocol), self.tasks(protocol)[0]
        first = FirstNetwork(self.folder / "first" / self._key(pupil, task))
        if not first.known:
            learned = pupil.learn(
                task, progress=self._report(row, protocol), checkpoint_dir=first.folder / "checkpoint"
            )  # fmt: skip
            first.keep(self._expert(pupil, [task]), learned)
        return first

    def _report(self, row: str, protocol: str) -> Progress | None:
        """The caller's progress, with the learner's name in the stage's."""
        progress, title = self.progress, row if len(self.settings.protocols) == 1 else f"{row}, {protocol}"
        return None if progress is None else Renamed(progress, lambda stage: f"{title}, {stage}")

    def _learn(self, row: str, protocol: str, folder: Path) -> None:
        pupil, tasks = self.learner(row, protocol), self.tasks(protocol)
        first = self.first(row, protocol)
        others = OtherClassifiers(folder / "others", self._alike(pupil, row, protocol))

        def after(result: IncrementalResult) -> None:
            number = len(result.tasks)
            if number in self.settings.maps:
                save_tensors(folder / f"map_{number:02d}.safetensors", vars(self._map(pupil, tasks[0])))
            others.test(pupil, tasks[:number], self.data.test)

        result = incremental(
            pupil, tasks, self.data.test, first=first.network(), after=after, checkpoint_dir=folder / "checkpoint",
            progress=self._report(row, protocol),
        )  # fmt: skip
        # This row comes last, so an interruption leaves none of the others out.
        for name, found in (others.results(result) | {row: result}).items():
            place = self.place(name, protocol)
            self._expert(pupil, tasks).save(place / "network")
            for file in folder.glob("map_*.safetensors"):
                if place != folder:
                    with atomic_path(place / file.name) as temporary:
                        shutil.copyfile(file, temporary)
            self._measured(name, protocol, pupil, found, first).save(place)
        for name in ("checkpoint", "others"):
            remove_tree(folder / name)

    def _alike(self, pupil: Learner[Any], row: str, protocol: str) -> dict[str, ICaRLSettings]:
        """Settings by row, of rows that differ from this one in iCaRL's classifier alone."""
        found = dict[str, ICaRLSettings]()
        for other in self.settings.methods if isinstance(pupil, ICaRL) else ():
            config = self.learner(other, protocol).config
            if other != row and isinstance(config, ICaRLSettings):
                same = config.replace(classifier=pupil.config.classifier) == pupil.config
                found |= {other: config} if same else {}
        return found

    def _measured(
        self, row: str, protocol: str, pupil: Learner[Any], result: IncrementalResult, first: FirstNetwork
    ) -> Learned:
        figures, classes = [], 0
        for number, (task, reached) in enumerate(zip(self.tasks(protocol), result.tasks, strict=True)):
            classes, learned = classes + len(task.classes), reached.learned
            stages, peak = dict(learned.seconds), learned.peak_mb
            whole = stages.pop("all")
            stages["other"] = max(0.0, whole - sum(stages.values()))
            if number == 0:
                cost = first.cost()
                stages["learn"], peak = stages.get("learn", 0.0) + cost["seconds"], max(peak, cost["peak_mb"])
            figures.append(
                TaskFigures(
                    classes, reached.accuracy, reached.accuracies,
                    {name: round(seconds, 3) for name, seconds in stages.items()}, round(peak, 1), learned.nbytes,
                    learned.working_bytes,
                    {name.removeprefix("synthesis/"): round(values[-1], 4) for name, values in learned.history.items()
                     if name.startswith("synthesis/")},
                )
            )  # fmt: skip
        method = self.settings.methods[row]["method"]
        return Learned(
            row, method, protocol, figures, _real_exemplars(method, pupil), _synthetic(pupil),
            result.tasks[-1].confusion, _exemplars(pupil), pupil.samples,
        )  # fmt: skip

    def _key(self, pupil: Learner[Any], task: Task) -> str:
        """The same for learners that learn the same first task in the same way."""
        config = pupil.config
        loss = pupil.label_loss()
        # In the first task every class is new.
        loss = cross_entropy if loss is local_cross_entropy else loss
        epochs = config.first_epochs or config.epochs
        data = [self.data.name, len(task.split), list(task.classes)]
        how = [loss.__name__, config.training.to_dict(), epochs, config.head, data, self.architecture, self.arguments]
        return fingerprint([], how)[:12]

    def _expert(self, pupil: Learner[Any], tasks: list[Task]) -> Expert:
        """The learner's network; a full head also has logits of classes to come."""
        outputs = final_linear(pupil.network).out_features
        classes = tuple(c for task in tasks for c in task.classes)
        others = [c for c in self.data.classes if c not in classes]
        units = (*classes, *others)[:outputs]
        made = {"data": self.data.name, "seed": self.seed, "learner": type(pupil).__name__, "tasks": len(tasks)}
        arguments = self.arguments | {"num_classes": outputs}
        names = tuple(self.data.class_names[c] for c in units)
        card = Card(self.architecture, arguments, units, classes, names, self.data.spec, made)
        return Expert(copied(pupil.network).cpu(), card)

    def _map(self, pupil: Learner[Any], task: Task) -> FeatureMap:
        classes = task.classes[:MAP_CLASSES]
        position = {c: k for k, c in enumerate(classes)}
        rows = torch.cat([torch.nonzero(task.split.labels == c)[:MAP_IMAGES, 0] for c in classes])
        real = task.split.subset(rows)
        kept = _exemplars(pupil) or pupil.samples
        width = final_linear(pupil.network).in_features
        empty = torch.zeros(0, width), torch.zeros(0, dtype=torch.int64)
        features, labels = empty
        if kept is not None:
            kept = kept.of_classes(list(range(len(classes))))
        if kept is not None and len(kept):
            features, labels = pupil.features(self.data.spec.prepare(kept.images)), kept.labels
        return FeatureMap(
            pupil.features(self.data.spec.prepare(real.images)),
            torch.tensor([position[c] for c in real.labels.tolist()]), features, labels,
        )  # fmt: skip


def _exemplars(pupil: Learner[Any]) -> Split | None:
    return pupil.exemplars.split() if isinstance(pupil, ICaRL | Oracle) else None


def _real_exemplars(method: str, pupil: Learner[Any]) -> int:
    if not METHODS[method].real:
        return 0
    if isinstance(pupil, Joint):
        return 0 if pupil.seen is None else len(pupil.seen)
    kept = _exemplars(pupil)
    return 0 if kept is None else len(kept)


def _synthetic(pupil: Learner[Any]) -> int | None:
    """Synthetic images of earlier classes in the last task; None where each step draws new ones."""
    if isinstance(pupil, ICaRL):
        kept = _exemplars(pupil)
        return len(kept) if kept is not None and pupil.config.exemplars.inversion is not None else 0
    synthesis: Synthesis | None = getattr(pupil.config, "synthesis", None)
    if synthesis is None:
        return 0
    source = getattr(pupil.config, "source", "inversion")
    return {"inversion": synthesis.images, "generator": None, None: 0}[source]


def _require_possible(pupil: Learner[Any], tasks: Sequence[Task]) -> None:
    """ValueError or ImportError for a learner that could not learn the tasks."""
    classes = 0
    for task in tasks:
        classes += len(task.classes)
        pupil.check(task, classes)
    if isinstance(pupil, ICaRL) and pupil.config.classifier in ("k-nearest", "mlp", "svm"):
        require_package("sklearn", "eval", "scikit-learn")
