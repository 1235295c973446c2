"""A searchable folder of experts: the "neural skills catalogue" of Carta 2022, sec. 7."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from exml_fast.continual.expert import CARD_FILE, MODEL_FILE, Card, Expert, read_card
from exml_fast.continual.index import Index, Known
from exml_fast.continual.stream import STREAM_FILE, ExpertStream, check_name, stream_folders, subfolders, write_order
from exml_fast.reading import regular_file, shortened
from exml_fast.storage import atomic_folder, save_json, sha256, tensor_header

__all__ = ["Catalogue", "Entry", "check_target", "copy_expert", "export_stream", "matches"]

# Errors of a damaged expert, or of one whose library is not installed.
DAMAGE = (ValueError, RuntimeError, OSError, ImportError, ArithmeticError, MemoryError)
# Greatest length of a reason.
REASON = 500
RUNNING_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Entry:
    """An expert on disk. It can stand for its folder: ``ExpertStream(catalogue.find(classes=["cat"]))``.

    Attributes:
        folder: with ``model.safetensors`` and ``card.json``.
        card: read from the folder; the weights are not read.
        parameters: number of floating-point values in the weights file, without BatchNorm's running statistics.
        bytes: size of the weights file.
    """

    folder: Path
    card: Card
    parameters: int
    bytes: int

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Entry:
        """Read the card and the header of the weights; ValueError or FileNotFoundError naming what is wrong."""
        path = Path(folder)
        card, header = read_card(path), tensor_header(path / MODEL_FILE, within=path)
        counted = [
            math.prod(shape)
            for name, (dtype, shape) in header.items()
            if "F" in dtype and name.rpartition(".")[2] not in RUNNING_STATISTICS
        ]
        return cls(path, card, sum(counted), (path / MODEL_FILE).stat().st_size)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def classes(self) -> list[str]:
        """Names of the classes it was trained on."""
        names = dict(zip(self.card.units, self.card.class_names, strict=True))
        return [names[c] for c in self.card.classes]

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test images of its own classes, in [0, 1], from the card; None if the card has none."""
        value = self.card.training.get("accuracy")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            return None
        return float(value)

    def load(self, device: str | torch.device = "cpu") -> Expert:
        """The expert, checked as :meth:`Expert.load` does."""
        return Expert.load(self.folder, device)

    def to_dict(self) -> dict[str, Any]:
        """Name, folder, size and the fields of the card, as JSON values."""
        size = {"parameters": self.parameters, "bytes": self.bytes}
        return {"name": self.name, "folder": str(self.folder), **size, **self.card.to_dict()}

    def __fspath__(self) -> str:
        return str(self.folder)


