"""Tables of results on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["print_rows"]


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    """The table of results on stdout."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("accuracy, %", "time, s", "peak MB"):
        table.add_column(name, justify="right")
    paper = any(row["paper"] is not None for row in rows)
    if paper:
        table.add_column("paper, %", justify="right")
    table.add_column("uses")
    for row in rows:
        spread = f" ± {row['std']:.2f}" if row["std"] is not None else ""
        published = ["" if row["paper"] is None else f"{row['paper']:.2f}"] if paper else []
        cells = [f"{row['ours']:.2f}{spread}", f"{row['seconds']:.1f}", f"{row['peak_mb']:.0f}", *published]
        table.add_row(row["name"], *cells, row["note"])
    Console(highlight=False).print(table)
