"""Command lines that must be refused in one line: ``command(number, folder)`` for any number."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

VALUES = [
    "",
    "-1",
    "0",
    "1e999",
    "nan",
    "9" * 400,
    "x" * 5000,
    "/nonexistent",
    "\ud800",
    "$x^$",
    "a=b=c",
    "=",
    "{",
    "[" * 2000,
    "../..",
    "None",
    "--help=",
    "\x00",
    "*",
    "1,2,,3",
    "torchvision/nothing",
    "timm/../x",
    "🙂",
    "1.5",
    "true",
]
# Commands with options whose every other value would be good; {data}, {out}, {none} and {file} are paths.
COMMANDS: dict[str, list[str]] = {
    "train-experts": [
        "--data",
        "--scenario",
        "--parts",
        "--classes-per-step",
        "--architecture",
        "--argument",
        "--epochs",
        "--lr",
        "--batch-size",
        "--schedule",
        "--augment",
        "--precision",
        "--seed",
        "--device",
        "--threads",
    ],
    "learn": [
        "--data",
        "--scenario",
        "--strategy",
        "--experts",
        "--steps",
        "--epochs",
        "--buffer",
        "--lr",
        "--set",
        "--seed",
        "--device",
        "--threads",
    ],
    "invert": [
        "--classes",
        "--per-class",
        "--recipe",
        "--steps",
        "--weights",
        "--input",
        "--set",
        "--judge",
        "--real",
        "--layer",
        "--statistics",
        "--device",
        "--seed",
    ],
    "distill": [
        "--student",
        "--images",
        "--data",
        "--classes",
        "--distillation",
        "--weights",
        "--input",
        "--recipe",
        "--set",
        "--device",
    ],
    "generator": ["--student", "--count", "--set", "--weights", "--input", "--data", "--device"],
    "incremental": ["--data", "--method", "--tasks", "--set", "--seeds", "--device"],
    "evaluate": ["--data", "--device"],
    "synthesize": ["--shards", "--per-shard", "--executor", "--classes", "--seed", "--recipe", "--set", "--workers"],
    "reproduce": ["--set", "--seeds", "--device", "--threads", "--strategies"],
    "catalogue": ["--class", "--min-accuracy", "--max-bytes", "--licence"],
}
SUBCOMMANDS = ["list", "find", "add", "verify", "export", "import", "new", "nothing"]


def command(number: int, folder: Path) -> list[str]:
    """The arguments of ``exml-fast``. ``folder`` receives small files that some of them name."""
    chance = random.Random(number)
    data, file = folder / "data.npz", folder / "file"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        x, y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
        np.savez(data, x_train=x, y_train=y, x_test=x, y_test=y)
        file.write_text("no file of ours")
    name = list(COMMANDS)[number % len(COMMANDS)]
    line = [name]
    if name == "catalogue":
        line.append(chance.choice(SUBCOMMANDS))
    places = [str(data), str(file), str(folder / "none"), str(folder), *VALUES]
    line += [chance.choice(places) for _ in range(chance.choice([0, 0, 0, 1, 2]))]
    for option in chance.sample(COMMANDS[name], min(len(COMMANDS[name]), chance.randrange(1, 4))):
        line += [option, chance.choice(places)]
    line += (
        ["--out", str(chance.choice([folder / f"out{number}", file]))] if name not in ("catalogue", "evaluate") else []
    )
    if chance.random() < 0.3:
        line.append(chance.choice(["--resume", "--overwrite", "--nothing", "--json"]))
    # Without a network no command gets as far as work.
    return [part for part in line if part != "digits"]
