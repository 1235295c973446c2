"""Reads and writes files and folders: JSON, tensors and checkpoints.

A file is written under a temporary name in the same folder and then renamed, so a killed process never leaves an
incomplete file under the final name. If the disk is full, writing a file raises OSError naming it.
Reading never runs code from a file: tensors are safetensors, and checkpoints are read with ``weights_only=True``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from exml_fast.ownership import claim, temporary_name
from exml_fast.reading import JSON_BYTES, opened, parse_json, read_limited, regular_file

__all__ = [
    "appending",
    "atomic_folder",
    "atomic_path",
    "load_checkpoint",
    "load_json",
    "load_tensors",
    "save_checkpoint",
    "save_json",
    "save_tensors",
    "sha256",
    "tensor_header",
]

PathLike = str | os.PathLike[str]

HEADER_BYTES = 8 * 2**20
"""Greatest size of the header of a safetensors file; one of 1,000 tensors has 0.1 MB."""


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffix); rename it to ``path`` if the block succeeds.

    Missing parent folders are created. If the block raises, the temporary file is removed and ``path`` is unchanged.

    Raises:
        FileExistsError: in an open run folder, for a file that the run did not write
            (:mod:`exml_fast.ownership`).
        OSError: if the disk is full, whatever error the library that was writing raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    claim(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        raise _full_disk(path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appending(path: PathLike) -> Iterator[BinaryIO]:
    """Open an existing file for appending. If the block raises, the file is truncated to its former size.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the disk is full.
    """
    size = os.path.getsize(path)
    try:
        with open(path, "ab") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        os.truncate(path, size)
        if not _disk_is_full(error):
            raise
        raise _full_disk(Path(path)) from error


@contextmanager
def atomic_folder(path: PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder with a hidden name beside ``path``; rename it to ``path`` if the block succeeds.

    If the block raises, the new folder is removed and ``path`` is unchanged.

    Args:
        path: of the folder.
        overwrite: replace an existing folder, once the new one is complete.

    Raises:
        FileExistsError: if ``path`` exists, unless ``overwrite`` is set.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (temporary_name(path) for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if overwrite and path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        if old.exists():
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON. ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_json(path: PathLike, *, limit: int = JSON_BYTES, within: PathLike | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        limit: greatest size in bytes.
        within: a folder that a link must not lead out of.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if it is too large, no regular file, or not valid JSON
            (:func:`exml_fast.reading.parse_json`).
    """
    content = read_limited(path, limit, within)
    try:
        return parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def save_tensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors, and optional metadata, as safetensors. Tensors that share memory become separate copies."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def load_tensors(
    path: PathLike, device: str | torch.device = "cpu", *, within: PathLike | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file onto ``device``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if it is damaged, no regular file, or a link out of the folder ``within``.
    """
    tensor_header(path, within=within)
    try:
        return load_file(regular_file(path, within), device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def tensor_header(path: PathLike, *, within: PathLike | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype (as safetensors names it: F32, BF16, I64) and shape of each tensor in a file, without reading the values.

    The tensors fill the file: dtypes and shapes give its size.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if it is damaged, no regular file, a link out of the folder ``within``, or has a
            header of more than 8 MiB or with a name twice.
    """
    with opened(path, within) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_BYTES:
            raise ValueError(
                f"{path} is not a valid safetensors file: its header must have at most {HEADER_BYTES:,} bytes, "
                f"got {size:,}"
            )
        header = file.read(size)
        if len(header) < max(size, 2):
            raise ValueError(f"{path} is not a valid safetensors file: its header is cut off")
    try:
        parse_json(header.decode("utf-8"))
        with safe_open(regular_file(path, within), "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def sha256(path: PathLike, *, within: PathLike | None = None) -> str:
    """Hexadecimal SHA-256 of the bytes of a regular file."""
    with opened(path, within) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(path: PathLike, value: Any) -> None:
    """Write nested dicts, lists, numbers, strings and tensors with ``torch.save``."""
    # Writing to a Python file keeps the errno of a full disk; torch's own file writer does not.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # What interrupts torch's writer, Ctrl-C or a full disk, is hidden by its complaint about a torn archive.
            if error.__context__ is None:
                raise
            raise error.__context__ from None


def load_checkpoint(path: PathLike, device: str | torch.device = "cpu") -> Any:
    """Read what :func:`save_checkpoint` wrote, with tensors on ``device``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file if it is damaged, or holds objects whose reading would run code.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged, or holds objects other than tensors and plain values") from error
    except (RuntimeError, EOFError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {type(error).__name__}: {error}") from error


def _disk_is_full(error: BaseException | None) -> bool:
    """True if the error, or one that caused it, has the errno of a full disk or, from safetensors, its text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        if isinstance(error, OSError) and error.errno in full:
            return True
        if any(f"(os error {code})" in str(error) for code in full):
            return True
        error = error.__cause__ or error.__context__
    return False


def _full_disk(path: Path) -> OSError:
    before = "its previous content is unchanged" if path.exists() else "nothing was written"
    return OSError(errno.ENOSPC, f"the disk is full: {path} could not be written, {before}; free some space and retry")
