"""Processes that work on one run, as PyTorch's launcher torchrun starts them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "started"]

TERMINATED = 143


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``count`` processes; one process by default.

    Attributes:
        rank: of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch.distributed; one rank where no process group was initialised."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """The rows (N, …) of this rank: every ``count``-th."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' ``values``, of one shape, without gradient; each rank gets the same bits."""
        if self.count > 1:
            values = values.detach().clone()
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """All ranks' ``values`` (N, …), of one shape, one after another: (count · N, …)."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every rank by those of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Raises SystemExit in the block where another rank has died, so that a checkpoint is written."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
            if self.count == 1 or not lost:
                raise
            _ignore_further_signals()
            raise SystemExit(TERMINATED) from error

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def started() -> Iterator[Ranks]:
    """The ranks of torchrun, with a process group for the block; one rank outside of torchrun.

    A rank that torchrun ends by SIGTERM, because another rank died, raises SystemExit, so that a checkpoint is written.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or count == 1:
        yield Ranks()
        return
    rank = int(os.environ["RANK"])
    # The store of torchrun outlives a restart. Without a prefix of its own, the next attempt would read the addresses
    # of processes that are gone.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, count, is_master=rank == 0 and not of_agent)
    attempt = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=count)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield Ranks(rank, count)
    finally:
        signal.signal(signal.SIGTERM, before)
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _end(number: int, frame: FrameType | None) -> None:
    _ignore_further_signals()
    raise SystemExit(TERMINATED)


def _ignore_further_signals() -> None:
    """This process ends already: a SIGTERM of torchrun must not interrupt the writing of the checkpoint."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
