"""The table of many architectures (benches/architectures.py)."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from exml_fast.storage import load_json
from readme_tables.common import number, source, table

UNLIKE = 0.7
"""Below this cosine the bfloat16 gradient has little in common with the eager one."""


def architectures(path: Path) -> str:
    """A summary in words, and a line for each architecture."""
    results = load_json(path)
    rows = results["rows"]
    works = [row for row in rows if "error" not in row]
    ways = Counter("without a BatchNorm call" if row.get("calls") == 0 else row["way"] for row in rows)
    float32 = [row["gain_float32"] for row in works]
    best = {row["architecture"]: best_gain(row) for row in works}
    slower = [name for name, gain in best.items() if gain < 1]
    unlike = sum(row["cosine_bfloat16"] < UNLIKE for row in works)
    summary = (
        f"{len(rows)} architectures with random weights: "
        + ", ".join(f"{count} {way}" for way, count in ways.most_common())
        + f". A step in float32 is a median of {range_of(float32)} than the eager one, which runs in "
        f"float32. In the faster of float32 and bfloat16 the median is {range_of(list(best.values()))}. "
        + (f"Slower in both: {', '.join(slower)}. " if slower else "")
        + f"The bfloat16 gradient has a cosine below {UNLIKE} in {unlike} networks. The columns "
        '"step" say how many times faster a step is. The column "logits" has the largest difference of a logit in '
        'float32, as a share of the largest logit. The column "cosine" compares the images\' gradient with the eager '
        "one, in float32 and bfloat16."
    )
    header = ["network", "size", "how", "BatchNorm calls", "step, float32", "step, bfloat16", "logits", "cosine"]
    return "\n\n".join([summary, table(header, [line(row) for row in rows]), source(path, results)])


def range_of(gains: list[float]) -> str:
    """The median, the least and the largest."""
    return f"{statistics.median(gains):.2f} times faster ({min(gains):.2f} to {max(gains):.2f})"


def best_gain(row: dict[str, Any]) -> float:
    """Of the two precisions."""
    return float(max(row["gain_float32"], row["gain_bfloat16"]))


def line(row: dict[str, Any]) -> list[str]:
    """An architecture."""
    if "error" in row:
        return [row["architecture"], "–", row["error"].replace("|", "/")[:100], *["–"] * 5]
    half = number(row["gain_bfloat16"], 2, "×") if row["bfloat16_runs_in"] == "bfloat16" else "runs in float32"
    return [
        row["architecture"], f"{row['size']}²", row["way"], str(row["calls"]), number(row["gain_float32"], 2, "×"),
        half, f"{row['logits_float32']:.0e}", f"{row['cosine_float32']:.4f} / {row['cosine_bfloat16']:.3f}",
    ]  # fmt: skip
