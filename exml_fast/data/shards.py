"""Synthetic images in shards on disk: one map-style or streamed data set of all files of a synthesis job.

A job's folder (:mod:`exml_fast.distributed` writes it) holds ``job.json``, ``manifest.txt``, the teacher, and
``shards/0000/0000000.safetensors`` and so on, with uint8 images.
"""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from exml_fast.data.manifest import Entry, Manifest
from exml_fast.data.spec import InputSpec
from exml_fast.storage import PathLike, load_json, load_tensors, save_tensors, sha256
from exml_fast.validation import require_count

__all__ = ["Shard", "ShardStream", "Shards", "read_shard", "shard_path", "write_shard"]

JOB_FILE, MANIFEST_FILE, SHARDS_FOLDER = "job.json", "manifest.txt", "shards"
FILES_A_FOLDER = 1000
# Images that a stream converts at once.
READ_IMAGES = 64


@dataclass
class Shard:
    """The content of one file."""

    images: Tensor
    """(N, C, H, W) uint8 pixels."""
    labels: Tensor
    """(N,) int64 class ids."""
    logits: Tensor
    """(N, K) float32: the teacher's logits of these images, after rounding to uint8."""
    terms: Tensor
    """(T,) float64: the last value of each term of the loss, means over the images."""
    names: list[str]
    """Names of the T terms; the last is "loss", the weighted sum."""
    job: str
    """Digest of the job."""
    index: int


def shard_path(folder: PathLike, index: int) -> Path:
    """The file of shard ``index`` of the job in ``folder``; at most 1,000 files are in a folder."""
    return Path(folder) / SHARDS_FOLDER / f"{index // FILES_A_FOLDER:04d}" / f"{index:07d}.safetensors"


def write_shard(folder: PathLike, shard: Shard) -> Entry:
    """Write a shard under a temporary name, rename it, and return its entry for the manifest."""
    path = shard_path(folder, shard.index)
    # One key alone: safetensors writes several in no fixed order.
    about = json.dumps({"index": shard.index, "job": shard.job, "terms": shard.names}, sort_keys=True)
    tensors = {name: getattr(shard, name) for name in ("images", "labels", "logits", "terms")}
    save_tensors(path, tensors, {"shard": about})
    return Entry(shard.index, len(shard.images), path.stat().st_size, sha256(path))


def shard_entry(folder: PathLike, job: str, index: int) -> Entry | None:
    """The entry of a shard that is on disk already; None if there is no file, or a damaged one, or of another job."""
    path = shard_path(folder, index)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["shard"])
            images = file.get_slice("labels").get_shape()[0]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if about.get("job") != job or about.get("index") != index:
        return None
    return Entry(index, images, path.stat().st_size, sha256(path))


def read_shard(folder: PathLike, index: int) -> Shard:
    """Read a shard. FileNotFoundError, or ValueError naming the file for a damaged one."""
    path = shard_path(folder, index)
    tensors = load_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["shard"])
        images, labels, logits, terms = (tensors[name] for name in ("images", "labels", "logits", "terms"))
        return Shard(images, labels, logits, terms, about["terms"], about["job"], about["index"])
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a shard: {error}") from error