class Catalogue:
    """Experts in the subfolders of one folder, which is listed again at every call.

    Cards of unchanged experts come from an index (:mod:`exml_fast.continual.index`), so that thousands of experts are
    listed and searched in seconds.

    ``exml-fast train-experts`` writes such a folder. Hidden subfolders, and subfolders with neither a
    ``model.safetensors`` nor a ``card.json``, are ignored. An expert is checked before it is added, is added whole or
    not at all, and replaces another one only with ``overwrite``. An exported stream can be searched and verified like
    a catalogue, but no expert can be added to it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._index = Index(folder)

    @property
    def names(self) -> list[str]:
        """Names of all experts, readable or not, in natural order."""
        return [folder.name for folder in self._folders()]

    @property
    def experts(self) -> list[Entry]:
        """Experts whose card and weights' header can be read, in natural order of names; see :attr:`unreadable`."""
        return self._scan()[0]

    @property
    def unreadable(self) -> dict[str, str]:
        """The error of each expert that :attr:`experts` leaves out, by name."""
        return self._scan()[1]

    def __len__(self) -> int:
        return len(self.experts)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.experts)

    def __getitem__(self, name: str) -> Entry:
        folder = self.folder / check_name(name)
        if not folder.is_dir():
            raise ValueError(f"no expert {name!r} in {self.folder}, which has {', '.join(self.names) or 'none'}")
        return Entry.read(folder)

    def find(
        self,
        classes: Sequence[str] = (),
        *,
        match: str = "all",
        architecture: str | None = None,
        licence: str | None = None,
        min_accuracy: float | None = None,
        min_parameters: int | None = None,
        max_parameters: int | None = None,
        min_bytes: int | None = None,
        max_bytes: int | None = None,
    ) -> list[Entry]:
        """Experts that meet every condition given, in the order of :attr:`experts`.

        Comparison ignores case; ``*`` stands for any characters and ``?`` for any one.

        Args:
            classes: names of classes that the expert was trained on (units without training images do not count).
            match: "all" of the classes, or "any".
            architecture: pattern for the card's architecture, as ``lenet5`` or ``torchvision/*``.
            licence: of the weights; an expert without a licence never matches.
            min_accuracy: in [0, 1], on the test images of the expert's classes; an expert without one never matches.
            min_parameters, max_parameters, min_bytes, max_bytes: inclusive; see :class:`Entry`.

        Raises:
            ValueError: naming a condition that is out of its range.
        """
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, got the string {classes!r}")
        if match not in ("all", "any"):
            raise ValueError(f"match must be 'all' or 'any', got {match!r}")
        if min_accuracy is not None and not 0 <= min_accuracy <= 1:
            raise ValueError(f"min_accuracy must be between 0 and 1, got {min_accuracy!r}")
        for name, low, high in (("parameters", min_parameters, max_parameters), ("bytes", min_bytes, max_bytes)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} ({low}) must not be above max_{name} ({high})")

        def fits(entry: Entry) -> bool:
            known = [any(matches(name, wanted) for name in entry.classes) for wanted in classes]
            accuracy, card = entry.accuracy, entry.card
            return (
                (not known or (all(known) if match == "all" else any(known)))
                and (architecture is None or matches(card.architecture, architecture))
                and (licence is None or (card.licence is not None and matches(card.licence, licence)))
                and (min_accuracy is None or (accuracy is not None and accuracy >= min_accuracy))
                and _within(entry.parameters, min_parameters, max_parameters)
                and _within(entry.bytes, min_bytes, max_bytes)
            )

        return [entry for entry in self.experts if fits(entry)]

    def add(
        self,
        expert: Expert | str | os.PathLike[str],
        name: str | None = None,
        *,
        licence: str | None = None,
        overwrite: bool = False,
    ) -> Entry:
        """Check an expert and copy it into the catalogue.

        Args:
            expert: its folder, or an expert in memory.
            name: its name in the catalogue; default the name of its folder.
            licence: replaces the licence on the copy's card.
            overwrite: replace an expert of the same name.

        Raises:
            ValueError: for an expert that :meth:`Expert.load` refuses, or an invalid folder name.
            FileExistsError: if the name is taken.
        """
        if name is None:
            if isinstance(expert, Expert):
                raise ValueError("name must be given for an expert in memory")
            name = Path(expert).resolve().name
        target = self._target(name, overwrite)
        with atomic_folder(target, overwrite) as temporary:
            if isinstance(expert, Expert):
                Expert(expert.model, expert.card).save(temporary)
                Expert.load(temporary)
            else:
                copy_expert(expert, temporary)
            if licence is not None:
                card = dataclasses.replace(read_card(temporary), licence=licence)
                save_json(temporary / CARD_FILE, card.to_dict())
        return Entry.read(target)

    def verify(self, names: Iterable[str] | None = None, *, full: bool = False) -> dict[str, str]:
        """Load every expert (or those named), one at a time; returns the error of each damaged expert by name.

        An expert that was verified before, and whose files have the same size and times since, is not read again
        unless ``full`` is set. A fault of the disk itself, which changes no times, needs ``full``.

        :meth:`Expert.load` checks the card's fields, the hash, the names, shapes and dtypes of the weights, that they
        are finite, and the number of outputs. ``stream.json`` is checked too, if the folder has one.
        """
        wanted = None if names is None else [self.folder / check_name(name) for name in names]
        problems = {}
        for folder in self._folders() if wanted is None else wanted:
            try:
                if full:
                    Expert.load(folder)
                else:
                    self._index.verify(folder, _read, Expert.load)
            except DAMAGE as error:
                problems[folder.name] = _reason(error)
        if not full:
            self._index.save(self.names)
        if wanted is None and self._is_stream:
            try:
                stream_folders(self.folder)
            except DAMAGE as error:
                problems[STREAM_FILE] = _reason(error)
        return problems

    def export(
        self,
        destination: str | os.PathLike[str],
        experts: Iterable[str | Entry] | None = None,
        *,
        overwrite: bool = False,
    ) -> ExpertStream:
        """Write experts as a stream: one folder, in the order given, under their names.

        ``stream.json`` holds the order and the hash of every card, and each card holds the hash of its weights.
        ``ExpertStream(destination)`` and :meth:`import_` read it.

        Args:
            experts: names or entries; default all, by name or in the order of an existing ``stream.json``.
            overwrite: replace a stream at ``destination``; no other folder is replaced.

        Raises:
            ValueError: for an expert that :meth:`Expert.load` refuses, an unknown or repeated name, or no expert.
            FileExistsError: if there is something at ``destination``.
        """
        if experts is not None:
            folders = [self[expert.name if isinstance(expert, Entry) else expert].folder for expert in experts]
        else:
            folders = stream_folders(self.folder) if self._is_stream else self._folders()
        return export_stream(folders, destination, overwrite=overwrite)

    def import_(
        self,
        source: str | os.PathLike[str],
        *,
        prefix: str = "",
        overwrite: bool = False,
        damaged: dict[str, str] | None = None,
    ) -> list[Entry]:
        """Check all experts of a stream's folder and copy them into the catalogue.

        ``source`` is a folder that :meth:`export` writes or :class:`ExpertStream` reads. The names are the stream's,
        after ``prefix``; the entries are in its order. Errors are those of :meth:`add`.

        Args:
            source, prefix: see above.
            overwrite: replace experts of the same name.
            damaged: receives the error of each damaged expert by name, and the others are copied. Without it, nothing
                is copied if one expert is damaged.
        """
        folders = stream_folders(source, damaged)
        if not folders and not damaged:
            raise ValueError(f"no expert in {source}: expected folders with {CARD_FILE}")
        targets = [self._target(prefix + folder.name, overwrite) for folder in folders]
        copied = []
        with ExitStack() as stack:
            for folder, target in zip(folders, targets, strict=True):
                try:
                    with ExitStack() as one:
                        copy_expert(folder, one.enter_context(atomic_folder(target, overwrite)))
                        stack.push(one.pop_all())
                except DAMAGE as error:
                    if damaged is None or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    damaged[folder.name] = _reason(error)
                else:
                    copied.append(target)
        return [Entry.read(target) for target in copied]

    @property
    def _is_stream(self) -> bool:
        return (self.folder / STREAM_FILE).is_file()

    def _target(self, name: str, overwrite: bool) -> Path:
        if self._is_stream:
            raise ValueError(f"{self.folder} is an exported stream and cannot be changed: import it into a catalogue")
        target = self.folder / check_name(name)
        check_target(target, (CARD_FILE, MODEL_FILE), overwrite)
        return target

    def _folders(self) -> list[Path]:
        return [
            f for f in subfolders(self.folder) if any(os.path.lexists(f / file) for file in (CARD_FILE, MODEL_FILE))
        ]

    def _scan(self) -> tuple[list[Entry], dict[str, str]]:
        entries, unreadable = [], {}
        folders = self._folders()
        for folder in folders:
            try:
                known = self._index.known(folder, _read)
                entries.append(Entry(folder, known.card, known.parameters, known.bytes))
            except DAMAGE as error:
                unreadable[folder.name] = _reason(error)
        self._index.save(folder.name for folder in folders)
        return entries, unreadable


