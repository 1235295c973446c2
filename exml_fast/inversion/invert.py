"""One call: images of some classes out of one classifier, or out of each of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import DataSource, InputSpec
from exml_fast.engine.freezing import unpacked
from exml_fast.engine.statistics import require_module
from exml_fast.inversion import recipes
from exml_fast.inversion.objective import Step, Term
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.synthesizer import Synthesizer
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.validation import require_count

__all__ = ["class_ids", "invert", "invert_many"]


@reports_progress
def invert(
    model: Any,
    classes: Sequence[int] | None = None,
    *,
    per_class: int = 8,
    recipe: str | Recipe | None = None,
    spec: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "auto",
    units: Sequence[int] | None = None,
    student: nn.Module | None = None,
    statistics: str | Tensor | DataSource = "running",
    layers: Sequence[str] = (),
    terms: Sequence[Term | Callable[[Step], Tensor]] = (),
    parametrisation: Parametrisation | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **overrides: Any,
) -> Result:
    """Synthetic images of ``classes`` from a trained classifier alone.

    Args:
        model: a classifier that returns logits (N, K), or an object with such a ``.model`` (an Expert).
        classes: class ids; all when None (for an Expert, the classes of its training).
        per_class: the number of images of each class. The classes take turns (0, 1, …, 0, 1, …).
        recipe: a name (:func:`exml_fast.inversion.recipes.names`) or a Recipe. When None by the images' size: ours for
            large ones ("deep_inversion/imagenet-transferable"), "deep_inversion" below 96 pixels; "drawn_inversion"
            with a parametrisation.
        spec: an InputSpec, or an object that describes one (a torchvision weights enum, a dict, …); read from the
            model when None.
        seed: the same seed gives the same images.
        device: where to run; the model's device when None.
        precision: of the network, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        student: the classifier with which the images compete, for the recipes ``adaptive_deep_inversion``.
        statistics: "running", or normalised real images whose statistics are matched instead (:class:`Synthesizer`).
        layers: names of other layers whose outputs are matched (:class:`Synthesizer`).
        terms: losses of your own (:class:`exml_fast.inversion.CustomTerm`, or functions of a step).
        parametrisation: a family of images, such as drawings of pen strokes (:class:`Synthesizer`).
        progress: ``progress(stage, step, total, terms)``, called every 50 steps.
        checkpoint_dir: a folder from which an interrupted run continues (:meth:`Synthesizer.run`).
        overrides: fields of the recipe, such as ``steps=500``, which scales ``coarse_steps`` in proportion.

    Raises:
        ValueError: naming the argument (see :class:`Synthesizer` and :meth:`Synthesizer.run`).
    """
    progress = callback_of(progress)
    source = InputSpec.of(model if spec is None else spec)
    require_count("per_class", per_class)
    model, units, classes = unpacked(model, units, classes)
    require_module(model)
    if recipe is None:
        recipe = recipes.suited_to(model, source, parametrisation=parametrisation)
    synthesizer = Synthesizer(
        model, source, recipes.get(recipe).overridden(**overrides), units=units, device=device, precision=precision,
        statistics=statistics, layers=layers, terms=terms, parametrisation=parametrisation,
    )  # fmt: skip
    ids = class_ids(synthesizer.units if classes is None else classes)
    labels = torch.tensor(ids, dtype=torch.int64).repeat(per_class)
    return synthesizer.run(labels, seed=seed, student=student, progress=progress, checkpoint_dir=checkpoint_dir)


@reports_progress
def invert_many(
    models: Sequence[Any],
    *,
    parallel: int = 4,
    device: torch.device | str | None = None,
    progress: ProgressOption = None,
    **arguments: Any,
) -> list[Result]:
    """:func:`invert` for each of ``models``, ``parallel`` of them at a time, each on a CUDA stream of its own.

    The images are the same as those of single calls. Several at a time are faster for small networks, which do not fill
    a GPU, its launch queue or the threads of a CPU.

    Args:
        models: classifiers or Experts.
        parallel: how many at a time, at least 1.
        device: where to run; each network's own device when None.
        progress: ``progress(stage, step, total, terms)`` with the steps of all networks together, and the terms of the
            network that took the last steps.
        arguments: arguments of :func:`invert` for all networks: classes, per_class, recipe, seed, ….

    Returns:
        A Result for each model, in their order.

    Raises:
        ValueError: for no models, a ``checkpoint_dir``, or whatever :func:`invert` raises; the other networks then
            stop after their current block of steps.
    """
    progress = callback_of(progress)
    if isinstance(models, torch.nn.Module) or not models:
        raise ValueError(f"models must be a sequence of at least one classifier, got {models!r:.200}")
    require_count("parallel", parallel)
    if arguments.get("checkpoint_dir") is not None:
        raise ValueError("checkpoint_dir is for one network: call invert for each")
    together = _Together(len(models), progress)

    def job(number: int, model: Any) -> Result:
        with _own_stream(device):
            return invert(model, device=device, progress=together.progress_of(number), **arguments)

    with ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(job, number, model) for number, model in enumerate(models)]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:  # stops what a failure or Ctrl-C left running
            together.stop.set()
            pool.shutdown(cancel_futures=True)
    failures = [error for job in jobs if not job.cancelled() and (error := job.exception()) is not None]
    for error in failures:
        if not isinstance(error, _Stopped):
            raise error
    return [job.result() for job in jobs]


class _Stopped(Exception):
    """Raised in the other threads after a failure or Ctrl-C."""


class _Together:
    """The joint progress of all networks, and the signal to stop."""

    def __init__(self, count: int, progress: Progress | None) -> None:
        self.stop = Event()
        self._steps, self._totals = [0] * count, [0] * count
        self._progress, self._lock = progress, Lock()

    def progress_of(self, number: int) -> Progress:
        """The callback of network ``number``."""

        def report(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
            if self.stop.is_set():
                raise _Stopped
            with self._lock:
                self._steps[number], self._totals[number] = step, total
                if self._progress is not None:
                    # A network that has not begun counts with as many steps as this one.
                    expected = sum(known or total for known in self._totals)
                    self._progress(stage, sum(self._steps), expected, terms)

        return report


def _own_stream(device: torch.device | str | None) -> AbstractContextManager[Any]:
    if not torch.cuda.is_available() or (device is not None and torch.device(device).type != "cuda"):
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def class_ids(classes: Sequence[int]) -> list[int]:
    """``classes`` as Python integers; ValueError unless they are integers, at least one."""
    found = classes.tolist() if isinstance(classes, Tensor) else classes
    whole = isinstance(found, Iterable) and not isinstance(found, str)
    ids = list(found) if whole else []
    if not whole or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"classes must be a sequence of class ids, integers, got {classes!r}")
    if not ids:
        raise ValueError("classes must hold at least one class id")
    return [int(i) for i in ids]
