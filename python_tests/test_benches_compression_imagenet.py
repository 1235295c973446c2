"""The benchmark of EfficientNet-Lite0 in 8 bits, with a tiny network and a few images in their places."""

from __future__ import annotations

import importlib
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

pytest.importorskip("torchao")
BENCHES = Path(__file__).resolve().parents[1] / "benches"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    found = importlib.import_module("compression_imagenet")
    torch.manual_seed(0)
    network = create("cifar_resnet", depth=8, num_classes=10).eval()
    smaller = {
        "SPEC": xf.InputSpec(3, (32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "CLASSES": 10, "CALIBRATION": 4,
        "TESTED": 8, "BATCH": 4, "INVERSION": {"recipe": "deep_inversion", "steps": 2},
        "efficientnet_lite": lambda number: network,
    }  # fmt: skip
    for name, value in smaller.items():
        monkeypatch.setattr(found, name, value)
    # Compiling takes long; the graph computes the same.
    monkeypatch.setattr("exml_fast.transfer.quantization.result.compiled", lambda model: model)
    return found


def test_cells_become_rows(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0)
    np.savez(
        tmp_path / "few.npz", x_train=drawn.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(12) % 3, x_test=drawn.integers(0, 255, (9, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(9) % 3,
    )  # fmt: skip
    Image.fromarray(drawn.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    results = tmp_path / "results.json"

    def call(*words: str) -> list[dict[str, Any]]:
        options = ["--data", tmp_path / "few.npz", "--photographs", tmp_path / "photo.png", "--json", results]
        monkeypatch.setattr(
            sys, "argv", ["compression_imagenet.py", *map(str, options), "--folder", str(tmp_path / "made"), *words]
        )
        bench.main()
        rows: list[dict[str, Any]] = load_json(results)["rows"]
        return rows

    rows = call("--images", "noise", "real")
    assert [row["images"] for row in rows] == ["noise", "real"]
    rows = call("--seeds", "0", "1", "--images", "real", "deep-inversion")
    assert {row["images"]: row["seeds"] for row in rows} == {"noise": [0], "deep-inversion": [0, 1], "real": [0, 1]}
    for row in rows:
        for name, values in row["values"].items():
            assert all(0 <= value <= 100 for value in values), name
            assert row["agreement"][name] == pytest.approx(sum(values) / len(values))
    shown = importlib.import_module("readme_tables.compression").agreement_in_8_bits(results)
    assert all(name in shown for name in ("Tiny-ImageNet, enlarged", "DeepInversion", "noise", "up to 2 seeds"))
    before = results.stat().st_mtime_ns
    call("--seeds", "0", "--images", "real")  # finished cells are not run again
    assert results.stat().st_mtime_ns == before
