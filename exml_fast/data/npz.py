"""Reads arrays from a ``.npz`` file, whose sizes are checked before anything is unpacked."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.lib import format as npy

from exml_fast.profiling import free_bytes
from exml_fast.reading import opened

__all__ = ["read_npz"]

# A file of less than a hundredth of its content is taken for a decompression bomb if its content is large.
BOMB_BYTES, BOMB_RATIO = 2**28, 100
# What zipfile, zlib and numpy raise for damaged files.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError,
    OverflowError, TypeError, SyntaxError, MemoryError,
)  # fmt: skip


def read_npz(path: str | os.PathLike[str], keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file for a name that is missing, an array that is damaged or holds objects, content that
            does not fit into the free memory, and a decompression bomb.
    """
    with opened(path) as file:
        packed = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                if missing := [key for key in keys if key not in names]:
                    raise ValueError(f"{missing[0]!r} is missing, found {list(names)[:20]}; expected {list(keys)}")
                unpacked = sum(archive.getinfo(names[key]).file_size for key in keys)
                _require_room(unpacked, packed)
                return {key: _array(archive, names[key]) for key in keys}
        except DAMAGE as error:
            raise ValueError(f"{path}: {error or type(error).__name__}") from error


def _require_room(unpacked: int, packed: int) -> None:
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise ValueError(f"{packed:,} bytes unpack to {unpacked:,}: this is taken for a decompression bomb")
    room = free_bytes()
    if room is not None and 2 * unpacked > room:
        raise ValueError(f"the arrays need {2 * unpacked / 1e9:.1f} GB, and {room / 1e9:.1f} GB of memory are free")


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        shape, dtype = _header(file)
        if dtype.hasobject:
            raise ValueError(f"{name}: the arrays must be plain numbers, got {dtype}")
        if math.prod(shape) * dtype.itemsize != size - file.tell():
            raise ValueError(f"{name} is damaged: {size - file.tell():,} bytes are no {dtype} of shape {shape}")
    with archive.open(name) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
