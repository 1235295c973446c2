"""The pure parts of benches/time_to_accuracy.py: the clock of a run, steps from a budget, curves and rows."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Times = tuple[float, float]
"""Seconds of CPU time of all threads, and of wall time."""
Point = tuple[int, float, float, float]
"""Step of the student, CPU minutes, wall minutes, accuracy in percent."""
LEARN = "learn"


def now() -> Times:
    """CPU seconds of all threads of this process, and the wall clock."""
    return time.process_time(), time.monotonic()


class Clock:
    """The time that a run has worked, without evaluations, over all processes that it took.

    The time of each report of progress is appended to a file. A process that continues from a checkpoint repeats the
    work since that checkpoint, and its first report names a place that the file may hold: then the clock is set back to
    the time of that place. The repeated work, and the process's start, are therefore not counted twice.

    Args:
        path: of the file, one line of JSON a report.
        step: step of the student in the checkpoint that the run continues from.
        read: what the time is; :func:`now`.
    """

    def __init__(self, path: Path, step: int = 0, read: Callable[[], Times] = now) -> None:
        self.path, self.step, self._read = path, step, read
        self._known: dict[tuple[int, str, int], Times] = {}
        self._base: Times = (0.0, 0.0)
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    step, stage, at, *times = json.loads(line)
                except ValueError:  # the process was killed while it wrote this line
                    continue
                self._known[step, stage, at] = self._base = (times[0], times[1])
        self._continued = bool(self._known)
        self._begun = read()

    def times(self) -> Times:
        """CPU and wall seconds up to now."""
        here = self._read()
        return (self._base[0] + here[0] - self._begun[0], self._base[1] + here[1] - self._begun[1])

    def tick(self, stage: str, step: int) -> None:
        """A report of progress: ``step`` of ``stage`` is done."""
        if stage == LEARN:
            self.step = step
        place = (self.step, stage, step)
        if self._continued:
            self._continued = False
            if place in self._known:
                self._base, self._begun = self._known[place], self._read()
        self._known[place] = found = self.times()
        with self.path.open("a") as file:
            file.write(json.dumps([*place, *(round(value, 3) for value in found)]) + "\n")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of this block is not counted."""
        begun = self._read()
        try:
            yield
        finally:
            ended = self._read()
            self._begun = (self._begun[0] + ended[0] - begun[0], self._begun[1] + ended[1] - begun[1])


