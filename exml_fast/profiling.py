"""Measures the time and the memory of a part of a run."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import torch

__all__ = ["Meter", "free_bytes"]


class Meter:
    """Context manager that measures a block: wall-clock ``seconds``, and ``peak_mb``, the most memory in MB.

    On the CPU the memory is the resident size of the process. Systems other than Linux cannot reset its peak, so there
    it is the peak since the start of the process. On CUDA it is the memory that PyTorch allocated on the device. Meters
    can be nested.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    _open: ClassVar[list[Meter]] = []

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._cuda = device if str(device).startswith("cuda") else None

    def __enter__(self) -> Self:
        # The reset below would lose the peaks of the enclosing meters, so they record them first.
        for meter in self._open:
            meter._look()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            _reset_peak()
        self._open.append(self)
        self._begun = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
        self._look()
        self._open.remove(self)
        self.seconds = time.perf_counter() - self._begun

    def _look(self) -> None:
        now = torch.cuda.max_memory_allocated(self._cuda) if self._cuda else _peak_bytes()
        self.peak_mb = max(self.peak_mb, now / 1e6)


def free_bytes() -> int | None:
    """Free memory of the CPU in bytes, within the limit of a container; None where the system does not report it."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:  # not Linux: all memory counts as free
        meminfo = ""
    found = re.search(r"MemAvailable:\s+(\d+)", meminfo)
    if found is None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError):
            return None
    free = int(found[1]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> float:
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
