"""Makes one shard: a pure function of the job's digest and the shard's index."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from exml_fast.continual import Expert
from exml_fast.data.manifest import Entry
from exml_fast.data.shards import JOB_FILE, Shard, shard_entry, write_shard
from exml_fast.distributed.job import TEACHER_FOLDER, Job, limited, load_job, synthesizer_of
from exml_fast.inversion import Synthesizer

__all__ = ["make_shard"]


def make_shard(folder: str, index: int, device: str | None = None) -> Entry:
    """Make shard ``index`` of the job in ``folder`` and write it; the entry for the manifest.

    A shard that is on disk already is hashed and not made again. The process keeps the teacher for its next shard.

    Args:
        folder: of the job; the only thing that a worker on another machine needs.
        index: of the shard.
        device: where to run; the job's kind of device when None.

    Raises:
        ValueError, FileNotFoundError: for a folder without a job, or a damaged one.
        RuntimeError: if a term of the loss is not finite.
    """
    file = Path(folder).resolve() / JOB_FILE
    job, synthesizer = _opened(str(file.parent), device, os.stat(file).st_mtime_ns)
    if (entry := shard_entry(folder, job.digest, index)) is not None:
        return entry
    with limited(job.threads):
        shard = _made(job, synthesizer, index)
    return write_shard(folder, shard)


@functools.lru_cache(1)
def _opened(folder: str, device: str | None, changed: int) -> tuple[Job, Synthesizer]:
    """The job and its synthesizer; ``changed`` is the time at which the job's file was written."""
    job = load_job(folder)
    with limited(job.threads):
        return job, synthesizer_of(job, Expert.load(Path(folder) / TEACHER_FOLDER), device)


def _made(job: Job, synthesizer: Synthesizer, index: int) -> Shard:
    labels, seed = job.labels(index), job.shard_seed(index)
    result = synthesizer.run(labels, seed=seed, classes=job.classes, progress=False)
    images = (result.pixels() * 255).round().to(torch.uint8)
    logits = synthesizer.networks.judge(job.spec.normalize(images))
    terms = torch.stack([values[-1] for values in result.history.values()]).double()
    return Shard(images, result.labels, logits, terms, list(result.history), job.digest, index)
