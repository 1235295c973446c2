"""Files that are either whole or absent: JSON, tensors and checkpoints.

Everything is written under a temporary name in the same folder and then renamed, so that a killed process never
leaves half a file under the final name. Nothing here runs code from a file: tensors are safetensors, checkpoints
are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = [
    "atomic_path",
    "load_checkpoint",
    "load_json",
    "load_tensors",
    "save_checkpoint",
    "save_json",
    "save_tensors",
    "sha256",
]

PathLike = str | os.PathLike[str]


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffix); rename it to ``path`` if the block succeeds.

    Missing parent folders are made. If the block raises, the temporary file goes and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity, which are not JSON, raise ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_json(path: PathLike) -> Any:
    """Read a JSON file; ValueError naming the file if it is not valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def save_tensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors. Tensors that share memory are written as separate copies."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def load_tensors(path: PathLike, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file; ValueError naming the file if it is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error


def sha256(path: PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(path: PathLike, value: Any) -> None:
    """Write a nest of dicts, lists, numbers, strings and tensors with ``torch.save``."""
    with atomic_path(path) as temporary:
        torch.save(value, temporary)


def load_checkpoint(path: PathLike, device: str | torch.device = "cpu") -> Any:
    """Read what :func:`save_checkpoint` wrote; objects that would run code are refused (``weights_only=True``)."""
    return torch.load(path, map_location=device, weights_only=True)
