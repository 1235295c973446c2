"""Measurements of the benchmarks: contenders run in interleaved rounds of one process, with medians and quartiles.

The machines are shared and noisy. Ratios within one run are therefore meaningful, and absolute times are not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from exml_fast.reproduction.provenance import command_line, provenance
from exml_fast.storage import load_json, save_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the median, and the lower and upper quartile."""

    median: float
    low: float
    high: float


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """Time of one call; on a GPU measured by CUDA events."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 21, warmup: int = 3, device: str = "cpu"
) -> dict[str, Timing]:
    """Time each contender once in every round, in an order that rotates from round to round."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    return rotating({name: partial(milliseconds, call, device) for name, call in contenders.items()}, rounds)


def rotating(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seldom: Collection[str] = ()
) -> dict[str, Timing]:
    """As :func:`interleaved`, for contenders that need no warm-up and return their own milliseconds.

    Those in ``seldom`` take part in every third round.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if i % 3 == 0 or name not in seldom:
                times[name].append(contenders[name]())
    return {name: timing_of(values) for name, values in times.items()}


def timing_of(values: Sequence[float]) -> Timing:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return Timing(statistics.median(values), quartiles[0], quartiles[2])


def peak_mb(call: Callable[[], Any], device: str = "cpu") -> float:
    """Peak memory of tensors during a call, minus the memory before the call, in MiB."""
    call()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def peak_rss_mb(call: Callable[[], Any]) -> float:
    """Peak resident memory of the process during a call, minus the memory before it, in MiB. Includes libraries."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise free pages of the allocator hide the growth
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    call()
    return max(_status_mb("VmHWM") - before, 0.0)


def _status_mb(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def saved_mb(call: Callable[[], Any], *inputs: torch.Tensor) -> float:
    """Memory that autograd saves for the backward pass of a call, except its inputs, in MiB."""
    known = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = call()
    del result
    return sum(kept.values()) / 2**20


def write_results(path: Path, rows: list[dict[str, Any]], device: str = "cpu", **more: Any) -> None:
    """Write rows, with the command, the commit, the date and the machine."""
    command = os.environ.get("EXML_BENCH_COMMAND") or command_line(Path(sys.argv[0]).name, names_only=True)
    save_json(path, {**provenance(device, command), "rows": rows, **more})


def with_stored(path: Path, cells: list[dict[str, Any]], same: Sequence[str]) -> list[dict[str, Any]]:
    """Cells, after the others of the file at ``path``; cells with the same values under the keys ``same`` are one."""
    stored = load_json(path).get("cells", []) if path.is_file() else []
    new = {tuple(cell[key] for key in same) for cell in cells}
    return [cell for cell in stored if tuple(cell[key] for key in same) not in new] + cells


def replace_rows(
    path: Path, rows: list[dict[str, Any]], same: Sequence[str], command: str, device: str = "cpu"
) -> None:
    """Put rows in the place of those with the same values under the keys ``same``; each row names its commit."""
    origin = provenance(device, command)
    old = load_json(path) if path.is_file() else {"rows": []}
    new = {tuple(row.get(key) for key in same) for row in rows}
    kept = [{"commit": old["commit"], **row} for row in old["rows"] if tuple(row.get(key) for key in same) not in new]
    save_json(path, {**origin, "rows": kept + [{**row, "commit": origin["commit"]} for row in rows]})


def rows_of_this_commit(path: Path, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows that a run which was interrupted has written at the commit of now, a tree without changes."""
    found = load_json(path) if path.exists() else {"commit": None}
    commit = provenance(device)["commit"]
    known = commit is not None and not commit.endswith("+changes")
    return found["rows"] if known and found["commit"] == commit else []


def as_row(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, 4) for key, value in asdict(t).items()} for name, t in timings.items()}
