"""Shards as tasks of Slurm job arrays, through submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from exml_fast.data.manifest import Entry
from exml_fast.distributed.executors import Lost, Outcome
from exml_fast.distributed.job import Job
from exml_fast.distributed.worker import make_shard
from exml_fast.validation import require, require_count

__all__ = ["SlurmExecutor"]

LOGS_FOLDER = "slurm"
POLL_SECONDS = 1.0


class SlurmExecutor:
    """Arrays of Slurm tasks, each of which makes several shards, one after another.

    All nodes need this package and the job's folder under the same path. submitit requeues a preempted task, which
    finds the shards that it had finished.

    Args:
        workers: tasks that may run at the same time.
        block: shards of a task: large enough that a task takes minutes, as Slurm needs seconds to start one.
        parameters: of ``submitit.AutoExecutor.update_parameters``, as ``timeout_min``, ``slurm_partition`` and
            ``gpus_per_node``.
        cluster: "slurm"; "local" runs the tasks as processes of this machine, "debug" in this process.

    Raises:
        ImportError: if submitit is missing.
    """

    shared = True

    def __init__(
        self,
        workers: int = 8,
        *,
        block: int = 8,
        parameters: dict[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:
        require_count("workers", workers)
        require_count("block", block)
        require(cluster in ("slurm", "local", "debug"), "cluster", "'slurm', 'local' or 'debug'", cluster)
        self._submitit = _submitit()
        self.workers, self.block, self.cluster = workers, block, cluster
        self.parameters = dict(parameters or {})
        self._folder = ""
        self._executor: Any = None
        self._waiting: list[int] = []
        self._flying: list[tuple[Any, list[int]]] = []

    def open(self, folder: str, job: Job) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        self._folder = folder
        self._executor = self._submitit.AutoExecutor(Path(folder) / LOGS_FOLDER, cluster=self.cluster)
        given: dict[str, Any] = {"name": f"shards-{job.digest[:8]}", "cpus_per_task": job.threads, "timeout_min": 240}
        if job.device == "cuda":
            given["gpus_per_node"] = 1
        if self.cluster == "slurm":
            given["slurm_array_parallelism"] = self.workers
        self._executor.update_parameters(**given | self.parameters)

    @property
    def slots(self) -> int:
        """See :class:`exml_fast.distributed.Executor`."""
        return self.workers * self.block

    def submit(self, index: int) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        self._waiting.append(index)

    def finished(self, seconds: float) -> Sequence[Outcome]:
        """See :class:`exml_fast.distributed.Executor`."""
        self._send()
        end = time.monotonic() + seconds
        while True:
            done = [pair for pair in self._flying if pair[0].done()]
            if done or time.monotonic() >= end:
                break
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        self._flying = [pair for pair in self._flying if pair not in done]
        return [outcome for task, block in done for outcome in _outcomes(task, block)]

    def stop(self) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        for task, _ in self._flying:
            task.cancel()
        self._flying, self._waiting = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _send(self) -> None:
        """Submit what waits as one array."""
        blocks = [self._waiting[at : at + self.block] for at in range(0, len(self._waiting), self.block)]
        self._waiting = []
        if blocks:
            tasks = self._executor.map_array(_make_block, [self._folder] * len(blocks), blocks)
            self._flying += zip(tasks, blocks, strict=True)


def _make_block(folder: str, indices: list[int]) -> list[Entry]:
    return [make_shard(folder, index) for index in indices]


def _outcomes(task: Any, block: list[int]) -> list[Outcome]:
    error = task.exception()
    if error is None:
        return list(zip(block, task.result(), strict=True))
    text = " ".join(str(error).split())[-300:]
    # A task that raised an error says so; any other end is that of its machine.
    raised = type(error).__name__ == "FailedJobError"
    outcome: BaseException = RuntimeError(text) if raised else Lost(text)
    return [(index, outcome) for index in block]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--executor slurm needs submitit: pip install 'exml_fast[slurm]'") from error
    return submitit
