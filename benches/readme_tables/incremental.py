"""Tables of class-incremental learners (benches/class_incremental.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exml_fast.storage import load_json
from readme_tables.common import number, source, table

MB = 1e6


def class_incremental(path: Path) -> str:
    """A table for each protocol: accuracy, bytes and time of each method."""
    results = load_json(path)
    protocols = sorted({row["protocol"] for row in results["rows"]})
    parts = [protocol_table([row for row in results["rows"] if row["protocol"] == name]) for name in protocols]
    classes = results["rows"][0]
    notes = (
        f"{classes['data']}, ResNet-32; {classes['note']}. *Average* is the mean of the accuracies after each task, "
        "*last* that after the last one; ± is the deviation over seeds, each with its own class order. *Kept* counts "
        "what a method keeps beside the network, *in use* the old images (or what makes them) that a task learns from. "
        "Seconds of one thread beside other load."
    )
    return "\n\n".join([*parts, notes, source(path, results)])


def protocol_table(rows: list[dict[str, Any]]) -> str:
    """The rows of one protocol, best first."""
    lines = []
    for row in sorted(rows, key=lambda row: -row["average"]):
        deviation = "" if row["std"] is None else f" ± {row['std']:.1f}"
        old = "real" if row["real_exemplars"] and not row["synthetic"] else "synthetic" if row["synthetic"] else "–"
        lines.append([
            f"`{row['method']}`", old, f"{number(row['average'])}{deviation}", number(row["last"]),
            str(len(row["seeds"])), f"{row['bytes'] / MB:.1f} / {row['working_bytes'] / MB:.1f} MB",
            number(row["seconds_per_task"], 0, " s"), number(row["peak_mb"], 0, " MB"),
        ])  # fmt: skip
    header = [f"protocol {rows[0]['protocol']}", "old images", "average, %", "last, %", "seeds", "kept / in use"]
    return table([*header, "a task", "peak"], lines)
