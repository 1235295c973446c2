"""Reads CORe50: 50 objects filmed in 11 sessions, as files ``s1/o1/C_01_01_000.png`` to ``s11/o50/…``."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from exml_fast.data.image_files import read_image
from exml_fast.data.split import Split

__all__ = ["is_core50", "read_core50"]

TEST_SESSIONS = (3, 7, 10)
OBJECTS_A_CATEGORY = 5
CATEGORIES = (
    "plug adapter", "mobile phone", "scissors", "light bulb", "can", "glasses", "ball", "marker", "cup",
    "remote control",
)  # fmt: skip
CLASS_NAMES = [f"{category} {i + 1}" for category in CATEGORIES for i in range(OBJECTS_A_CATEGORY)]
# The films have 20 frames a second. Every 20th gives one image a second, as in the reduced protocol of CORe50.
EVERY = 20


def is_core50(path: Path) -> bool:
    """True if ``path`` has the folders of CORe50."""
    return (path / "s1" / "o1").is_dir()


def read_core50(path: Path, size: int | None = None, every: int = EVERY) -> tuple[Split, Split]:
    """Read the training and the test images; sessions 3, 7 and 10 are the test set.

    Args:
        path: folder of the extracted ``core50_128x128``.
        size: height and width to which images are resized; None keeps them as they are (128).
        every: read every n-th frame of each film; 1 reads all 165,000 (8 GB).

    Returns:
        Two splits of images uint8 (N, 3, size, size). Labels are the objects, 0 to 49; groups are the sessions.

    Raises:
        ValueError: if ``every`` is below 1, a folder is missing or a file has an unexpected name.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    train: list[tuple[Path, int, int]] = []
    test: list[tuple[Path, int, int]] = []
    for session in range(1, 12):
        for number in range(1, len(CLASS_NAMES) + 1):
            folder = path / f"s{session}" / f"o{number}"
            if not folder.is_dir():
                name = folder.relative_to(path)
                raise ValueError(f"{path}: {name} is missing; expected the folders s1 to s11, each with o1 to o50")
            frames = sorted(folder.glob("*.png"))[::every]
            if not frames:
                raise ValueError(f"{folder}: expected frames C_<session>_<object>_<number>.png, found none")
            for frame in frames:
                found = re.fullmatch(r"C_(\d+)_(\d+)_\d+", frame.stem)
                if found is None or (int(found[1]), int(found[2])) != (session, number):
                    raise ValueError(f"{frame}: expected a frame C_{session:02d}_{number:02d}_<number>.png")
                (test if session in TEST_SESSIONS else train).append((frame, number - 1, session))
    return _read(train, size), _read(test, size)


def _read(frames: list[tuple[Path, int, int]], size: int | None) -> Split:
    images: list[Tensor] = [read_image(file, grey=False, size=size) for file, _, _ in frames]
    labels = torch.tensor([label for _, label, _ in frames], dtype=torch.int64)
    return Split(torch.stack(images), labels, torch.tensor([session for *_, session in frames], dtype=torch.int64))
