"""Where a figure comes from (command, commit, date, machine), and what a part of a run took."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from exml_fast._native import build_info

__all__ = ["Meter", "command_line", "provenance"]


def command_line() -> str:
    """What was typed."""
    return shlex.join(["exml-fast", *sys.argv[1:]])


def provenance(device: str = "cpu", command: str | None = None) -> dict[str, Any]:
    """command, commit, date and machine: the head of every file of results."""
    return {
        "command": command or command_line(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }


class Meter:
    """Wall-clock seconds of a block and the most memory the process held in it, in MB.

    ``peak_mb`` is the resident size on the CPU (since the start of the process where the system cannot reset its
    high-water mark, which Linux can) and the allocated memory of the device on CUDA.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = device if device.startswith("cuda") else None

    def __enter__(self) -> Self:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            _reset_peak()
        self._begun = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
            self.peak_mb = torch.cuda.max_memory_allocated(self._cuda) / 1e6
        else:
            self.peak_mb = _peak_bytes() / 1e6
        self.seconds = time.perf_counter() - self._begun


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


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout the package runs from; of its build where it was installed."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        try:
            head = _ask([*git, "rev-parse", "--short=12", "HEAD"])
            changed = _ask([*git, "status", "--porcelain", "-uno"])
            return head.strip() + ("+changes" if changed.strip() else "")
        except (OSError, subprocess.CalledProcessError):
            pass
    return build_info()["git_commit"]


def _ask(command: list[str]) -> str:
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