def fitted(
    seconds: float,
    step_seconds: float,
    round_seconds: float,
    *,
    share: float | None = None,
    until: float = 1.0,
    generate_every: int | None = None,
) -> dict[str, int]:
    """How many steps and rounds of new images fill a budget: "steps", "rounds", "generate_every".

    Args:
        seconds: the budget.
        step_seconds, round_seconds: of a step of the student, and of a round of new images.
        share: share of the budget that goes to rounds of images.
        until: share of the steps during which rounds are made.
        generate_every: steps between two rounds, instead of ``share`` and ``until``.

    Raises:
        ValueError: if neither or both of ``share`` and ``generate_every`` are given, or the budget has no room for a
            round and a step.
    """
    if (share is None) == (generate_every is None):
        raise ValueError(f"one of share and generate_every must be given, got {share!r} and {generate_every!r}")
    if seconds < step_seconds + round_seconds:
        raise ValueError(
            f"a budget of {seconds:.1f} s has no room for a round ({round_seconds:.1f} s) and a step "
            f"({step_seconds:.2f} s)"
        )
    if generate_every is not None:
        steps = max(1, int(seconds / (step_seconds + round_seconds / generate_every)))
        return {"steps": steps, "rounds": -(-steps // generate_every), "generate_every": generate_every}
    assert share is not None
    rounds = max(1, round(share * seconds / round_seconds))
    while rounds > 1 and rounds * round_seconds + step_seconds > seconds:
        rounds -= 1
    steps = max(1, int((seconds - rounds * round_seconds) / step_seconds))
    rounds = min(rounds, steps)
    return {"steps": steps, "rounds": rounds, "generate_every": max(1, int(until * steps / rounds))}


def scheduled(
    settings: Mapping[str, Any], minutes: float, costs: Callable[[], tuple[float, float]]
) -> dict[str, float]:
    """The schedule ("steps", "rounds", "generate_every") that the settings give, or that fills the budget.

    ``costs()`` measures the seconds of a step and of a round, which the result then names. It is not called where the
    settings decide everything.
    """
    given: dict[str, Any] = {name: settings[name] for name in ("steps", "rounds", "generate_every") if name in settings}
    if "steps" in given and "generate_every" in given:
        return {"rounds": -(-given["steps"] // given["generate_every"])} | given
    if "steps" in given and "rounds" in given:
        return given | {"generate_every": max(1, int(settings["until"] * given["steps"] / max(1, given["rounds"])))}
    step, a_round = costs()
    budget: dict[str, Any] = {name: settings[name] for name in ("share", "until") if name in settings}
    if "generate_every" in given:
        budget = {"generate_every": given["generate_every"]}
    elif "rounds" in given:
        budget["share"] = given["rounds"] * a_round / (60 * minutes)
    measured = {"step_seconds": round(step, 4), "round_seconds": round(a_round, 3)}
    return fitted(60 * minutes, step, a_round, **budget) | given | measured


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Mean over the seeds at each step that all of them have evaluated."""
    by_step = [{point[0]: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_step))) if by_step else []
    means = []
    for step in shared:
        rows = [points[step] for points in by_step]
        cpu, wall, accuracy = (statistics.fmean(row[column] for row in rows) for column in (1, 2, 3))
        means.append((step, cpu, wall, accuracy))
    return means


def minutes_to(curve: Sequence[Point], mark: float, column: int = 1) -> float | None:
    """Minutes at the first evaluation of at least ``mark`` %; None if there is none. Column 2 is wall time."""
    return next((point[column] for point in curve if point[3] >= mark), None)


def row_of(
    method: str, known: str, runs: Mapping[float, Sequence[Mapping[str, Any]]], marks: Sequence[float], cuda: bool
) -> dict[str, Any]:
    """The row of a method in the results.

    Args:
        runs: cells (one a seed: "seed", "curve" of points, "schedule", "settings", "done") by their budget in minutes.
        marks: accuracies whose times are wanted. Each is the shortest over the budgets, of the mean over the seeds.
        cuda: times are wall times.
    """
    column = 2 if cuda else 1
    found = []
    for budget, cells in sorted(runs.items()):
        curve = mean_curve([cell["curve"] for cell in cells])
        if not curve:
            continue
        values = [cell["curve"][-1][3] for cell in cells]
        found.append(
            {
                "budget": budget, "ours": statistics.fmean(values), "values": values,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "minutes": statistics.fmean(cell["curve"][-1][column] for cell in cells),
                "wall_minutes": statistics.fmean(cell["curve"][-1][2] for cell in cells),
                **{f"minutes_to_{mark:g}": minutes_to(curve, mark, column) for mark in marks},
                "finished": all(cell["curve"][-1][0] == cell["schedule"]["steps"] for cell in cells),
                "schedule": cells[0]["schedule"],
                "settings": cells[0]["settings"], "curve": _pairs(curve, column),
                "curves": {str(cell["seed"]): _pairs(cell["curve"], column) for cell in cells},
                "commits": sorted({commit for cell in cells for commit in cell["commits"]}),
            }
        )  # fmt: skip
    if not found:
        return {}
    row: dict[str, Any] = {"method": method, "known": known}
    for mark in marks:
        name = f"minutes_to_{mark:g}"
        row[name] = min((run[name] for run in found if run[name] is not None), default=None)
    longest = found[-1]
    cut = "" if longest["finished"] else f"; cut after {longest['minutes']:.0f} minutes"
    budgets = " and ".join(f"{run['budget']:g}" for run in found)
    row |= {name: longest[name] for name in ("ours", "values", "std", "budget", "minutes", "curve", "curves")}
    cells = runs[longest["budget"]]
    unit = "GPU" if cuda else "core"
    note = (
        f"the shortest times of budgets of {budgets} {unit} minutes; ours and curve are of {longest['budget']:g}{cut}"
    )
    row |= {"seeds": len(cells), "runs": found, "note": note}
    return row


def _pairs(curve: Sequence[Point], column: int) -> list[list[float]]:
    return [[round(point[column], 3), round(point[3], 3)] for point in curve]
