"""The default progress of the Python API: one line on stderr that is written over and over."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["ProgressLine", "duration", "is_watched"]

# Seconds between two updates, and the width of the bar in characters.
INTERVAL, BAR = 0.1, 20


class ProgressLine:
    """A callback ``line(stage, step, total, terms)`` that shows the stage, a bar, the terms and the time left.

    The line is erased at the end; one line with the time of each stage stays. The time left is that of the stage, at
    the mean speed since the stage began.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._stage, self._first, self._last = "", 0, 0
        self._begun = self._entered = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._starts: dict[str, tuple[float, int, int]] = {}
        self._written = 0.0

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        now = time.monotonic()
        # The time since the last report belongs to the stage that reports now.
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._entered
        began, first, last = self._starts.get(stage, (self._entered, 0 if step < total else step, 0))
        if step < last:  # the stage begins again, as each round of generation does
            began, first = self._entered, 0
        self._starts[stage] = began, first, step
        self._entered = now
        if now - self._written < INTERVAL and step < total:
            return
        self._written = now
        left = (now - began) / (step - first) * (total - step) if step > first else None
        filled = round(BAR * step / total) if total else BAR
        parts = [
            stage, f"[{'#' * filled}{'.' * (BAR - filled)}] {step}/{total}",
            *(f"{name} {value:.4g}" for name, value in terms.items()),
            "" if left is None else f"{duration(left)} left",
        ]  # fmt: skip
        self._write("  ".join(part for part in parts if part))

    def close(self) -> None:
        """Erase the line and leave the times of the stages."""
        if self._seconds:
            self._write("")
            text = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self._seconds.items())
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{text[:width].ljust(width)}\r" if not text else f"\r{text[:width].ljust(width)}")
        self._stream.flush()


def duration(seconds: float) -> str:
    """As "8.3 s", "2:05" or "1:02:05"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def is_watched() -> bool:
    """Whether stderr is a terminal, or this is the kernel of a notebook."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            return True
    return sys.stderr is not None and sys.stderr.isatty()
