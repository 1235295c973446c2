"""Runs tasks in forked processes: each with a limit of time, its peak memory, and its output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 120.0
"""Seconds after which a process is killed. What counts as a hang is for the caller to say."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended: exit code (negative: the signal), wall-clock seconds, memory over its parent's, output."""

    code: int
    seconds: float
    mb: float
    output: str


class Fork:
    """A running process. Importing the libraries once in the parent saves seconds in each."""

    def __init__(self, task: Callable[[], Any]) -> None:
        self._begun = time.monotonic()
        self._read, self._write = os.pipe()
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._output = Path(file.name)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(task)
        os.close(self._write)

    def _child(self, task: Callable[[], Any]) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            os.write(self._write, f"{resident_mb()}".encode())
            signal.signal(signal.SIGINT, signal.default_int_handler)
            number = os.open(self._output, os.O_WRONLY | os.O_TRUNC)
            os.dup2(number, 1)
            os.dup2(number, 2)
            os.close(self._write)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            task()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    def wait(self, limit: float = LIMIT) -> Outcome:
        """Wait for the end, at most so many seconds; then the process is killed."""
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - self._begun > limit:
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        with os.fdopen(self._read) as pipe:
            base = float(pipe.read() or "inf")
        output = self._output.read_text(errors="replace")
        self._output.unlink()
        seconds = time.monotonic() - self._begun
        return Outcome(os.waitstatus_to_exitcode(status), seconds, max(used.ru_maxrss / 1024 - base, 0.0), output)

    def running(self, seconds: float) -> bool:
        """Whether the process still runs after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.01)
        return True

    def send(self, number: int) -> None:
        """Send a signal to the process and those that it started."""
        group = number == signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def run(task: Callable[[], Any], limit: float = LIMIT) -> Outcome:
    """The outcome of a task in a process of its own."""
    return Fork(task).wait(limit)


def command(arguments: list[str], before: Callable[[], Any] | None = None) -> Callable[[], None]:
    """The task that runs ``exml-fast`` with these arguments, after ``before``."""

    def task() -> None:
        from exml_fast.cli import main

        if before is not None:
            before()
        sys.argv = ["exml-fast", *arguments]
        main()

    return task


def resident_mb() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
