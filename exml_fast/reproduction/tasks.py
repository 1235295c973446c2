"""All tasks by the name that presets give. To add a task, write its file and add a line here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exml_fast.reproduction import adapt, delegator, incremental, perturb, prune, robustness, stream, zskd
from exml_fast.reproduction.lab import Lab
from exml_fast.reproduction.outcome import Context, Outcome, StreamContext
from exml_fast.reproduction.preset import Preset

__all__ = ["STREAM_TASKS", "TASKS", "OtherTask", "StreamTask", "Task"]


@dataclass(frozen=True)
class Task:
    """An experiment with one seed; the runner repeats it and averages."""

    settings: type[Any]
    run: Callable[[Preset, Context], Outcome]
    require: Callable[[Lab], object] | None = None
    """Raises ValueError for what the settings alone do not show."""

    def check(self, preset: Preset, data_root: str | None = None, device: str = "cpu") -> None:
        """ValueError or ImportError for a preset that cannot be run; nothing is computed."""
        with tempfile.TemporaryDirectory() as nothing:
            lab = Lab(preset, self.settings, Context(Path(nothing), 0, data_root, device, None))
            if self.require is not None:
                self.require(lab)
            lab.try_networks()


@dataclass(frozen=True)
class OtherTask:
    """As :class:`Task`, without the impressions that the lab makes."""

    run: Callable[[Preset, Context], Outcome]
    require: Callable[[Preset, Context], None]
    """Raises ValueError or ImportError for a preset that cannot be run."""

    def check(self, preset: Preset, data_root: str | None = None, device: str = "cpu") -> None:
        """ValueError or ImportError for a preset that cannot be run; nothing is computed."""
        with tempfile.TemporaryDirectory() as nothing:
            self.require(preset, Context(Path(nothing), 0, data_root, device, None))


@dataclass(frozen=True)
class StreamTask:
    """An experiment that runs all seeds itself and returns its rows."""

    run: Callable[[Preset, StreamContext], tuple[list[dict[str, Any]], Outcome]]
    check: Callable[[Preset, str | None, str], None]
    """ValueError for a preset that cannot be run, given the data folder and the device; nothing is computed."""


TASKS: dict[str, Task | OtherTask] = {
    "delegator": OtherTask(delegator.run, delegator.check),
    "incremental": OtherTask(incremental.run, incremental.check),
    "prune": OtherTask(prune.run, prune.check),
    "zskd": Task(zskd.Zskd, zskd.run, zskd.require_sizes),
    "robustness": Task(robustness.Robustness, robustness.run),
    "adapt": Task(adapt.Adapt, adapt.run, adapt.open_target),
    "perturb": Task(perturb.Perturb, perturb.run, perturb.require_size),
}
STREAM_TASKS: dict[str, StreamTask] = {
    "learn": StreamTask(stream.run_table, stream.check),
    "table": StreamTask(stream.run_table, stream.check),
    "sweep": StreamTask(stream.run_sweep, stream.check),
}
