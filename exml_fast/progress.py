"""Progress of long computations: the type of every ``progress`` argument, and a callback for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Progress", "Renamed", "TensorBoard", "require_tensorboard", "show_images"]

Progress = Callable[[str, int, int, dict[str, float]], None]
"""``progress(stage, step, total, terms)`` is called after ``step`` of ``total`` steps of ``stage``.

``terms`` are the losses of the step by name. A callback that has a method ``images(stage, step, total, make)`` is also
given the images as they form: ``make()`` returns pixels (N, C, H, W) in [0, 1] on the CPU, always of the same images
until the next batch begins.
"""


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

    A stage that begins again, as each round of generation does, continues after its last step.

    Args:
        folder: folder of the event files.
        then: another callback, called afterwards with the same arguments.

    Raises:
        ImportError: if tensorboard is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], then: Progress | None = None) -> None:
        self._writer, self._then = require_tensorboard()(str(folder)), then
        self._reached: dict[str, tuple[int, int]] = {}

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
        show_images(self._then, stage, step, total, make)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
