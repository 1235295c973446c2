"""Tables of faults survived, and of the cost of scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exml_fast.storage import load_json
from readme_tables.common import number, source, table


def reliability(path: Path) -> str:
    """Cases of each test, and the longest and largest process."""
    results = load_json(path)
    rows = [
        [
            row["test"],
            f"{row['tried']:,}",
            f"{row['failed']:,}",
            number(row["worst_seconds"]),
            number(row["worst_mb"], 0),
        ]
        for row in results["rows"]
    ]
    header = ["test", "tried", "failed", "longest process, s", "most memory over the base, MB"]
    return table(header, rows) + "\n\n" + source(path, results)


def cluster(make: Callable[[list[dict[str, Any]]], str]) -> Callable[[Path], str]:
    """A table of benches/cluster_cost.py, with its source."""

    def shown(path: Path) -> str:
        results = load_json(path)
        return make(results["rows"]) + "\n\n" + source(path, results)

    return shown
