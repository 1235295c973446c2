"""A page that shows a command while it runs: the stage, the time left, the terms, and the images as they form."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from exml_fast.reading import printable
from exml_fast.report.film import Film, picture_of
from exml_fast.report.page import load_template
from exml_fast.storage import PathLike, atomic_path

__all__ = ["LivePage"]

# Points of a curve; with more, every second one is dropped. Points that have a text. Images that are shown.
MOST_POINTS, MOST_TIPS, MOST_IMAGES = 200, 40, 10
WIDTH, HEIGHT, EDGE = 300.0, 90.0, 5.0


@dataclass
class _Stage:
    """A stage of the command, with the values (step, value) of its terms."""

    name: str
    begun: float
    first: int
    step: int = 0
    total: int = 1
    last: float = 0.0
    terms: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def seconds_left(self) -> float | None:
        done = self.step - self.first
        return (self.last - self.begun) / done * (self.total - self.step) if done > 0 else None


class LivePage:
    """A context manager that is also a :data:`Progress`: it rewrites a page while the block runs.

    The page reloads itself. It does not after an exception, which it names, nor after the block if ``followed`` is
    False. Otherwise it waits for the page of the results, which replaces it.

    Args:
        path: of the page.
        title, command: shown at the top.
        followed: whether another page is written to the same path after the block.
        every: least number of seconds between two versions.

    Raises:
        ImportError: if the extra "report" is missing.
    """

    def __init__(self, path: PathLike, title: str, command: str, *, followed: bool = True, every: float = 2.0) -> None:
        self.path, self.title, self.command = Path(path), title, command
        self._followed, self._every = followed, every
        self._begun = self._written = self._pictured = time.monotonic()
        self._stage: _Stage | None = None
        self._finished: list[tuple[str, float]] = []
        self._images: tuple[str, Tensor] | None = None
        self._template = load_template("live.html")

    def __enter__(self) -> Self:
        self._write("It has begun.", running=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_stage()
        if isinstance(error, KeyboardInterrupt):
            self._write("It was interrupted.", running=False)
        elif error is not None:
            self._write(f"It failed: {error}", running=False)
        elif self._followed:
            self._write("It has finished; the results are being written.", running=True)
        else:
            self._write("It has finished.", running=False)

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        now = time.monotonic()
        if self._stage is None or stage != self._stage.name:
            self._finish_stage()
            self._stage = _Stage(stage, now, step)
        self._stage.step, self._stage.total, self._stage.last = step, max(total, 1), now
        for name, value in terms.items():
            if value == value and abs(value) < float("inf"):
                points = self._stage.terms.setdefault(name, [])
                points.append((step, value))
                if len(points) > MOST_POINTS:
                    del points[1:-1:2]
        if now - self._written >= self._every:
            self._write("It is running.", running=True)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        """Show the images; see :data:`Progress`."""
        now = time.monotonic()
        if self._images is None or step == total or now - self._pictured >= self._every:
            self._pictured = now
            film = Film(MOST_IMAGES)
            film.images(stage, step, total, make)
            self._images = f"step {step} of {total}", film.frames[stage][0][1]

    def _finish_stage(self) -> None:
        if self._stage is not None:
            self._finished.append((self._stage.name, self._stage.last - self._stage.begun))

    def _write(self, state: str, running: bool) -> None:
        stage, now = self._stage, time.monotonic()
        current = None
        if stage is not None:
            left = stage.seconds_left()
            current = {
                "name": stage.name, "step": stage.step, "total": stage.total, "left": left and _duration(left),
            }  # fmt: skip
        report = {
            "title": self.title, "verdict": state, "command": self.command, "settings": {}, "machine": {},
            "summary": f"Begun {_duration(now - self._begun)} ago; written at {time.strftime('%H:%M:%S')}.",
        }  # fmt: skip
        page = self._template.render(
            report=report,
            refresh=max(1, round(self._every)) if running else 0,
            current=current if running else None,
            curves=[] if stage is None else [_curve(name, points) for name, points in stage.terms.items()],
            images="" if self._images is None else picture_of(self._images[1]),
            caption="" if self._images is None else self._images[0],
            finished=self._finished,
        )
        with atomic_path(self.path) as temporary:
            temporary.write_text(printable(page), encoding="utf-8")
        self._written = time.monotonic()


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _curve(name: str, points: list[tuple[int, float]]) -> dict[str, Any]:
    """A line for the template, fitted into the frame; some of its points with texts."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    span = max(steps[-1] - steps[0], 1), max(max(values) - min(values), 1e-30)
    places = [
        (
            round(EDGE + (WIDTH - 2 * EDGE) * (step - steps[0]) / span[0], 1),
            round(HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (value - min(values)) / span[1], 1),
        )
        for step, value in points
    ]
    stride = -(-len(points) // MOST_TIPS)
    shown = [(x, y, f"{name}, step {step}: {value:.4g}") for (x, y), (step, value) in zip(places, points, strict=True)][
        ::-stride
    ]
    return {
        "name": name, "line": " ".join(f"{x},{y}" for x, y in places), "points": shown[::-1],
        "first": f"{values[0]:.4g}", "last": f"{values[-1]:.4g}",
    }  # fmt: skip
