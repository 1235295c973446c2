"""A stream of experts, read one at a time (Carta 2022, sec. 2: an ex-model cannot keep them all)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from exml_fast.continual.expert import CARD_FILE, Card, Expert, read_card

__all__ = ["ExpertStream"]


class ExpertStream:
    """Experts in order: a parent folder of expert folders, a list of expert folders, or experts in memory.

    Folders are read when an expert is asked for and not kept; cards are read (and checked) at once. A parent's
    subfolders come in natural order (``expert_2`` before ``expert_10``). ValueError if there is none.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Sequence[Expert],
        device: str | torch.device = "cpu",
    ) -> None:
        if isinstance(source, str | os.PathLike):
            parent = Path(source)
            if not parent.is_dir():
                raise ValueError(f"no such folder: {parent}")
            self._items: list[Path | Expert] = [
                p for p in sorted(parent.iterdir(), key=_natural) if (p / CARD_FILE).is_file()
            ]
        else:
            self._items = [item if isinstance(item, Expert) else Path(item) for item in source]
        if not self._items:
            raise ValueError(f"no expert in {source}: expected folders with {CARD_FILE}")
        self.device = torch.device(device)
        self.cards: list[Card] = [i.card if isinstance(i, Expert) else read_card(i) for i in self._items]

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


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]
