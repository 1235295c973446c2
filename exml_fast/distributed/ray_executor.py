"""Shards as tasks of Ray Core, which places and repeats them and asks for more nodes."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from exml_fast.distributed.executors import Lost, Outcome
from exml_fast.distributed.job import Job
from exml_fast.distributed.worker import make_shard
from exml_fast.validation import require, require_count

__all__ = ["RayExecutor"]

# Shards in flight for each worker that there is room for: a worker need not wait for this process, and Ray's
# autoscaler sees that there is more to do.
AHEAD, LEAST_AHEAD = 3, 32


class RayExecutor:
    """Tasks of a Ray cluster. All nodes need this package and the job's folder under the same path.

    A task whose node or worker dies is repeated by Ray. Shards are idempotent: a repeated task finds a finished file.

    Args:
        address: of the cluster, as "auto" or "ray://host:10001"; when None the cluster of the environment, or a new one
            on this machine.
        gpus: of a task, also a part of one, as 0.25; when None 1 on CUDA and 0 on the CPU.
        cpus: of a task; ``job.threads`` when None.
        retries: how often Ray repeats a task whose worker died.

    Raises:
        ImportError: if ray is missing.
    """

    shared = True

    def __init__(
        self,
        address: str | None = None,
        *,
        gpus: float | None = None,
        cpus: float | None = None,
        retries: int = 10,
    ) -> None:
        for name, value in (("gpus", gpus), ("cpus", cpus)):
            require(value is None or value >= 0, name, "at least 0", value)
        require_count("retries", retries, 0)
        self._ray = _ray()
        self.address, self.gpus, self.cpus, self.retries = address, gpus, cpus, retries
        self._folder, self._own = "", False
        self._task: Any = None
        self._flying: dict[Any, int] = {}

    def open(self, folder: str, job: Job) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        if not self._ray.is_initialized():
            self._ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level="error",
                include_dashboard=False if self.address is None else None,
            )
            self._own = True
        gpus = (1.0 if job.device == "cuda" else 0.0) if self.gpus is None else self.gpus
        cpus = float(job.threads) if self.cpus is None else self.cpus
        self._folder, self._needs = folder, {"CPU": cpus, "GPU": gpus}
        self._task = self._ray.remote(make_shard).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=self.retries, name=f"shard {job.digest[:8]}"
        )

    @property
    def slots(self) -> int:
        """See :class:`exml_fast.distributed.Executor`; follows the size of the cluster."""
        there = self._ray.cluster_resources()
        room = (
            min(int(there.get(name, 0) / need) for name, need in self._needs.items() if need)
            if any(self._needs.values())
            else 1
        )
        return max(LEAST_AHEAD, AHEAD * room)

    def submit(self, index: int) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        self._flying[self._task.remote(self._folder, index)] = index

    def finished(self, seconds: float) -> Sequence[Outcome]:
        """See :class:`exml_fast.distributed.Executor`."""
        if not self._flying:
            return []
        ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=seconds)
        if ready and len(self._flying) > 1:  # all others that are ready too, without waiting
            ready, _ = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        return [(self._flying.pop(reference), self._outcome(reference)) for reference in ready]

    def stop(self) -> None:
        """See :class:`exml_fast.distributed.Executor`."""
        for reference in self._flying:
            self._ray.cancel(reference, force=True)
        self._flying = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._own:
            self._ray.shutdown()
            self._own = False

    def _outcome(self, reference: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:  # raised by make_shard itself
            return error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error))
        except exceptions.RayError as error:
            return Lost(" ".join(str(error).split())[:300])


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'exml_fast[ray]'") from error
    return ray
