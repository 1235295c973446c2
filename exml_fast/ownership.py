"""The folder of a run: only files that the run has written are replaced or deleted, and one process writes at a time.

with RunFolder("out"):
    save_json("out/results.json", …)     # listed in out/.written, before the file is written
    remove_tree("out/checkpoints")       # deletes the listed files only

Outside such a block, files are replaced and deleted as usual.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from io import FileIO
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from exml_fast.reading import JSON_BYTES, read_limited

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None

__all__ = ["LIST_FILE", "RunFolder", "claim", "is_temporary", "remove_tree", "temporary_name"]

PathLike = str | os.PathLike[str]

LIST_FILE = ".written"
"""The list of a folder's files, as JSON strings, one a line. It is also the lock."""
TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.(.+)", re.DOTALL)

_open: list[RunFolder] = []


class RunFolder:
    """``with RunFolder(path)``: the block writes into this folder.

    The folder is created if it is missing. Temporary files that a killed process left are deleted.

    Raises:
        ValueError: if another process writes into the folder, or its list of files is damaged.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path).resolve()
        self._file: FileIO | None = None
        self._listed: set[str] = set()

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / LIST_FILE
        self._listed = _read(file)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._file = FileIO(os.open(file, flags, 0o644), "r+")
        try:
            self._lock()
            self._listed = _read(file)
        except BaseException:
            self._file.close()
            raise
        _open.append(self)
        self._sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open.remove(self)
        assert self._file is not None
        self._file.close()

    def owns(self, path: PathLike) -> bool:
        """Whether the file is on the list."""
        return self._name(path) in self._listed

    def holds(self, path: PathLike) -> bool:
        """Whether the file is on the list, or a file in the folder ``path``."""
        name = self._name(path)
        return name in self._listed or any(listed.startswith(f"{name}/") for listed in self._listed)

    def add(self, path: PathLike) -> None:
        """Put a file on the list, before it is written. FileExistsError for a file that is there and not listed."""
        name = self._name(path)
        if name in self._listed:
            return
        if os.path.lexists(path):
            raise FileExistsError(f"{path} is not replaced: this run did not write it; move it or give another folder")
        assert self._file is not None
        self._file.write(json.dumps(name).encode() + b"\n")
        self._listed.add(name)

    def remove(self, inside: PathLike | None = None) -> None:
        """Delete the listed files, or those in the folder ``inside``, and folders that are empty then."""
        top = self.path if inside is None else Path(inside).resolve()
        folders = set[Path]() if inside is None else {Path(folder) for folder, _, _ in os.walk(top)}
        for name in self._listed:
            file = self.path / name
            if file.is_relative_to(top) and file.parent.resolve().is_relative_to(self.path):
                file.unlink(missing_ok=True)
                folders |= {folder for folder in (file.parent, *file.parents) if folder.is_relative_to(top)}
        for folder in sorted(folders - {self.path}, key=lambda folder: -len(folder.parts)):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _name(self, path: PathLike) -> str:
        path = Path(path)
        return os.fsencode((path.parent.resolve() / path.name).relative_to(self.path)).decode(
            "utf-8", "backslashreplace"
        )

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process writes into {self.path}: wait for it or give another folder") from None

    def _sweep(self) -> None:
        for folder in {(self.path / name).parent for name in self._listed}:
            if folder.is_dir() and folder.resolve().is_relative_to(self.path):
                for file in folder.glob(".*"):
                    found = TEMPORARY.fullmatch(file.name)
                    if found and self.owns(folder / found[1]) and not file.is_dir():
                        file.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, which :class:`RunFolder` recognises."""
    return path.with_name(f".{os.urandom(6).hex()}.{path.name}")


def is_temporary(path: Path) -> bool:
    """Whether this is a file with a name of :func:`temporary_name`."""
    return TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def claim(path: PathLike) -> None:
    """Put a file on the list of the open run folder that it is in, if there is one; see :meth:`RunFolder.add`."""
    if (folder := _folder_of(path)) is not None:
        folder.add(path)


def remove_tree(path: PathLike) -> None:
    """Delete a folder: in an open run folder the listed files, elsewhere everything. No error if it is missing."""
    if (folder := _folder_of(path)) is not None:
        folder.remove(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _folder_of(path: PathLike) -> RunFolder | None:
    parent = Path(path).parent.resolve()
    return next((folder for folder in reversed(_open) if parent.is_relative_to(folder.path)), None)


def _read(file: Path) -> set[str]:
    if not os.path.lexists(file):
        return set()
    try:
        lines = read_limited(file, JSON_BYTES, file.parent).decode("utf-8").split("\n")[:-1]
        names = [json.loads(line) for line in lines]
        if not all(isinstance(name, str) and not Path(name).is_absolute() for name in names):
            raise ValueError("expected relative paths")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, give another folder: {error}") from error
    return {name for name in names if ".." not in Path(name).parts}
