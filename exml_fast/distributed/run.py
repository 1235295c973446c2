"""Runs a job: hands its missing shards to an executor and enters the finished ones into the manifest."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np

from exml_fast.continual import Expert
from exml_fast.data import Shards
from exml_fast.data.manifest import Entry, Manifest
from exml_fast.data.shards import MANIFEST_FILE, SHARDS_FOLDER, shard_entry
from exml_fast.distributed.executors import Executor, LocalExecutor, Lost
from exml_fast.distributed.job import TEACHER_FOLDER, load_job, prepare
from exml_fast.inversion import Recipe
from exml_fast.ownership import is_temporary
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.validation import Precision

__all__ = ["resume", "synthesize"]

LOCK_FILE = "lock"
STAGE = "synthesize"
# A living worker of another machine may be writing a younger temporary file.
LEFT_OVER_SECONDS = 600.0
WAIT_SECONDS = 0.5
# Lost workers of one shard after which it is given up: then the shard is what kills them.
LOSSES = 10
LOG = logging.getLogger(__name__)


@reports_progress
def synthesize(
    teacher: Expert,
    folder: PathLike,
    *,
    shards: int = 1,
    per_shard: int = 64,
    count: int | None = None,
    recipe: str | Recipe | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: Precision = "auto",
    threads: int = 1,
    executor: Executor | None = None,
    progress: ProgressOption = None,
    **overrides: Any,
) -> Shards:
    """Synthetic images of a teacher in shards on disk, made by any number of workers.

    The images depend on the arguments alone, and not on the executor, the number of workers or the order. A call that
    finds some shards in ``folder`` makes the missing ones.

    Args:
        teacher: an expert that can be saved.
        folder: of the job; all workers must see it under this path.
        shards, per_shard, count, recipe, classes, seed, device, precision, threads, overrides: of the job
            (:func:`exml_fast.distributed.prepare`).
        executor: where the shards are made; processes of this machine when None.
        progress: ``progress("synthesize", shards, total, terms)`` with the images, and the images a second.

    Raises:
        ValueError: naming the argument; for a folder with another job, or one that another process works on.
        RuntimeError: if a shard cannot be made.
        KeyboardInterrupt: after Ctrl-C, once all shards in flight are finished. A second Ctrl-C ends at once.
    """
    progress = callback_of(progress)
    prepare(
        folder, teacher, shards=shards, per_shard=per_shard, count=count, recipe=recipe, classes=classes, seed=seed,
        device=device, precision=precision, threads=threads, **overrides,
    )  # fmt: skip
    return resume(folder, executor=executor, progress=progress)


@reports_progress
def resume(folder: PathLike, *, executor: Executor | None = None, progress: ProgressOption = None) -> Shards:
    """Make the missing shards of the job in ``folder``; arguments and errors as :func:`synthesize`."""
    progress = callback_of(progress)
    where = Path(folder).resolve()
    job = load_job(where)
    executor = LocalExecutor() if executor is None else executor
    with _locked(where), executor:
        _sweep(where, LEFT_OVER_SECONDS)
        with Manifest(where / MANIFEST_FILE, job.digest, job.shards) as manifest:
            missing = _missing(where, manifest)
            if missing:
                executor.open(str(where), job)
                _run(missing, manifest, executor, progress)
        _sweep(where)
    return Shards(where)


def _run(missing: list[int], manifest: Manifest, executor: Executor, progress: Progress | None) -> None:
    """Make all ``missing`` shards."""
    total, done = len(manifest.images), len(manifest)
    begun, made = time.monotonic(), 0
    todo = iter(missing)
    again: list[int] = []
    losses: Counter[int] = Counter()
    flying, failure = 0, None
    with _draining() as asked:
        while True:
            while failure is None and not asked.is_set() and flying < executor.slots:
                index = again.pop() if again else next(todo, None)
                if index is None:
                    break
                executor.submit(index)
                flying += 1
            if flying == 0:
                break
            for index, outcome in executor.finished(WAIT_SECONDS):
                flying -= 1
                if isinstance(outcome, Entry):
                    manifest.add(outcome)
                    done, made = done + 1, made + outcome.images
                elif isinstance(outcome, Lost) and losses[index] < LOSSES:
                    losses[index] += 1
                    again.append(index)
                    LOG.info("shard %d is made again: %s", index, outcome)
                else:
                    failure = failure or RuntimeError(f"shard {index} cannot be made: {outcome}")
                if progress is not None and isinstance(outcome, Entry):
                    rate = made / max(time.monotonic() - begun, 1e-9)
                    progress(STAGE, done, total, {"images": float(made), "images_per_second": rate})
    if failure is not None:
        raise failure
    if asked.is_set():
        raise KeyboardInterrupt


def _missing(folder: Path, manifest: Manifest) -> list[int]:
    """Indices of the shards to make; those on disk that the manifest lacks are entered into it."""
    there = np.zeros(len(manifest.images), dtype=bool)
    there[_files(folder, len(there))] = True
    manifest.images[~there] = 0  # entered, but the file is gone
    for index in np.flatnonzero(there & (manifest.images == 0)).tolist():
        if (entry := shard_entry(folder, manifest.digest, index)) is not None:
            manifest.add(entry)
    missing: list[int] = np.flatnonzero(manifest.images == 0).tolist()
    return missing


def _files(folder: Path, below: int) -> list[int]:
    """Indices of the shards' files, by their names, without opening them."""
    found: list[int] = []
    if (folder / SHARDS_FOLDER).is_dir():
        for part in os.scandir(folder / SHARDS_FOLDER):
            if part.is_dir():
                names = (entry.name.partition(".") for entry in os.scandir(part.path))
                found += [int(stem) for stem, _, suffix in names if suffix == "safetensors" and stem.isdecimal()]
    return [index for index in found if index < below]


def _sweep(folder: Path, seconds: float = 0.0) -> None:
    """Remove temporary files that killed processes left, if they are so old. No worker writes into a finished job."""
    before = time.time() - seconds
    for file in (*folder.glob(".*"), *(folder / TEACHER_FOLDER).glob(".*"), *(folder / SHARDS_FOLDER).glob("*/.*")):
        # A worker may have renamed it meanwhile.
        with suppress(FileNotFoundError):
            if is_temporary(file) and file.stat().st_mtime <= before:
                file.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One driver a job. The lock ends with the process, however the process ends."""
    with open(folder / LOCK_FILE, "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is making the shards in {folder}") from None
        except ImportError:  # no such locks on Windows
            pass
        yield


@contextmanager
def _draining() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event; the second raises KeyboardInterrupt at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        LOG.info("Ctrl-C: shards in flight are finished first; Ctrl-C again ends at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
