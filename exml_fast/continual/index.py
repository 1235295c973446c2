"""What is known about the experts of a large folder, kept in a file of the user's, so that it is not read again.

The file lies in ``catalogues`` in the folder $EXML_FAST_CACHE (~/.cache/exml_fast), and not beside the experts: a
catalogue from a stranger cannot bring an index of its own. What the index says about an expert counts as long as both
files of the expert have the same size, times and place on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from exml_fast._native import build_info
from exml_fast.continual.expert import CARD_FILE, MODEL_FILE, Card
from exml_fast.storage import PathLike, atomic_path

__all__ = ["Index", "Known"]

VERSION = 1
# A file that was changed within this time may be changed again without a new time.
SETTLED_SECONDS = 2.0
Stamp = tuple[int, ...]


@dataclass
class Known:
    """What was read from an expert's folder."""

    card: Card
    parameters: int
    bytes: int
    verified: bool = False
    """Whether :meth:`exml_fast.continual.Expert.load` accepted the expert."""


class Index:
    """What is known about the experts in the subfolders of ``folder``. A damaged or unwritable index is empty."""

    def __init__(self, folder: PathLike) -> None:
        self._folder = Path(folder)
        self._known: dict[str, tuple[Stamp, Known | str]] | None = None
        self._changed = False

    @property
    def file(self) -> Path:
        """The index's file; RuntimeError without a home folder."""
        cache = Path(os.environ.get("EXML_FAST_CACHE") or "~/.cache/exml_fast").expanduser()
        name = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()
        return cache / "catalogues" / f"{name[:32]}.jsonl"

    def known(self, folder: Path, read: Callable[[Path], Known]) -> Known:
        """What is known about the expert in ``folder``, or what ``read`` says, which may raise an error."""
        before = _stamp(folder)
        stamp, found = self._entries().get(folder.name, ((), ""))
        if before is not None and before == stamp:
            if isinstance(found, Known):
                return found
            with contextlib.suppress(ValueError, TypeError):  # a damaged line
                revived = _from_line(found)
                self._entries()[folder.name] = stamp, revived
                return revived
        found = read(folder)
        self._keep(folder, before, found)
        return found

    def verify(self, folder: Path, read: Callable[[Path], Known], load: Callable[[Path], object]) -> None:
        """Call ``load``, which raises an error for a damaged expert, unless it has accepted these very files."""
        try:
            if self.known(folder, read).verified:
                return
        finally:
            before = _stamp(folder)
        load(folder)
        known = self.known(folder, read)
        known.verified = True
        self._keep(folder, before, known)

    def save(self, names: Iterable[str]) -> None:
        """Write what is known about the experts of these names; forget the others. Does nothing without a change."""
        entries, names = self._entries(), set(names)
        if not self._changed and entries.keys() <= names:
            return
        self._known = {name: value for name, value in entries.items() if name in names}
        try:
            with atomic_path(self.file) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.write(json.dumps(_header()) + "\n")
                for name, (stamp, found) in self._known.items():
                    line = found if isinstance(found, str) else _to_line(found)
                    file.write(f"{json.dumps([name, *stamp])}\t{line}\n")
        except (OSError, RuntimeError, UnicodeError):  # no writable folder: the next process reads again
            return
        self._changed = False

    def _keep(self, folder: Path, before: Stamp | None, found: Known) -> None:
        """Remember ``found`` if the files were the same before and after it was read, and have been for a while."""
        settled = before is not None and time.time() - max(before[0], before[1]) / 1e9 > SETTLED_SECONDS
        if settled and before is not None and _stamp(folder) == before:
            self._entries()[folder.name] = before, found
            self._changed = True

    def _entries(self) -> dict[str, tuple[Stamp, Known | str]]:
        if self._known is None:
            self._known = {}
            try:
                with open(self.file, encoding="utf-8") as file:
                    if json.loads(file.readline()) == _header():
                        for line in file:
                            head, _, rest = line.partition("\t")
                            name, *stamp = json.loads(head)
                            self._known[name] = tuple(stamp), rest.rstrip("\n")
            except (OSError, RuntimeError, ValueError, TypeError):
                self._known = {}
        return self._known


def _stamp(folder: Path) -> Stamp | None:
    """Times, sizes and places of both files; None where one is missing or a link, whose target may change."""
    newest, rest = 0, list[int]()
    for name in (CARD_FILE, MODEL_FILE):
        try:
            found = os.lstat(folder / name)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        newest = max(newest, found.st_mtime_ns)
        rest += [found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino]
    return newest, max(rest[0], rest[4]), *rest


def _header() -> dict[str, object]:
    """What was accepted once may not be accepted by other versions."""
    return {"index": VERSION, "exml_fast": str(build_info()["version"]), "torch": torch.__version__}


def _to_line(known: Known) -> str:
    return json.dumps([known.card.to_dict(), known.parameters, known.bytes, known.verified])


def _from_line(line: str) -> Known:
    card, parameters, size, verified = json.loads(line)
    return Known(Card.from_dict(card), parameters, size, verified)
