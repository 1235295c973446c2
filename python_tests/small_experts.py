"""A small data set, experts trained on it, and a strategy without inversion, for tests of continual learning."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from exml_fast.continual import DistillationConfig, ExpertStream
from exml_fast.continual.ex_model.strategies import Replay
from exml_fast.continual.expert import Expert
from exml_fast.continual.scenarios import new_classes
from exml_fast.continual.train import train_stream
from exml_fast.data import ImageData, InputSpec, Split

QUICK = DistillationConfig.from_dict(
    {"steps": 150, "batch_size": 16, "lr": 0.05, "buffer_size": 60, "augmentation": {"shift": 2}}
)


def make_split(per_class: int, seed: int) -> Split:
    """Images of noise with one bright quadrant: quadrant c in images of class c."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(per_class)
    images = torch.randint(0, 60, (len(labels), 1, 32, 32), generator=generator, dtype=torch.uint8)
    for c in range(4):
        top, left = 16 * (c // 2), 16 * (c % 2)
        images[labels == c, :, top : top + 16, left : left + 16] += 150
    return Split(images, labels)


@cache
def quadrants() -> ImageData:
    """Four classes of 40 training and 10 test images, 1×32×32."""
    names = ["north-west", "north-east", "south-west", "south-east"]
    return ImageData("quadrants", make_split(40, 0), make_split(10, 1), names, InputSpec(1, (32, 32), (0.3,), (0.3,)))


def save_npz(path: Path) -> Path:
    """:func:`quadrants` as a file that `exml-fast --data` reads."""
    data = quadrants()
    arrays = {
        f"{letter}_{part}": tensor.numpy()
        for part, split in (("train", data.train), ("test", data.test))
        for letter, tensor in (("x", split.images[:, 0]), ("y", split.labels))
    }
    np.savez(path, **arrays)
    return path


@cache
def trained() -> tuple[Expert, Expert]:
    """Two experts of two classes each, with four logits and a common initialisation. Tests must not change them."""
    first, second = train_stream(quadrants(), new_classes(quadrants(), 2), epochs=4, lr=0.02)
    return first, second


def stream() -> ExpertStream:
    """The stream of both experts."""
    return ExpertStream(trained())


def real_images() -> Replay:
    """A fast strategy, whose accuracy is an upper bound for the others."""
    return Replay(quadrants())
