"""Progress on stderr: a bar with the loss terms and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from exml_fast.progress import TensorBoard

__all__ = ["Reporter"]

LINE_SECONDS = 5.0
LIBRARY = logging.getLogger("exml_fast")


class Reporter:
    """A context manager that is also the library's callback ``reporter(stage, step, total, terms)``.

    Each stage gets a bar, and leaves a line with its duration when it has finished. Meanwhile the log messages of the
    library are printed too. With ``tensorboard``, a folder, terms and images are also written there.
    """

    def __init__(
        self, console: Console | None = None, line_seconds: float = LINE_SECONDS, *, tensorboard: Path | None = None
    ) -> None:
        self._board = None if tensorboard is None else TensorBoard(tensorboard)
        self.console = console or Console(stderr=True, highlight=False)
        self._line_seconds = line_seconds
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._begun = self._spoken = self._last = 0.0
        self._first = self._step = self._total = 0
        self._messages: logging.Handler = logging.NullHandler()
        self._started = 0.0
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("[dim]{task.fields[terms]}"),
                TimeElapsedColumn(), TextColumn("[dim]left"), TimeRemainingColumn(),
                console=self.console, transient=True, refresh_per_second=5,
            )  # fmt: skip

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        self._messages = _Messages(self)
        LIBRARY.addHandler(self._messages)
        LIBRARY.setLevel(logging.INFO)
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        LIBRARY.removeHandler(self._messages)
        if kind is None:
            self._end_stage()
        if self._bars is not None:
            self._bars.stop()
        if self._board is not None:
            self._board.__exit__(kind, error, trace)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        """Images as they form, for TensorBoard; see :data:`exml_fast.progress.Progress`."""
        if self._board is not None:
            self._board.images(stage, step, total, make)

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if self._board is not None:
            self._board(stage, step, total, terms)
        now = time.monotonic()
        if stage != self._stage:
            self._end_stage()
            # What comes before the first report belongs to the stage.
            self._stage, self._begun, self._spoken = stage, self._last, now
            self._first, self._started = step, now
            if self._bars is not None:
                self._task = self._bars.add_task(escape(stage), total=total, completed=step, terms="")
        self._step, self._total, self._last = step, total, now
        text = "  ".join(f"{key} {value:.4g}" for key, value in terms.items())
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=step, total=total, terms=escape(text))
        elif now - self._spoken >= self._line_seconds:
            self._spoken = now
            self._line(f"{stage}: {step}/{total}  {text}  {self._left(now)}".rstrip())

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._end_stage()
        self._line(text)

    def _left(self, now: float) -> str:
        done = self._step - self._first
        if done <= 0:
            return ""
        seconds = (now - self._started) / done * (self._total - self._step)
        return f"{seconds:.0f} s left"

    def _end_stage(self) -> None:
        if not self._stage:
            return
        seconds = self._last - self._begun
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        if self._step >= self._total:
            self._line(f"{self._stage}: done in {seconds:.1f} s")
        self._stage, self._task = "", None

    def _line(self, text: str) -> None:
        # On a terminal rich prints above the bar; elsewhere long lines must not be wrapped.
        self.console.print(text, markup=False, soft_wrap=True)


class _Messages(logging.Handler):
    """Prints log messages above the progress bar."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.say(record.getMessage())
