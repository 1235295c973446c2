"""The list of finished shards: an append-only text file of lines of one length, each with a checksum.

A process that is killed leaves at most one incomplete last line, which the next writer removes. A damaged line anywhere
counts as missing, so the shard is looked for on disk, or made again.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from exml_fast.storage import PathLike, atomic_path
from exml_fast.validation import require

__all__ = ["Entry", "Manifest"]

# index (10 digits), images (8), bytes (14), sha256 (64), each followed by a space; CRC-32 of these (8), line feed.
CONTENT, LINE = 100, 109
INDEX, IMAGES, BYTES, SHA = slice(0, 10), slice(11, 19), slice(20, 34), slice(35, 99)
# Lines that are decoded at once: bounds the memory.
PART = 1 << 16
DIGITS = np.full(256, 255, dtype=np.uint8)
for _value, _letter in enumerate(b"0123456789abcdef"):
    DIGITS[_letter] = _value


class Entry(NamedTuple):
    """A finished shard."""

    shard: int
    """Its index."""
    images: int
    """Number of images."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file, 64 hexadecimal digits."""


class Manifest:
    """Which shards of a job are finished, with the size and hash of each file.

    Opening reads the file. Used as a context manager it appends: ``with manifest: manifest.add(entry)``. One process
    may append at a time; the caller holds the lock. Memory is 45 bytes a shard, whatever is added.

    Args:
        path: of the file; a missing one is an empty manifest.
        digest: of the job (64 hexadecimal digits); the first line of the file holds it.
        shards: number of shards of the job.

    Raises:
        ValueError: if the file is the manifest of another job.
    """

    def __init__(self, path: PathLike, digest: str, shards: int) -> None:
        self.path, self.digest = Path(path), digest
        self.images = np.zeros(shards, dtype=np.int32)
        """Images of each shard; 0 where the shard is not finished, or its file is missing."""
        self.bytes = np.zeros(shards, dtype=np.int64)
        self._sha = np.zeros((shards, 32), dtype=np.uint8)
        self.damaged = 0
        """Lines that were not readable, without an incomplete last one."""
        self._file: BinaryIO | None = None
        if self.path.is_file():
            self._read()

    def __len__(self) -> int:
        """Number of finished shards."""
        return int(np.count_nonzero(self.images))

    def __contains__(self, index: int) -> bool:
        return 0 <= index < len(self.images) and bool(self.images[index])

    def __getitem__(self, index: int) -> Entry:
        if index not in self:
            raise KeyError(f"shard {index} is not finished")
        return Entry(index, int(self.images[index]), int(self.bytes[index]), self._sha[index].tobytes().hex())

    @property
    def finished(self) -> np.ndarray:
        """Indices of the finished shards, int64, ascending."""
        return np.flatnonzero(self.images)

    def add(self, entry: Entry) -> None:
        """Append an entry. It is with the operating system afterwards, so a kill of this process keeps it."""
        assert self._file is not None, "add() needs the manifest as a context manager"
        require(0 <= entry.shard < len(self.images), "shard", f"below {len(self.images)}", entry.shard)
        self._file.write(_line(b"%010d %08d %014d %s " % (*entry[:3], entry.sha256.encode())))
        self._set(entry.shard, entry.images, entry.bytes, np.frombuffer(bytes.fromhex(entry.sha256), dtype=np.uint8))

    def __enter__(self) -> Self:
        if not self.path.is_file():
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(_line(b"exml_fast manifest 1 %s" % self.digest.encode()))
        size = os.path.getsize(self.path)
        # Not buffered: a kill between two entries loses none.
        self._file = open(self.path, "r+b", buffering=0)
        self._file.truncate(size - size % LINE)
        self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _set(self, index: int, images: int, size: int, sha: np.ndarray) -> None:
        self.images[index], self.bytes[index], self._sha[index] = images, size, sha

    def _read(self) -> None:
        with open(self.path, "rb") as file:
            first = file.read(LINE)
            if first != _line(b"exml_fast manifest 1 %s" % self.digest.encode()):
                raise ValueError(f"{self.path} is not the manifest of this job ({self.digest[:12]}…)")
            while part := file.read(PART * LINE):
                self._take(part)

    def _take(self, part: bytes) -> None:
        lines = np.frombuffer(part, dtype=np.uint8, count=len(part) // LINE * LINE).reshape(-1, LINE)
        view = memoryview(part)
        sums = np.fromiter(
            (zlib.crc32(view[at : at + CONTENT]) for at in range(0, lines.size, LINE)), dtype=np.uint32,
            count=len(lines),
        )  # fmt: skip
        digits = DIGITS[lines]
        stated = _number(digits[:, CONTENT : CONTENT + 8], 16).astype(np.uint32)
        index = _number(digits[:, INDEX], 10)
        good = (sums == stated) & (index < len(self.images)) & (lines[:, -1] == ord("\n"))
        self.damaged += int((~good).sum())
        index, digits = index[good], digits[good]
        self.images[index] = _number(digits[:, IMAGES], 10)
        self.bytes[index] = _number(digits[:, BYTES], 10)
        sha = digits[:, SHA]
        self._sha[index] = sha[:, ::2] * 16 + sha[:, 1::2]


def _line(content: bytes) -> bytes:
    content = content.ljust(CONTENT)
    return content + b"%08x\n" % zlib.crc32(content)


def _number(digits: np.ndarray, base: int) -> np.ndarray:
    """Values (N,) int64 of rows of digits (N, D)."""
    value = np.zeros(len(digits), dtype=np.int64)
    for column in digits.T:
        value = value * base + column
    return value
