"""Where shards are made: the interface of all executors, and processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from exml_fast.data.manifest import Entry
from exml_fast.distributed.job import Job
from exml_fast.distributed.worker import make_shard
from exml_fast.validation import require_count

__all__ = ["Executor", "LocalExecutor", "Lost", "Outcome"]


class Lost(RuntimeError):
    """A worker ended before its shard was finished: the shard can be made again."""


Outcome = tuple[int, Entry | BaseException]
"""A shard's index, and its entry, or why there is none."""


class Executor(Protocol):
    """Makes shards of one job at a time: ``with executor: executor.open(folder, job); …``."""

    shared: bool
    """Whether workers may go on after this process has ended."""

    def open(self, folder: str, job: Job) -> None:
        """Start workers for the job in ``folder``."""
        ...

    @property
    def slots(self) -> int:
        """How many shards may be in flight."""
        ...

    def submit(self, index: int) -> None:
        """Have a shard made."""
        ...

    def finished(self, seconds: float) -> Sequence[Outcome]:
        """Shards that ended since the last call; waits ``seconds`` at most for the first of them."""
        ...

    def stop(self) -> None:
        """End all workers at once; shards in flight are lost."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalExecutor:
    """Processes of this machine, each with a shard at a time; on CUDA they take the GPUs in turn.

    A worker that dies loses its own shard alone, and is replaced. Workers end when this process does.

    Args:
        workers: number of processes; when None one for each GPU, or for each ``job.threads`` CPU cores. 0 makes the
            shards in this process.
    """

    shared = False

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None:
            require_count("workers", workers, 0)
        self.workers = workers
        self._folder = ""
        self._gpus: list[str] = []
        self._workers: dict[int, _Worker] = {}
        self._waiting: list[int] = []

    def open(self, folder: str, job: Job) -> None:
        """See :class:`Executor`."""
        self.stop()
        self._folder = folder
        self._gpus = _visible_gpus() if job.device == "cuda" else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._count = len(self._gpus) or max(1, cores // job.threads) if self.workers is None else self.workers

    @property
    def slots(self) -> int:
        """See :class:`Executor`."""
        return max(1, self._count)

    def submit(self, index: int) -> None:
        """See :class:`Executor`."""
        self._waiting.append(index)
        self._assign()

    def finished(self, seconds: float) -> Sequence[Outcome]:
        """See :class:`Executor`."""
        if self._count == 0:
            return [self._here(index) for index in self._taken()]
        busy: dict[object, int] = {
            worker.connection: number for number, worker in self._workers.items() if worker.shard is not None
        }
        outcomes: list[Outcome] = []
        for ready in wait([self._workers[number].connection for number in busy.values()], seconds):
            number = busy[ready]
            worker = self._workers[number]
            index, worker.shard = worker.shard, None
            assert index is not None
            try:
                outcomes.append((index, worker.connection.recv()))
            except (EOFError, OSError):
                outcomes.append((index, Lost(f"the worker of shard {index} died")))
                self._workers.pop(number).end()
        self._assign()
        return outcomes

    def stop(self) -> None:
        """See :class:`Executor`."""
        for worker in self._workers.values():
            worker.end()
        self._workers, self._waiting = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _assign(self) -> None:
        """Give waiting shards to idle workers; start workers that are missing."""
        for number in range(self._count):
            if not self._waiting:
                return
            worker = self._workers.get(number)
            if worker is None:
                gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
                worker = self._workers[number] = _Worker(self._folder, gpu)
            if worker.shard is None:
                worker.give(self._waiting.pop(0))

    def _taken(self) -> list[int]:
        taken, self._waiting = self._waiting, []
        return taken

    def _here(self, index: int) -> Outcome:
        try:
            return index, make_shard(self._folder, index)
        except Exception as error:
            return index, error


class _Worker:
    """A process, the pipe to it, and the shard that it makes."""

    def __init__(self, folder: str, gpu: str | None) -> None:
        # A fork of this process would copy the locks of torch's threads. The fork server has imported the package, and
        # nothing else, before it makes the first worker.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["exml_fast.distributed.worker"])
        self.connection, other = context.Pipe()
        self.shard: int | None = None
        self.process: Any = context.Process(target=_serve, args=(other, folder, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the pipe breaks when the worker dies

    def give(self, index: int) -> None:
        self.shard = index
        with contextlib.suppress(OSError):  # the worker has died, which finished() sees
            self.connection.send(index)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, folder: str, gpu: str | None) -> None:
    """A worker: shards until the pipe breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    while True:
        try:
            index = connection.recv()
        except (EOFError, OSError):
            return
        answer: Entry | BaseException
        try:
            answer = make_shard(folder, index)
        except Exception as error:
            answer = type(error)(str(error)) if isinstance(error, ValueError | OSError) else RuntimeError(str(error))
        try:
            connection.send(answer)
        except OSError:
            return


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
