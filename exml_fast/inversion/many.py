"""Several networks at a time: a small one fills neither a GPU nor its launch queue."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from threading import Event, Lock
from typing import Any

import torch

from exml_fast.checks import is_count
from exml_fast.inversion.result import Result
from exml_fast.inversion.synthesizer import invert
from exml_fast.progress import Progress

__all__ = ["invert_many"]


def invert_many(
    models: Sequence[Any],
    *,
    parallel: int = 4,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> list[Result]:
    """:func:`invert` for each of ``models``, ``parallel`` of them at a time, each on a CUDA stream of its own.

    The images are those of one call after the other. On a CPU it pays where the networks are too small for the threads
    that PyTorch uses for one.

    Args:
        models: classifiers or Experts.
        parallel: how many at a time, at least 1.
        device: where to run; each where it is when None.
        progress: ``progress(stage, step, total, terms)``: steps of all networks together, terms of the one that just
            took some.
        arguments: of :func:`invert`, the same for all: classes, per_class, recipe, seed, fields of the recipe, ….

    Returns:
        A Result for each model, in their order.

    Raises:
        ValueError: for no models, a ``checkpoint``, or what :func:`invert` raises; the others then stop at their
            next block of steps.
    """
    if isinstance(models, torch.nn.Module) or not models:
        raise ValueError(f"models must be a sequence of at least one classifier, got {models!r:.200}")
    if not is_count(parallel):
        raise ValueError(f"parallel must be a positive integer, got {parallel!r}")
    if arguments.get("checkpoint") is not None:
        raise ValueError("checkpoint belongs to one network: give it to invert")
    together = _Together(len(models), progress)

    def job(number: int, model: Any) -> Result:
        with _own_stream(device):
            return invert(model, device=device, progress=together.progress_of(number), **arguments)

    with ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(job, number, model) for number, model in enumerate(models)]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:  # after a failure or Ctrl-C; otherwise nothing is left to stop
            together.stop.set()
            pool.shutdown(cancel_futures=True)
    failures = [error for job in jobs if not job.cancelled() and (error := job.exception()) is not None]
    for error in failures:
        if not isinstance(error, _Stopped):
            raise error
    return [job.result() for job in jobs]


class _Stopped(Exception):
    """Another network failed, or Ctrl-C."""


class _Together:
    """Progress of all networks as one, and the sign to stop."""

    def __init__(self, count: int, progress: Progress | None) -> None:
        self.stop = Event()
        self._steps, self._totals = [0] * count, [0] * count
        self._progress, self._lock = progress, Lock()

    def progress_of(self, number: int) -> Progress:
        """What network ``number`` reports to."""

        def report(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
            if self.stop.is_set():
                raise _Stopped
            with self._lock:
                self._steps[number], self._totals[number] = step, total
                if self._progress is not None:
                    # Of those that have not begun, as many as of the others.
                    expected = sum(known or total for known in self._totals)
                    self._progress(stage, sum(self._steps), expected, terms)

        return report


def _own_stream(device: torch.device | str | None) -> AbstractContextManager[Any]:
    if not torch.cuda.is_available() or (device is not None and torch.device(device).type != "cuda"):
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
