"""Reads files that may come from strangers: regular files of a limited size, and JSON without anything ambiguous."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["CARD_BYTES", "JSON_BYTES", "opened", "parse_json", "printable", "read_limited", "regular_file", "shortened"]

PathLike = str | os.PathLike[str]

JSON_BYTES = 64 * 2**20
"""Greatest size of a JSON file."""
CARD_BYTES = 2 * 2**20
"""Greatest size of a card; one of 20,000 classes with long names has 1.3 MB."""
DEPTH = 64
"""Greatest depth of lists and objects in each other."""
DIGITS = 308
"""Digits of an integer that certainly fits into float64."""
SHOWN = 200
"""Greatest number of characters of a value in a message."""


def regular_file(path: PathLike, within: PathLike | None = None) -> Path:
    """The path without links of a regular file. Nothing is opened, so a FIFO does not block.

    Args:
        path: of the file.
        within: a folder that a link must not lead out of; None allows links to anywhere.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a folder, FIFO, device or socket, and for a link that leads out of ``within``.
    """
    try:
        real = Path(path).resolve(strict=True)
        kind = os.lstat(real).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (RuntimeError, OSError) as error:  # a circle of links
        raise ValueError(f"{path} cannot be read: {error}") from error
    if within is not None and not real.is_relative_to(Path(within).resolve()):
        raise ValueError(f"{path} must not be a link out of its folder, got a link to {real}")
    if not stat.S_ISREG(kind):
        names = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise ValueError(f"{path} must be a regular file, got {names.get(stat.S_IFMT(kind), 'a device')}")
    return real


@contextmanager
def opened(path: PathLike, within: PathLike | None = None) -> Iterator[BufferedReader]:
    """Open a regular file for reading; see :func:`regular_file`."""
    real = regular_file(path, within)
    # A file that became a FIFO or a link in between neither blocks nor leads elsewhere.
    number = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError(f"{path} must be a regular file")
        yield file


def read_limited(path: PathLike, limit: int, within: PathLike | None = None) -> bytes:
    """All bytes of a regular file; ValueError if there are more than ``limit``."""
    with opened(path, within) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} must have at most {limit:,} bytes, got {size:,}")
        return file.read(limit)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for text that is no JSON, a repeated key, NaN, infinity or another number outside float64, a
            surrogate without its pair, or more than 64 lists and objects in each other.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError(f"lists and objects must be at most {DEPTH} deep") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"lists and objects must be at most {DEPTH} deep")
        level = [child for outer in level if isinstance(outer, list | dict) for child in _children(outer)]
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"surrogates must come in pairs, got {error.object[error.start]!r} alone") from None
    return value


def shortened(text: str, limit: int = SHOWN) -> str:
    """``text``, or its beginning and "…" if it has more than ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str, limit: int | None = None) -> str:
    """``text`` with "�" for characters that cannot be shown or that turn the text around; line ends and tabs stay.

    ``limit``: greatest length; longer texts are shortened.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
    return shown if limit is None else shortened(shown, limit)


def _children(value: list[Any] | dict[str, Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shortened(key)!r} must not be repeated")
            seen.add(key)
    return made


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number must fit into float64, got {shortened(text, 40)}")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    mantissa = text.lower().partition("e")[0]
    if abs(value) == float("inf") or (value == 0 and any(digit in mantissa for digit in "123456789")):
        raise ValueError(f"a number must fit into float64, got {shortened(text, 40)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
