"""What all tables share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exml_fast.storage import load_json

ROOT = Path(__file__).resolve().parents[2]


RESULTS = ROOT / "benches" / "results"


CHANGED = "+changes"
"""Ends the commit of results that were measured in a tree with changes."""


OUR_SETTINGS = " (our settings)"
"""Ends the name of a row whose images and student are made in another way than those of the paper's row."""


NETWORKS = {
    "cifar_resnet": "ResNet-20", "vgg11_bn_cifar": "VGG-11-BN", "resnet18_cifar": "ResNet-18",
    "resnet34_cifar": "ResNet-34",
}  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def commits(results: dict[str, Any]) -> list[str]:
    """Of the rows, where they have their own; otherwise of the file."""
    found = set()
    for row in results["rows"]:
        found.update(row.get("commits", [row.get("commit", results["commit"])]))
    return sorted(commit or "unknown" for commit in found or {results["commit"]})


def source(path: Path, results: dict[str, Any]) -> str:
    machine = results["machine"]
    instructions = f" ({machine['instructions']})" if "instructions" in machine else ""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    where = machine["gpu"] or f"{machine['cpu']}{instructions}, {threads}"
    commit = " and ".join(commits(results)).replace(CHANGED, ", with changes")
    return (
        f"`{results['command']}` at commit {commit} on {where}, torch {machine['torch']} "
        f"([{path.name}](benches/results/{path.name}))."
    )


def clean(path: Path) -> dict[str, Any]:
    """Results for a headline; ValueError if the tree had changes when they were measured."""
    results = load_json(path)
    for commit in commits(results):
        if commit == "unknown" or commit.endswith(CHANGED):
            raise ValueError(f"{path.name} cannot be a headline: it was measured at {commit}")
    return results


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def reached(row: dict[str, Any], digits: int = 1) -> str:
    """Mean and deviation over the seeds."""
    return number(row["ours"], digits) + ("" if row["std"] is None else f" ± {row['std']:.{digits}f}")
