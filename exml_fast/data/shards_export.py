"""Shards in formats of other tools: tar files of WebDataset, and a folder of images by class."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from exml_fast.data.shards import Shard, Shards
from exml_fast.storage import PathLike, atomic_path, save_json
from exml_fast.validation import require_count

__all__ = ["export_folder", "export_webdataset"]


def export_webdataset(shards: Shards, folder: PathLike, *, per_tar: int = 16) -> list[Path]:
    """Write tar files that the package webdataset reads: ``<image>.png``, ``.cls`` (class id), ``.json`` (logits).

    The same shards give the same bytes. A file that exists is replaced.

    Args:
        shards: of one job.
        folder: of the files, ``synthetic-000000.tar`` and so on.
        per_tar: shards in a file.

    Returns:
        The files.
    """
    require_count("per_tar", per_tar)
    paths = []
    for number, first in enumerate(range(0, len(shards.indices), per_tar)):
        path = Path(folder) / f"synthetic-{number:06d}.tar"
        with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
            for which in range(first, min(first + per_tar, len(shards.indices))):
                _add(tar, shards.shard(which))
        paths.append(path)
    return paths


def export_folder(shards: Shards, folder: PathLike) -> Path:
    """Write PNG files ``<class id>/<image>.png``, as torchvision's ImageFolder reads, and ``classes.json`` with names.

    The names of the class folders have leading zeros, so that their order is that of the class ids. The folder appears
    once it is complete.

    Raises:
        FileExistsError: if there is something at ``folder``.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already")
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was interrupted
    digits = len(str(max(shards.classes)))
    for c in shards.classes:
        (temporary / f"{c:0{digits}d}").mkdir(parents=True)
    for which in range(len(shards.indices)):
        for name, image, label, _ in _images(shards.shard(which)):
            (temporary / f"{label:0{digits}d}" / f"{name}.png").write_bytes(image)
    save_json(temporary / "classes.json", {f"{c:0{digits}d}": shards.class_names[c] for c in shards.classes})
    os.rename(temporary, folder)
    return folder


def _images(shard: Shard) -> Iterator[tuple[str, bytes, int, Tensor]]:
    """Name, PNG, class id and logits (K,) of each image."""
    for row, (pixels, label, logits) in enumerate(zip(shard.images, shard.labels.tolist(), shard.logits, strict=True)):
        yield f"{shard.index:07d}-{row:05d}", _png(pixels), label, logits


def _png(pixels: Tensor) -> bytes:
    """uint8 (1 or 3, H, W); ValueError for another number of channels."""
    if pixels.shape[0] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels to be written as PNG, got {pixels.shape[0]}")
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, shard: Shard) -> None:
    for name, image, label, logits in _images(shard):
        about = json.dumps({"logits": logits.tolist(), "shard": shard.index, "job": shard.job})
        for suffix, content in (("cls", str(label).encode()), ("json", about.encode()), ("png", image)):
            header = tarfile.TarInfo(f"{name}.{suffix}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
