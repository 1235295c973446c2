"""Small runs of every command that trains, to be killed, interrupted, or left without a disk."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forks import command, run

COMMANDS: dict[str, list[str]] = {
    "train-experts": ["train-experts", "--data", "{data}", "--epochs", "12", "--threads", "1"],
    "learn": [
        "learn",
        "--data",
        "{data}",
        "--experts",
        "{experts}",
        "--buffer",
        "40",
        "--inversion-steps",
        "8",
        "--steps",
        "60",
        "--epochs",
        "1",
        "--threads",
        "1",
    ],
    "invert": ["invert", "{experts}/expert_01", "--per-class", "2", "--steps", "60", "--threads", "1"],
    "distill": [
        "distill",
        "{experts}/expert_01",
        "--recipe",
        "model_inversion",
        "--set",
        "steps=10",
        "--steps",
        "60",
        "--threads",
        "1",
    ],
    "incremental": [
        "incremental",
        "--data",
        "{data}",
        "--method",
        "fine-tuning",
        "--method",
        "lwf",
        "--protocol",
        "b2-2",
        "--epochs",
        "3",
        "--threads",
        "1",
    ],
    "synthesize": [
        "synthesize",
        "{experts}/expert_01",
        "--shards",
        "12",
        "--per-shard",
        "4",
        "--recipe",
        "model_inversion",
        "--steps",
        "10",
        "--workers",
        "0",
        "--threads",
        "1",
    ],
    "reproduce": [
        "reproduce",
        "digits/zskd",
        "--seeds",
        "1",
        "--threads",
        "1",
        "--set",
        "data={data}",
        "--set",
        "teacher.steps=40",
        "--set",
        "teacher.batch_size=32",
        "--set",
        "distillation.batch_size=8",
        "--set",
        "impressions.count=16",
        "--set",
        "impressions.steps=10",
        "--set",
        "distillation.steps=40",
    ],
}
RESUME_TOO = {"synthesize": ["--workers", "0"]}
"""Options that a command takes beside --resume."""


def prepare(folder: Path) -> dict[str, str]:
    """Write the data and the experts that the commands name; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, experts = folder / "data.npz", folder / "experts"
    if not data.exists():
        chance = np.random.default_rng(0)
        x = {part: chance.random((count, 32, 32), dtype=np.float32) for part, count in (("train", 80), ("test", 40))}
        y = {part: np.arange(len(images)) % 4 for part, images in x.items()}
        for part, images in x.items():  # a bright quadrant says the class
            for image, label in zip(images, y[part], strict=True):
                image[16 * (label // 2) :][:16, 16 * (label % 2) :][:, :16] += 1
            x[part] = images / 2
        np.savez(data, x_train=x["train"], y_train=y["train"], x_test=x["test"], y_test=y["test"])
    if not (experts / "expert_02" / "card.json").exists():
        found = run(command([*filled("train-experts", {"data": str(data)}), "--out", str(experts), "--overwrite"]))
        assert found.code == 0, found.output
    return {"data": str(data), "experts": str(experts)}


def filled(name: str, paths: dict[str, str]) -> list[str]:
    """The arguments of a command, without --out."""
    return [part.format(**{"experts": "", **paths}) for part in COMMANDS[name]]


def again(name: str, out: Path, paths: dict[str, str]) -> list[str]:
    """The arguments that continue the run in ``out``, or begin it if it has not begun."""
    begun = any((out / file).exists() for file in ("run.json", "job.json"))
    if begun:
        return [COMMANDS[name][0], *RESUME_TOO.get(name, []), "--out", str(out), "--resume"]
    return [*filled(name, paths), "--out", str(out)]


def digest(out: Path) -> str:
    """SHA-256 over all weights and images of a finished run."""
    found = hashlib.sha256()
    for file in sorted(out.rglob("*.safetensors")):
        found.update(str(file.relative_to(out)).encode() + file.read_bytes())
    return found.hexdigest()


def checkpoint_often() -> None:
    """Write checkpoints every fiftieth of a second instead of every minute, and use one thread."""
    from exml_fast.checkpoint import Checkpoint

    Checkpoint.__init__.__defaults__ = (0.02,)
    torch.set_num_threads(1)


def full_disk(after: int) -> Any:
    """The disk has no room for the file number ``after`` and all later ones."""
    return _failing("fsync", after, OSError(errno.ENOSPC, "No space left on device"))


def no_permission(after: int) -> Any:
    """File number ``after`` and all later ones may not be put into place."""
    return _failing("replace", after, PermissionError(errno.EACCES, "Permission denied"))


def _failing(name: str, after: int, error: OSError) -> Any:
    def before() -> None:
        checkpoint_often()
        real, calls = getattr(os, name), [0]

        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise error
            return real(*arguments, **options)

        setattr(os, name, call)

    return before
