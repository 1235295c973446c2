"""The benchmark of compression: cells on a tiny expert, image sets made once, speed, rows."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import exml_fast as xf
from exml_fast.models import create
from exml_fast.storage import load_json

pytest.importorskip("torch_pruning")
pytest.importorskip("torchao")
BENCHES = Path(__file__).resolve().parents[1] / "benches"
SPEC = xf.InputSpec(3, (16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    found = importlib.import_module("compression")
    images = importlib.import_module("compression_images")
    monkeypatch.setitem(images.SETS, "expert", (2, {"steps": 2}))
    monkeypatch.setattr(images, "STUDENT_STEPS", 2)
    monkeypatch.setattr(images, "NOISE_IMAGES", 32)
    monkeypatch.setattr(found, "FINE_TUNING", found.FINE_TUNING | {"steps": 2, "batch_size": 8})
    for name, value in {"ROUNDS": 3, "THREADS": 1, "BATCH": 8}.items():
        monkeypatch.setattr(found, name, value)
    # Compiling takes long; the graph computes the same.
    for module in ("exml_fast.transfer.quantization.result", "compression"):
        monkeypatch.setattr(sys.modules[module], "compiled", lambda model: model)
    start = xf.training.Loop.__init__

    def short(self: Any, model: Any, loss: Any, config: xf.Training, **options: Any) -> None:
        start(self, model, loss, config.replace(steps=2, batch_size=8), **options)

    monkeypatch.setattr(xf.training.Loop, "__init__", short)
    return found


def test_cells_become_rows(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = create("cifar_resnet", depth=8, num_classes=3)
    expert = xf.Expert.wrap(
        network, SPEC, [0, 1, 2], architecture="cifar_resnet", arguments={"depth": 8, "num_classes": 3}
    )
    expert.save(tmp_path / "expert")
    drawn = np.random.default_rng(0)
    np.savez(
        tmp_path / "few.npz", x_train=drawn.integers(0, 255, (60, 16, 16, 3), dtype=np.uint8),
        y_train=np.arange(60) % 3, x_test=np.zeros((9, 16, 16, 3), np.uint8), y_test=np.arange(9) % 3,
    )  # fmt: skip
    Image.fromarray(drawn.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    given, folder = tmp_path / "cells", tmp_path / "cells" / "validation"

    def call(*words: str) -> None:
        options = ["--data", tmp_path / "few.npz", "--teacher", tmp_path / "expert", "--folder", given]
        options += ["--photographs", tmp_path / "photo.png", "--validation"]
        monkeypatch.setattr(sys, "argv", ["compression.py", *map(str, options), *words])
        bench.main()

    cells = [
        f"expert:{task}:{images}:100"
        for task, images in (
            ("prune-filters-20", "adaptive"), ("int8", "deep-inversion"), ("w4a4", "real"),
        )
    ]  # fmt: skip
    call("--networks", "expert", "--tables")
    table = load_json(folder / "expert" / "latency.json")
    assert table and all(milliseconds > 0 for milliseconds in table.values())
    call("--cells", *cells)
    made = folder / "images" / "expert"
    assert sorted(path.parent.name for path in made.glob("*/result.json")) == [
        "adaptive-seed100",
        "deep-inversion-seed100",
    ]
    first, second = (xf.Result.load(made / f"{name}-seed100") for name in ("deep-inversion", "adaptive"))
    assert len(first) == len(second) == 6 and torch.equal(first.images[:3], second.images[:3])
    cell = load_json(folder / "expert" / "prune-filters-20" / "adaptive" / "seed100" / "cell.json")
    assert cell["left"]["filters"] <= 0.8 and cell["test_images"] == 6  # a tenth of the training images
    call("--measure", cells[0], cells[1])
    with pytest.raises(SystemExit):
        call("--measure", cells[2])
    call("--collect")
    rows = {row["task"]: row for row in load_json(folder / "compression.json")["rows"]}
    assert list(rows) == ["prune-filters-20", "int8", "w4a4"]
    pruned = rows["prune-filters-20"]
    assert pruned["synthetic"] == pruned["adaptive"] == cell["accuracy"]
    assert pruned["faster"]["1"]["ratio"] > 0 and pruned["timed"]["networks"] == 1
    assert rows["int8"]["bytes"] < rows["int8"]["float_bytes"] / 2 and rows["w4a4"]["faster"] is None
    assert rows["w4a4"]["before"].keys() == {"real"} and rows["int8"]["synthetic"] == rows["int8"]["deep_inversion"]
    shown = importlib.import_module("readme_tables.compression").compression(folder / "compression.json")
    assert all(f"| {task} |" in shown for task in ("−20 % filters", "8 bits", "4 bits")) and "4 bits before" in shown
    times = [path.stat().st_mtime_ns for path in folder.rglob("cell.json")]
    call("--cells", *cells)  # finished cells are not run again
    assert [path.stat().st_mtime_ns for path in folder.rglob("cell.json")] == times
    shutil.rmtree(folder / "expert" / "int8")
    call("--collect")  # cells that were collected stay
    assert {row["task"]: row for row in load_json(folder / "compression.json")["rows"]} == rows


@pytest.mark.parametrize(
    "cell", ["expert:int8:noise", "vgg:int8:noise:0", "expert:int4:noise:0", "expert:int8:noise:7"]
)
def test_cells_are_checked(cell: str, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compression.py", "--validation", "--cells", cell])
    with pytest.raises(SystemExit):
        bench.main()


def test_what_is_recovered_begins_at_the_ranges_of_real_images(bench: Any) -> None:
    found = bench.recovered({"real": 60.0, "noise": 20.0}, {"real": 80.0, "noise": 70.0, "adaptive": 78.0})
    assert found == {"real": 1.0, "noise": 0.5, "adaptive": 0.9}
    assert bench.recovered({"noise": 20.0}, {"noise": 70.0}) is None
    assert bench.recovered({"real": 60.0}, {"real": 60.0}) is None  # nothing was gained


def test_collecting_needs_no_images(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["compression.py", "--collect", "--folder", str(tmp_path / "empty")])
    bench.main()
    assert load_json(tmp_path / "compression.json")["rows"] == []


def test_cells_of_photographs_need_some(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compression.py", "--cells", "resnet20:int8:photographs:0"])
    with pytest.raises(SystemExit):
        bench.main()