class Shards(Dataset[tuple[Tensor, Tensor]]):
    """The finished shards of a job as a map-style data set of network input and class id.

    ``shards[n]`` is image n in the order of the shards. Random access to a large job reads a file for almost every
    image: :meth:`stream` reads each file once.

    Args:
        folder: of the job.
        keep: shards that stay in memory between two accesses.

    Attributes:
        spec: input specification of the teacher.
        units: class id of each logit.
        classes: class ids of the images.
        class_names: name of each class id.
        digest: of the job.

    Raises:
        FileNotFoundError: if ``folder`` holds no job.
        ValueError: for a damaged job file, another job's manifest, or a job without a finished shard.
    """

    def __init__(self, folder: PathLike, *, keep: int = 4) -> None:
        require_count("keep", keep)
        self.folder, self.keep = Path(folder), keep
        if not (self.folder / JOB_FILE).is_file():
            raise FileNotFoundError(f"no synthesis job in {self.folder}: {JOB_FILE} is missing")
        about = load_json(self.folder / JOB_FILE)
        try:
            job, self.digest = about["job"], str(about["digest"])
            self.spec = InputSpec.from_dict(job["spec"])
            self.units = tuple(int(unit) for unit in job["units"])
            self.classes = tuple(int(c) for c in job["classes"])
            self.class_names = dict(zip(self.units, map(str, job["class_names"]), strict=True))
            self.job: dict[str, Any] = dict(job)
            total = -(-int(job["count"]) // int(job["per_shard"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / JOB_FILE} is not the file of a synthesis job: {error}") from error
        self.manifest = Manifest(self.folder / MANIFEST_FILE, self.digest, total)
        self.indices = self.manifest.finished
        if len(self.indices) == 0:
            raise ValueError(f"{self.folder} has no finished shard")
        self._ends = np.cumsum(self.manifest.images[self.indices].astype(np.int64))
        self._recent: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        """Number of images."""
        return int(self._ends[-1])

    @property
    def complete(self) -> bool:
        """Whether all shards of the job are finished."""
        return len(self.indices) == len(self.manifest.images)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Network input (C, H, W) float32 and class id () int64 of an image."""
        images, labels = self.rows(torch.tensor([position]))
        return images[0], labels[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several images at once, for a DataLoader."""
        return list(zip(*self.rows(torch.tensor(list(positions))), strict=True))

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Network input (N, C, H, W) float32 and class ids (N,) int64 of images; IndexError for one out of range."""
        wanted = positions.to(torch.int64).numpy()
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"positions must be below {len(self)}, got {positions.tolist()[:8]}")
        which = np.searchsorted(self._ends, wanted, side="right")
        images = torch.empty(len(wanted), *self.spec.shape)
        labels = torch.empty(len(wanted), dtype=torch.int64)
        for number in np.unique(which):
            chosen = np.flatnonzero(which == number)
            shard = self.shard(int(number))
            inside = wanted[chosen] - (self._ends[number] - len(shard.labels))
            images[chosen], labels[chosen] = self.spec.normalize(shard.images[inside]), shard.labels[inside]
        return images, labels

    def positions(self, number: int) -> Tensor:
        """Positions of the images of the ``number``-th finished shard, int64 (N,)."""
        end = int(self._ends[number])
        return torch.arange(end - int(self.manifest.images[self.indices[number]]), end)

    def shard(self, number: int) -> Shard:
        """The content of the ``number``-th finished shard; ValueError naming a file that does not fit the job."""
        index = int(self.indices[number])
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        shard = read_shard(self.folder, index)
        entry = self.manifest[index]
        if shard.job != self.digest or shard.index != index or len(shard.images) != entry.images:
            raise ValueError(f"{shard_path(self.folder, index)} is not shard {index} of this job")
        if shard.images.dtype != torch.uint8 or tuple(shard.images.shape[1:]) != self.spec.shape:
            expected = ", ".join(map(str, self.spec.shape))
            raise ValueError(
                f"{shard_path(self.folder, index)}: images must be uint8 (N, {expected}), got {shard.images.dtype} "
                f"{tuple(shard.images.shape)}"
            )
        self._recent[number] = shard
        while len(self._recent) > self.keep:
            self._recent.popitem(last=False)
        return shard

    def stream(
        self, *, shuffle: bool = True, block: int = 8, seed: int = 0, rank: int | None = None, ranks: int | None = None
    ) -> ShardStream:
        """An iterable data set that reads each file once an epoch; see :class:`ShardStream`."""
        return ShardStream(self, shuffle=shuffle, block=block, seed=seed, rank=rank, ranks=ranks)

    def verify(self) -> dict[int, str]:
        """Read every file; returns what is wrong with each missing or damaged shard, by index."""
        problems = {}
        for index in self.indices.tolist():
            path = shard_path(self.folder, index)
            if not path.is_file():
                problems[index] = f"{path} is missing"
            elif (found := sha256(path)) != self.manifest[index].sha256:
                problems[index] = f"{path}: sha256 is {found}, the manifest says {self.manifest[index].sha256}"
        return problems

    def __getstate__(self) -> dict[str, Any]:
        """Workers of a DataLoader start without the shards that are in memory here."""
        return self.__dict__ | {"_recent": OrderedDict()}


class ShardStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Every image once an epoch, each in one process: for several DataLoader workers and several ranks.

    The order of the shards is drawn for each epoch, and dealt to all workers of all ranks in turn. A worker reads
    ``block`` of its shards at a time and mixes their images. Without ``shuffle`` the shards come in order.

    Args:
        shards: the data set.
        shuffle: mix shards and images; else the order of the job.
        block: shards that are mixed with one another, and are in memory together.
        seed: decides the order, with the epoch.
        rank, ranks: of this process; those of torch.distributed when None, or one rank.

    With fewer shards than workers some workers give no image. Ranks may differ by the images of one shard.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        shuffle: bool = True,
        block: int = 8,
        seed: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        require_count("block", block)
        if (rank is None) != (ranks is None):
            raise ValueError(f"rank and ranks must be given together, got {rank!r} and {ranks!r}")
        if rank is None or ranks is None:
            there = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be from 0 to ranks - 1 = {ranks - 1}, got {rank}")
        self.shards, self.shuffle, self.block, self.seed = shards, shuffle, block, seed
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws the order of."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Network input (C, H, W) float32 and class id () int64."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        consumer, consumers = self.rank * workers + number, self.ranks * workers
        self.shards.keep = max(self.shards.keep, self.block)
        for part in self.order(consumer, consumers).split(READ_IMAGES):
            yield from zip(*self.shards.rows(part), strict=True)

    def _shards(self) -> list[int]:
        """Numbers of the finished shards, in the epoch's order."""
        order = list(range(len(self.shards.indices)))
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order

    def images_of(self, consumers: int) -> list[int]:
        """The number of images of each consumer in this epoch."""
        sizes = self.shards.manifest.images[self.shards.indices[self._shards()]]
        return [int(sizes[consumer::consumers].sum()) for consumer in range(consumers)]

    def order(self, consumer: int = 0, consumers: int = 1) -> Tensor:
        """Positions in :class:`Shards` of the images of one of several consumers, int64 (N,), in the epoch's order."""
        own = self._shards()[consumer::consumers]
        mixing = torch.Generator().manual_seed(random.Random(f"{self.seed}/{self.epoch}/{consumer}").getrandbits(62))
        parts = [torch.empty(0, dtype=torch.int64)]
        for first in range(0, len(own), self.block):
            part = torch.cat([self.shards.positions(number) for number in own[first : first + self.block]])
            parts.append(part[torch.randperm(len(part), generator=mixing)] if self.shuffle else part)
        return torch.cat(parts)
