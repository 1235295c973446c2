"""Where a figure comes from: command, commit, date, machine."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from exml_fast._native import build_info

__all__ = ["command_line", "provenance"]


def command_line(program: str = "exml-fast", names_only: bool = False) -> str:
    """What was typed; with ``names_only`` just the names of absolute paths, for files that are handed on."""
    shown = [Path(part).name if names_only and Path(part).is_absolute() else part for part in sys.argv[1:]]
    return f"{program} {shlex.join(shown)}".rstrip()


def provenance(device: str = "cpu", command: str | None = None) -> dict[str, Any]:
    """command, commit, date and machine: the head of every file of results."""
    return {
        "command": command or command_line(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "instructions": _instructions(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _instructions() -> str:
    """Of the CPU, as far as they decide which kernels and which precision run."""
    known = {"bf16": torch.cpu._is_avx512_bf16_supported(), "VNNI": torch.cpu._is_vnni_supported()}
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *(name for name, there in known.items() if there)])


def _commit() -> str | None:
    """Of the checkout the package runs from; of its build where it was installed."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        try:
            head = _ask([*git, "rev-parse", "--short=12", "HEAD"])
            # Results are no part of what computes them; a run that writes row after row changes them itself.
            changed = _ask([*git, "status", "--porcelain", "-uno", "--", ".", ":(exclude)benches/results"])
            return head.strip() + ("+changes" if changed.strip() else "")
        except (OSError, subprocess.CalledProcessError):
            pass
    return build_info()["git_commit"]


def _ask(command: list[str]) -> str:
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
