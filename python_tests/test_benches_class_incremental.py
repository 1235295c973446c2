"""The benchmark of class-incremental learners: cells are run once, and become rows."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exml_fast.storage import load_json

BENCHES = Path(__file__).resolve().parents[1] / "benches"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    found = importlib.import_module("class_incremental")
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    return found


def test_cells_become_rows(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    drawn = np.random.default_rng(0)
    np.savez(
        tmp_path / "few.npz", x_train=drawn.integers(0, 255, (60, 16, 16, 3), dtype=np.uint8),
        y_train=np.arange(60) % 4, x_test=np.zeros((8, 16, 16, 3), np.uint8), y_test=np.arange(8) % 4,
    )  # fmt: skip
    folder = tmp_path / "cells"

    def call(*words: str) -> None:
        options = ["--data", tmp_path / "few.npz", "--folder", folder, "--epochs", 1, "--arguments", "depth=8"]
        monkeypatch.setattr(sys, "argv", ["class_incremental.py", *map(str, options), *words])
        bench.main()

    cells = ("--cells", "lwf:b0-2:0", "lwf:b0-2:1", "fine-tuning:b0-2:0")
    call(*cells)
    call("--collect")
    found = load_json(tmp_path / "class-incremental-few.json")
    assert [(row["method"], row["seeds"]) for row in found["rows"]] == [("fine-tuning", [0]), ("lwf", [0, 1])]
    lwf = found["rows"][1]
    assert lwf["average"] == sum(lwf["values"]) / 2 and lwf["std"] is not None and len(lwf["curve"]) == 2
    assert lwf["bytes"] == 0 and not lwf["synthetic"] and not lwf["real_exemplars"] and lwf["reduced"]
    seconds = [cell["seconds"] for cell in found["cells"] if cell["method"] == "lwf"]
    assert lwf["seconds"] == pytest.approx(sum(map(sum, seconds)) / 2) and all(len(each) == 2 for each in seconds)
    assert (
        lwf["seconds_per_task"] == pytest.approx(sum(each[1] for each in seconds) / 2) and lwf["seconds_per_task"] > 0
    )
    shutil.rmtree(folder)
    capsys.readouterr()
    call(*cells)  # the committed cells are not run again
    assert capsys.readouterr().out == "" and not folder.exists()
    call("--cells", "lwf:b0-4:0")
    call("--collect")  # and stay
    rows = load_json(tmp_path / "class-incremental-few.json")["rows"]
    assert rows[:2] == found["rows"] and [row["protocol"] for row in rows] == ["b0-2", "b0-2", "b0-4"]
    call("--cells", "icarl:b0-2:0", "--set", "total=8")
    call("--collect")
    rows = {row["method"]: row for row in load_json(tmp_path / "class-incremental-few.json")["rows"]}
    assert rows["icarl"]["real_exemplars"] == rows["icarl-hybrid1"]["real_exemplars"] == 8
    assert rows["icarl-hybrid1"]["note"].endswith("the network of icarl") and rows["icarl"]["bytes"] > 0
