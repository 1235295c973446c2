"""A synthesis job: recipe × teacher × classes × seed × count, in a folder that is all a worker needs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from exml_fast.continual import Expert
from exml_fast.data import InputSpec
from exml_fast.data.shards import JOB_FILE
from exml_fast.engine.statistics import bn_layers
from exml_fast.inversion import Recipe, Synthesizer, recipes
from exml_fast.inversion.invert import class_ids
from exml_fast.storage import PathLike, load_json, save_json
from exml_fast.validation import Count, Natural, Precision, from_mapping, require, require_count, settings, to_dict

__all__ = ["TEACHER_FOLDER", "Job", "limited", "load_job", "prepare", "synthesizer_of"]

TEACHER_FOLDER = "teacher"
ClassIds = Annotated[tuple[Natural, ...], Field(min_length=1)]


@settings
class Job:
    """Everything that decides the images of a job. Its digest covers all fields.

    Attributes:
        teacher: architecture, arguments and sha256 of the weights.
        spec: input of the teacher.
        units, class_names: class id and name of each logit.
        classes: class ids of the images; image n is of class ``classes[n % len(classes)]``.
        recipe: all fields of the recipe.
        seed: of the job. The seed of a shard comes from the digest and the shard's index.
        count: number of images.
        per_shard: images of a shard; the last shard may have fewer.
        device: kind of device on which the shards are made.
        precision: of the network (:class:`exml_fast.FrozenTeacher`).
        threads: CPU threads of a worker.
        plans: how the convolutions compute (:meth:`exml_fast.Synthesizer.plans`). A worker that measured them anew
            might round differently.
        version: of this format.
    """

    teacher: dict[str, Any]
    spec: InputSpec
    units: ClassIds
    class_names: tuple[str, ...]
    classes: ClassIds
    recipe: dict[str, Any]
    seed: int
    count: Count
    per_shard: Count
    device: Literal["cpu", "cuda"]
    precision: Precision
    threads: Count
    plans: tuple[Any, ...] = ()
    version: Literal[1] = 1

    def check(self) -> None:
        """Rules between the fields; ValueError."""
        if missing := sorted(set(self.classes) - set(self.units)):
            raise ValueError(f"classes {missing[:8]} are not among the teacher's units")
        compete = recipes.new(**self.recipe).competition.compete
        require(compete == 0, "recipe", "one without a student (compete=0): shards have none", self.recipe["name"])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all fields, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(to_dict(self), sort_keys=True).encode()).hexdigest()

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.per_shard)

    def labels(self, index: int) -> Tensor:
        """Class ids (N,) int64 of the images of shard ``index``. ValueError for an index out of range."""
        require_count("index", index, 0)
        require(index < self.shards, "index", f"below {self.shards}", index)
        first = index * self.per_shard
        places = torch.arange(first, min(first + self.per_shard, self.count)) % len(self.classes)
        return torch.tensor(self.classes)[places]

    def shard_seed(self, index: int) -> int:
        """The seed of a shard: a function of the digest and the index alone."""
        return int.from_bytes(hashlib.sha256(f"{self.digest}/{index}".encode()).digest()[:7], "big")


def prepare(
    folder: PathLike,
    teacher: Expert,
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
    **overrides: Any,
) -> Job:
    """Write the folder of a job: ``job.json``, and the teacher as an expert.

    Args:
        folder: of the job; an existing one must hold the same job.
        teacher: an expert that can be saved, so that a worker elsewhere can rebuild it.
        shards, per_shard: number of shards, and images of each.
        count: number of images, where the last shard shall have fewer than ``per_shard``; decides ``shards``.
        recipe: name or Recipe; suited to the teacher when None. ``overrides`` are fields of it.
        classes: class ids; those of the teacher's training when None.
        seed: of the job.
        device: "cpu" or "cuda", on which the workers make the shards.
        precision, threads: of a worker.

    Raises:
        ValueError: naming the argument; for a recipe that competes with a student; for a folder with another job.
    """
    require_count("shards", shards)
    require_count("per_shard", per_shard)
    if recipe is None:
        statistics = bool(bn_layers(teacher.model))
        recipe = recipes.suited_to(teacher.model, teacher.input_spec, statistics=statistics)
    chosen = recipes.get(recipe).overridden(**overrides)
    folder = Path(folder)
    stored = load_job(folder) if (folder / JOB_FILE).is_file() else None
    if stored is None:
        card = teacher.save(folder / TEACHER_FOLDER)
    else:
        before = Expert.load(folder / TEACHER_FOLDER)
        card = before.card
        now = teacher.model.state_dict()
        same = [torch.equal(now[name].cpu(), value) for name, value in before.model.state_dict().items() if name in now]
        if not all(same) or len(same) != len(now):
            raise ValueError(f"{folder} holds a job of another teacher; give another folder")
    about = {"architecture": card.architecture, "arguments": card.arguments, "sha256": card.sha256}
    job = Job(
        teacher=about, spec=card.input_spec, units=card.units, class_names=card.class_names,
        classes=tuple(class_ids(teacher.classes if classes is None else classes)),
        recipe=json.loads(json.dumps(chosen.to_dict())), seed=seed,
        count=shards * per_shard if count is None else count, per_shard=per_shard,
        device=device, precision=precision, threads=threads,
    )  # fmt: skip
    if stored is not None:
        if difference := _difference(stored, job):
            raise ValueError(f"{folder} holds another job, with {difference}; give another folder")
        return stored
    with limited(threads):
        plans = synthesizer_of(job, teacher).plans()
    job = replace(job, plans=tuple(json.loads(json.dumps(plans))))
    save_json(folder / JOB_FILE, {"digest": job.digest, "job": to_dict(job)})
    return job


def load_job(folder: PathLike) -> Job:
    """The job in ``folder``; FileNotFoundError, or ValueError naming the file for a damaged one."""
    file = Path(folder) / JOB_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no synthesis job in {folder}: {JOB_FILE} is missing")
    about = load_json(file)
    if not isinstance(about, dict) or set(about) != {"digest", "job"}:
        raise ValueError(f"{file} is not the file of a synthesis job: it must hold 'digest' and 'job'")
    job = from_mapping(Job, about["job"], str(file))
    if job.digest != about["digest"]:
        raise ValueError(f"{file} was changed: its digest is {job.digest}, the file says {about['digest']!r}")
    return job


def synthesizer_of(job: Job, teacher: Expert, device: str | None = None) -> Synthesizer:
    """The synthesizer of a job's shards, on ``device``; ``job.device`` when None."""
    made = Synthesizer(
        teacher.model, job.spec, recipes.new(**job.recipe), units=job.units, device=device or job.device,
        precision=job.precision,
    )  # fmt: skip
    if job.plans:
        made.use_plans(job.plans)
    return made


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """torch uses ``threads`` CPU threads in the block: sums over several threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _difference(stored: Job, asked: Job) -> str:
    """The first field in which two jobs differ, without the plans; "" if they are the same."""
    one, other = (json.loads(json.dumps(to_dict(job) | {"plans": []})) for job in (stored, asked))
    for name, value in one.items():
        if value == other[name]:
            continue
        if isinstance(value, dict):
            inner = next(key for key in value | other[name] if value.get(key) != other[name].get(key))
            return f"{name}.{inner} = {value.get(inner)!r} instead of {other[name].get(inner)!r}"
        return f"{name} = {value!r} instead of {other[name]!r}"
    return ""
