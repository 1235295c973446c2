"""Progress of long computations: the type of every ``progress`` argument, and a callback for TensorBoard."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from exml_fast.progress_line import ProgressLine, is_watched

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Progress",
    "ProgressOption",
    "Renamed",
    "TensorBoard",
    "callback_of",
    "reports_progress",
    "require_tensorboard",
    "show_images",
    "silent",
]

P = ParamSpec("P")
T = TypeVar("T")

Progress = Callable[[str, int, int, dict[str, float]], None]
"""``progress(stage, step, total, terms)`` is called after ``step`` of ``total`` steps of ``stage``.

``terms`` are the losses of the step by name. A callback that has a method ``images(stage, step, total, make)`` is also
given the images as they form: ``make()`` returns the pixels (N, C, H, W) of a batch of images, in [0, 1], on the CPU,
after ``step`` of the ``total`` steps of the batch. Step 0 begins a batch.
"""


ProgressOption = Progress | bool | None
"""The argument ``progress`` of everything that runs long.

True shows a line with the terms and the time left on stderr, False shows nothing. None shows it if stderr is a terminal
or this is a notebook, but not for a call within another one, which reports for both. A callback is called instead.
"""

# Set within a function that reports, and within a command, which shows its own progress.
_reported: ContextVar[bool] = ContextVar("_reported", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """Within the block ``progress=None`` shows nothing."""
    token = _reported.set(True)
    try:
        yield
    finally:
        _reported.reset(token)


def reports_progress(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that runs long: its keyword ``progress``, a :data:`ProgressOption`, becomes a callback."""

    @functools.wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> T:
        asked: Any = kwargs.get("progress")
        line = None
        if asked is True or (asked is None and not _reported.get() and is_watched()):
            line = ProgressLine()
        kwargs["progress"] = line or (None if isinstance(asked, bool) else asked)
        with silent():
            try:
                return function(*args, **kwargs)
            finally:
                if line is not None:
                    line.close()

    return reporting


def callback_of(progress: ProgressOption) -> Progress | None:
    """The callback, in a function that :func:`reports_progress` decorates. ValueError for anything else."""
    if progress is not None and not callable(progress):
        raise ValueError(f"progress must be True, False, None or a function, got {progress!r}")
    return progress


def show_images(progress: Progress | None, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
    """Offer images to a callback that has a method ``images``; ``make`` is called only if it wants them."""
    show = getattr(progress, "images", None)
    if show is not None:
        show(stage, step, total, make)


class Renamed:
    """A :data:`Progress` that passes everything on to ``then``, with ``name(stage)`` as the name of the stage."""

    def __init__(self, then: Progress, name: Callable[[str], str]) -> None:
        self._then, self._name = then, name

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        self._then(self._name(stage), step, total, terms)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        show_images(self._then, self._name(stage), step, total, make)


def require_tensorboard() -> Any:
    """The class SummaryWriter of TensorBoard. ImportError if tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard needs tensorboard: pip install 'exml_fast[log]'") from error
    return SummaryWriter


class TensorBoard:
    """A context manager that is also a :data:`Progress`: it writes each term as a scalar ``<stage>/<term>``.

    Images that are optimised are written as they form, as ``<stage>/images``. A stage that begins again, as each round
    of generation does, continues after its last step.

    Args:
        folder: folder of the event files.
        then: another callback, called afterwards with the same arguments.
        images: the number of images that are written; 0 for none.
        every: seconds between two times that images are written; the last images of a batch are always written.

    Raises:
        ImportError: if tensorboard is missing.
    """

    def __init__(
        self, folder: str | os.PathLike[str], then: Progress | None = None, *, images: int = 16, every: float = 30.0
    ) -> None:
        self._writer, self._then = require_tensorboard()(str(folder)), then
        self._reached: dict[str, tuple[int, int]] = {}
        self._count, self._every, self._written = images, every, -every

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        before, last = self._reached.get(stage, (0, 0))
        if step <= last:
            before += last
        self._reached[stage] = before, step
        for name, value in terms.items():
            self._writer.add_scalar(f"{stage}/{name}", value, before + step)
        if self._then is not None:
            self._then(stage, step, total, terms)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        """Write the first images, after a report of the same step."""
        now = time.monotonic()
        if self._count and (now - self._written >= self._every or step == total):
            self._written = now
            place = sum(self._reached.get(stage, (0, 0)))
            self._writer.add_images(f"{stage}/images", make()[: self._count], place)
        show_images(self._then, stage, step, total, make)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
