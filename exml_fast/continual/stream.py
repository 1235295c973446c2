"""A stream of experts, read one at a time (Carta 2022, sec. 2: an ex-model cannot keep them all)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from exml_fast.continual.expert import CARD_FILE, Card, Expert, read_card
from exml_fast.engine.freezing import chosen_device
from exml_fast.storage import load_json, save_json, sha256
from exml_fast.validation import shown

__all__ = ["ExpertStream"]

STREAM_FILE = "stream.json"
STREAM_VERSION = 1


class ExpertStream:
    """Experts in order: a parent folder of expert folders, a list of expert folders, or experts in memory.

    Cards are read and checked at once. An expert's weights are read each time it is asked for, and are not kept. The
    order of a parent's subfolders is that of its ``stream.json`` (:meth:`exml_fast.continual.Catalogue.export`), or
    without one natural (``expert_2`` before ``expert_10``). ValueError if there is no expert.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Sequence[Expert],
        device: str | torch.device = "cpu",
    ) -> None:
        if isinstance(source, str | os.PathLike):
            self._items: list[Path | Expert] = [*stream_folders(source)]
        else:
            self._items = [item if isinstance(item, Expert) else Path(item) for item in source]
        if not self._items:
            raise ValueError(f"no expert in {source}: expected folders with {CARD_FILE}")
        self.device = chosen_device(device)
        self.cards: list[Card] = [i.card if isinstance(i, Expert) else read_card(i) for i in self._items]

    def __repr__(self) -> str:
        architectures = ", ".join(dict.fromkeys(card.architecture for card in self.cards))
        classes = len({c for classes in self.experiences for c in classes})
        return f"ExpertStream: {len(self)} experts ({architectures}), {classes} classes, read to {self.device}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Expert:
        item = self._items[index]
        return item if isinstance(item, Expert) else Expert.load(item, self.device)

    def __iter__(self) -> Iterator[Expert]:
        for index in range(len(self)):
            yield self[index]

    @property
    def units(self) -> list[int]:
        """Sorted global ids of all units of all heads."""
        return sorted({unit for card in self.cards for unit in card.units})

    @property
    def experiences(self) -> list[list[int]]:
        """The classes each expert was trained on."""
        return [list(card.classes) for card in self.cards]

    def require_new_classes(self) -> None:
        """ValueError naming the first expert that shares a class with an earlier one."""
        first: dict[int, int] = {}
        for i, classes in enumerate(self.experiences):
            if shared := [c for c in classes if c in first]:
                raise ValueError(
                    f"{self.name(i)} shares the classes {shared} with {self.name(first[shared[0]])}; every expert must "
                    "bring classes of its own"
                )
            first |= dict.fromkeys(classes, i)

    def require_same_classes(self) -> None:
        """ValueError naming the first expert that lacks a class of another expert."""
        every = {c for classes in self.experiences for c in classes}
        for i, classes in enumerate(self.experiences):
            if missing := sorted(every - set(classes)):
                raise ValueError(f"{self.name(i)} lacks the classes {missing}; every expert must know all classes")

    def name(self, index: int) -> str:
        """An expert's name in messages: its place and, if it has one, its folder."""
        item = self._items[index]
        return f"expert {index + 1}" if isinstance(item, Expert) else f"expert {index + 1} ({item})"

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each unit; the first card that has it decides."""
        names: dict[int, str] = {}
        for card in self.cards:
            for unit, name in zip(card.units, card.class_names, strict=True):
                names.setdefault(unit, name)
        return names

    def fingerprints(self) -> list[str]:
        """SHA-256 of each expert's weights."""
        return [
            item.fingerprint() if isinstance(item, Expert) else card.sha256
            for item, card in zip(self._items, self.cards, strict=True)
        ]


def subfolders(parent: str | os.PathLike[str]) -> list[Path]:
    """Folders in ``parent`` in natural order. Hidden folders are left out: they are unfinished copies."""
    if not Path(parent).is_dir():
        raise ValueError(f"no such folder: {parent}")
    found = (p for p in Path(parent).iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=_natural)


def stream_folders(parent: str | os.PathLike[str], damaged: dict[str, str] | None = None) -> list[Path]:
    """The experts' folders of a stream, in its order.

    A ``stream.json`` lists them. ValueError names the first expert whose card is missing or has changed since the
    stream was written; the card holds the hash of the weights. With ``damaged``, which receives these errors by name,
    such experts are left out.
    """
    file = Path(parent) / STREAM_FILE
    if not file.is_file():
        return [folder for folder in subfolders(parent) if os.path.lexists(folder / CARD_FILE)]
    listed = load_json(file)
    if not isinstance(listed, dict) or listed.get("format_version") != STREAM_VERSION:
        raise ValueError(f"{file}: format_version must be {STREAM_VERSION}")
    entries = listed.get("experts")
    wanted = {"name", "card_sha256"}
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() == wanted for e in entries):
        raise ValueError(f"{file}: experts must list objects with name and card_sha256")
    folders = []
    for entry in entries:
        folder = Path(parent) / check_name(entry["name"])
        try:
            _require_card(folder, entry["card_sha256"])
        except ValueError as error:
            if damaged is None:
                raise
            damaged[folder.name] = str(error)
        else:
            folders.append(folder)
    if len(set(folders)) != len(folders):
        raise ValueError(f"{file}: experts must not repeat a name")
    return folders


def _require_card(folder: Path, listed: object) -> None:
    if not os.path.lexists(folder / CARD_FILE):
        raise ValueError(f"{folder}: {CARD_FILE} is missing, {STREAM_FILE} lists the expert")
    if (found := sha256(folder / CARD_FILE, within=folder)) != listed:
        raise ValueError(f"{folder / CARD_FILE}: sha256 is {found}, {STREAM_FILE} says {shown(listed)}")


def write_order(parent: Path, names: Sequence[str]) -> None:
    """Write ``stream.json`` for these subfolders of ``parent``, in this order."""
    experts = [{"name": name, "card_sha256": sha256(parent / name / CARD_FILE)} for name in names]
    save_json(parent / STREAM_FILE, {"format_version": STREAM_VERSION, "experts": experts})


def check_name(name: object) -> str:
    """``name`` if it can name an expert's folder; ValueError for a path, a hidden name or unprintable characters."""
    if not isinstance(name, str) or not name.isprintable() or not re.fullmatch(r"[^./\\:][^/\\:]*", name):
        raise ValueError(f"an expert's name must be a plain, visible folder name, got {shown(name)}")
    return name


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.name)]
