"""A small teacher and a short synthesis job for the tests of shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from exml_fast.continual import Expert
from exml_fast.data import InputSpec
from exml_fast.models import create

SPEC = InputSpec(1, (32, 32), (0.5,), (0.25,))
JOB: dict[str, Any] = {"shards": 5, "per_shard": 4, "recipe": "model_inversion/mnist", "steps": 4}


def small_teacher(seed: int = 0) -> Expert:
    """A LeNet-5 of four classes with random weights, which differ from one seed to another."""
    torch.manual_seed(seed)
    return Expert.wrap(create("lenet5", num_classes=4), SPEC, [3, 5, 7, 9], architecture="lenet5")


def digests(folder: Path | str) -> dict[str, str]:
    """SHA-256 of each shard's file, by name."""
    files = sorted(Path(folder).glob("shards/*/*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
