"""Tables of students without data (Nayak 2021), and of accuracy against time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exml_fast.reproduction.preset import shortened, shorter
from exml_fast.reproduction.runner import load_preset
from exml_fast.storage import load_json
from readme_tables.common import OUR_SETTINGS, number, reached, source, table


def less_than_usual(path: Path, settings: dict[str, Any]) -> list[str]:
    """What a run had shorter than published, or than its preset."""
    preset = load_preset(path.stem.replace("-", "/", 1))
    return shortened(settings | {"usual": shorter(settings, preset), "published": preset["published"]})


def named(cell: str) -> str:
    """The name of a row. The paper calls its own method "Ours"."""
    return re.sub(r"^Ours\b", "Nayak's method", cell)


def nayak(path: Path) -> str:
    """Averages and totals; the file has the single classes too."""
    results = load_json(path)
    ours = path.stem.startswith("calibrated-")
    rows = [
        [named(row["cell"]) + OUR_SETTINGS * (ours and row["cell"] == "ZSKD"), number(row["paper"], 2), reached(row, 2)]
        for row in results["rows"]
        if not re.search(r"/C\d+$", row["cell"])
    ]  # fmt: skip
    seeds = results["rows"][0]["seeds"]
    less = less_than_usual(path, results["settings"])
    reduced = f"Reduced: {'; '.join(less)}. " if less else ""
    header = [f"{path.stem.removeprefix('nayak2021-')}, in %", "Nayak 2021"]
    header += ["ours" if seeds == 1 else f"ours, {seeds} seeds"]
    return table(header, rows) + "\n\n" + reduced + source(path, results)


def time_to_accuracy(path: Path) -> str:
    """Minutes to each mark, and the accuracy of the longest run, by method."""
    results = load_json(path)
    rows = []
    for row in results["rows"]:
        threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
        marks = [name for name in row if re.fullmatch(r"minutes_to_[\d.]+", name)]
        last = f"{reached(row)} after {row['minutes']:.0f}"
        rows.append([row["method"] + threads, row["known"], *(number(row[m]) for m in marks), last, str(row["seeds"])])
    data = path.stem.removeprefix("time-to-accuracy-")
    unit = "minutes of the GPU" if results["machine"]["gpu"] else "core minutes"
    header = [f"{data}: {unit} to", "known of the domain", *(f"{m.split('_')[-1]} %" for m in marks)]
    budgets = {row["method"]: " and ".join(f"{run['budget']:g}" for run in row["runs"]) for row in results["rows"]}
    listed = "; ".join(f"{method}: {minutes}" for method, minutes in budgets.items())
    note = (
        f"The teacher has {results['rows'][0]['teacher']:.1f} %. Times are those of the first evaluation that reaches "
        "the mark, means over the seeds. Each is the shortest over the budgets that were run, because a run's learning "
        f"rate falls to zero at the end of its budget ({listed}). The accuracy is that of the longest budget."
    )
    return (
        table([*header, "accuracy, %, after minutes", "seeds"], rows) + "\n\n" + note + "\n\n" + source(path, results)
    )
