"""The table of pruning on the quadrants, by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import save_npz
from small_presets import call, options

from exml_fast.continual import Expert
from exml_fast.inversion import Result
from exml_fast.reproduction.runner import check, load_preset, run
from exml_fast.storage import load_checkpoint

pytest.importorskip("torch_pruning")
ARGUMENTS = {"activation": "relu", "batch_norm": True, "in_channels": 1}
SHORT: dict[str, Any] = {
    "teacher.architecture": "lenet5", "teacher.arguments": ARGUMENTS, "teacher.steps": 20,
    "teacher.precision": "float32", "count": 8, "recipe_steps": 2, "pruning": {"steps": 1, "batch_size": 8, "chunk": 1},
    "fine_tuning.steps": 2, "fine_tuning.batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "cifar10.npz"))


def test_table_4_by_command(npz: str, tmp_path: Path) -> None:
    arguments = ["--out", tmp_path, "--seeds", 1, "--json", "--report", *options({"data": npz} | SHORT)]
    summary = json.loads(call("reproduce", "yin2020/table4", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    names = ("No finetune", "Real images", "Noise", "Natural fields", "DeepInversion", "Adaptive DeepInversion")
    assert [cell for cell, row in rows.items() if "ours" in row and row["ours"] is not None] == [
        "Base model",
        *(f"20 %/{name}" for name in names),
    ]
    folder = tmp_path / "parts" / "seed_0"
    first, second = Result.load(folder / "deep-inversion"), Result.load(folder / "adaptive")
    assert len(first) == len(second) == 8 and torch.equal(first.images[:4], second.images[:4])
    assert not torch.equal(first.images[4:], second.images[4:])
    base = Expert.load(folder / "teacher").model
    for name in ("Noise", "No-finetune"):
        state = load_checkpoint(folder / f"{name}-20" / "network.pt")["state"]
        assert sum(t.numel() for t in state.values()) < sum(t.numel() for t in base.state_dict().values())
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "Adaptive DeepInversion" in page


def test_figures_stand_beside_the_paper_s_network_alone(npz: str) -> None:
    kept = load_preset("yin2020/table4", {"data": npz})
    assert kept["paper"]["20 %/DeepInversion"] == 72.0
    assert "paper" not in load_preset("yin2020/table4", {"teacher.architecture": "lenet5"})


def test_finished_cells_are_kept(npz: str, tmp_path: Path) -> None:
    preset = load_preset("yin2020/table4", {"data": npz, "rows": ["Noise", "Natural fields"]} | SHORT)
    rows, outcome = run(preset, tmp_path)
    assert [row["cell"] for row in rows] == ["Base model", "20 %/Noise", "20 %/Natural fields"]
    assert set(outcome.seconds) == {"teacher", "Noise, 20 %", "Natural fields, 20 %"}
    folder = tmp_path / "parts" / "seed_0"
    (folder / "outcome.json").unlink()
    kept = (folder / "Noise-20" / "network.pt").stat().st_mtime_ns
    shutil.rmtree(folder / "Natural-fields-20")
    again, _ = run(preset, tmp_path)
    assert [row["ours"] for row in again] == [row["ours"] for row in rows]
    assert (folder / "Noise-20" / "network.pt").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": [1.0]}, "ratios"),
        ({"rows": ["Words"]}, "rows"),
        ({"recipe": "deep_dream/nowhere"}, "deep_dream/nowhere"),
        ({"pruning": {"chunk": 0}}, "pruning: chunk must be at least 1"),
        ({"fine_tuning": {"stepps": 3}}, "fine_tuning: unknown field 'stepps'"),
        ({"teacher": {"architecture": "cifar_resnet"}}, "teacher: the network does not take images"),
        ({"ratio": 0.2}, "'ratio' is not known to task 'prune'"),
    ],
)
def test_bad_presets_are_named(npz: str, change: dict[str, Any], message: str) -> None:
    base = {name: value for name, value in ({"data": npz} | SHORT).items() if name.split(".")[0] not in change}
    with pytest.raises(ValueError, match=message):
        check(load_preset("yin2020/table4", base | change))
