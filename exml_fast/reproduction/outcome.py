"""Where a task works, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from exml_fast.progress import Progress
from exml_fast.storage import load_json, load_tensors, save_json, save_tensors

__all__ = ["Context", "Outcome", "StreamContext"]


@dataclass(frozen=True)
class Context:
    """Where a task works with one seed; ``folder`` belongs to the task and survives an interruption."""

    folder: Path
    seed: int
    data_root: str | None
    device: str
    progress: Progress | None


@dataclass(frozen=True)
class StreamContext:
    """Where a task works that runs all seeds itself; it keeps finished parts in ``folder``."""

    folder: Path
    seeds: Sequence[int]
    data_root: str | None
    device: str
    progress: Progress | None


@dataclass
class Outcome:
    """The figures and pictures that a task found with one seed.

    Attributes:
        values: figures in percent by cell.
        seconds: duration of each stage.
        settings: JSON values that are noted beside the preset.
        samples: by title, images in [0, 1] (N, C, H, W) and labels (N,); a negative label belongs to no class.
        lines: by title, points (x, y) of each line.
        axes: by title of lines, the names of x and y.
        logarithmic: titles of lines with a logarithmic x axis.
        points: by title, points (N, 2) of each group.
        matrices: by title, non-negative (K, K) matrices.
        class_names: names of the labels.
        pages: by title, a function that writes a page to a path, given the run's provenance. Stream tasks only.
        overlaid: titles of points whose groups come in pairs; the first of a pair is drawn pale under the second.
        summary: a sentence under the title of the page; one about impressions where it is empty.
    """

    values: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lines: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    axes: dict[str, tuple[str, str]] = field(default_factory=dict)
    logarithmic: set[str] = field(default_factory=set)
    points: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    pages: dict[str, Callable[[Path, dict[str, Any]], Path]] = field(default_factory=dict)
    overlaid: set[str] = field(default_factory=set)
    summary: str = ""

    def save(self, folder: Path) -> None:
        """Write everything but ``pages`` to a folder."""
        tensors = {f"matrices/{k}": matrix for k, matrix in enumerate(self.matrices.values())}
        for k, (images, labels) in enumerate(self.samples.values()):
            tensors |= {f"images/{k}": images, f"labels/{k}": labels}
        for k, groups in enumerate(self.points.values()):
            tensors |= {f"points/{k}/{g}": points for g, points in enumerate(groups.values())}
        save_tensors(folder / "pictures.safetensors", tensors)
        plain = ("values", "seconds", "settings", "lines", "axes", "class_names", "summary")
        written = {name: getattr(self, name) for name in plain} | {
            "logarithmic": sorted(self.logarithmic), "overlaid": sorted(self.overlaid),
            "samples": list(self.samples), "matrices": list(self.matrices),
            "points": {title: list(groups) for title, groups in self.points.items()},
        }  # fmt: skip
        save_json(folder / "outcome.json", written)

    @classmethod
    def load(cls, folder: Path) -> Outcome:
        """Read what :meth:`save` wrote."""
        stored, tensors = load_json(folder / "outcome.json"), load_tensors(folder / "pictures.safetensors")
        samples = {
            title: (tensors[f"images/{k}"], tensors[f"labels/{k}"]) for k, title in enumerate(stored.pop("samples"))
        }
        matrices = {title: tensors[f"matrices/{k}"] for k, title in enumerate(stored.pop("matrices"))}
        points = {
            title: {name: tensors[f"points/{k}/{g}"] for g, name in enumerate(names)}
            for k, (title, names) in enumerate(stored.pop("points").items())
        }
        logarithmic, overlaid = set(stored.pop("logarithmic")), set(stored.pop("overlaid"))
        return cls(
            **stored, samples=samples, matrices=matrices, points=points, logarithmic=logarithmic, overlaid=overlaid
        )