def _read(folder: Path) -> Known:
    entry = Entry.read(folder)
    return Known(entry.card, entry.parameters, entry.bytes)


def copy_expert(source: str | os.PathLike[str], target: Path) -> None:
    """Check the expert in ``source`` by :meth:`Expert.load`, copy its two files, and check the copy."""
    card = Expert.load(source).card
    for file in (MODEL_FILE, CARD_FILE):
        shutil.copyfile(regular_file(Path(source) / file, within=source), target / file)
    if read_card(target) != card or sha256(target / MODEL_FILE) != card.sha256:
        raise RuntimeError(f"{source} changed while it was copied")


def export_stream(
    folders: Sequence[Path], destination: str | os.PathLike[str], *, overwrite: bool = False
) -> ExpertStream:
    """Write the experts in ``folders`` as a stream; see :meth:`Catalogue.export`."""
    names = [check_name(folder.name) for folder in folders]
    if not names:
        raise ValueError(f"there is no expert to write to {destination}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"experts must not repeat a name, got {', '.join(repeated)} more than once")
    if any(folder.resolve().is_relative_to(Path(destination).resolve()) for folder in folders):
        raise ValueError(f"destination must not hold the experts themselves, got {destination}")
    check_target(Path(destination), (STREAM_FILE,), overwrite)
    with atomic_folder(destination, overwrite) as temporary:
        for folder, name in zip(folders, names, strict=True):
            (temporary / name).mkdir()
            copy_expert(folder, temporary / name)
        write_order(temporary, names)
    return ExpertStream(destination)


def check_target(target: Path, marks: Sequence[str], overwrite: bool) -> None:
    """FileExistsError unless ``target`` is free, or is to be replaced and holds one of ``marks`` and only our files."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already: give another name or overwrite it")
    if target.is_symlink() or not any((target / mark).is_file() for mark in marks):
        raise FileExistsError(f"{target} is not overwritten: it is not a folder with {' or '.join(marks)}")
    ours = (MODEL_FILE, CARD_FILE, STREAM_FILE)
    if other := next((p for p in sorted(target.rglob("*")) if not p.is_dir() and p.name not in ours), None):
        raise FileExistsError(f"{target} is not overwritten: it also holds {other.relative_to(target)}")


def matches(text: str, pattern: str) -> bool:
    """Whether ``pattern``, with the wildcards * and ?, is all of ``text``; case does not count."""
    return fnmatchcase(text.casefold(), pattern.casefold())


def _within(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _reason(error: BaseException) -> str:
    return shortened(" ".join(str(error).split()), REASON) or type(error).__name__
