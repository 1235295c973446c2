"""`learn --preset`: options override a preset, and a wrong preset is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_experts import save_npz
from small_presets import call

from exml_fast.reproduction.stream import learn_preset
from exml_fast.storage import load_json


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz")


def test_learn_from_a_preset_and_options_go_before_it(npz: Path, tmp_path: Path) -> None:
    common = ("learn", "--preset", "carta2022/mnist-nc", "--data", npz, "--strategy", "replay", "--json")
    call(*common, "--steps", 7, "--buffer", 20, "--epochs", 1, "--distillation", "lr=0.5", "--out", tmp_path)
    stored = load_json(tmp_path / "results.json")
    settings = stored["settings"]
    assert settings["distillation"] == {
        **learn_preset("carta2022/mnist-nc")["distillation"], "steps": 7, "buffer_size": 20, "lr": 0.5
    }  # fmt: skip
    assert (
        settings["strategies"] == ["replay"]
        and settings["experts"]["epochs"] == 1
        and settings["experts"]["lr"] == 0.01
    )
    assert "7 of 30000 distillation steps" in stored["rows"][0]["note"]


def test_ones_own_preset_and_what_is_wrong_with_it(npz: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    text = f'task = "learn"\ndata = "{npz}"\nexperts.epochs = 1\nscenario = "joint"\nstrategies = ["replay"]\n'
    own.write_text(f"{text}[distillation]\nsteps = 2\nbuffer_size = 8\n")
    rows = json.loads(call("learn", "--preset", own, "--json", "--out", tmp_path / "out").stdout)["rows"]
    assert [row["cell"] for row in rows] == ["quadrants/Joint/Replay ED", "quadrants/Joint/Oracle"]
    for line, message in (
        ("colour = 1", "unknown field 'colour'"),
        ("partz = 1", "unknown field 'partz' (did you mean 'parts'?)"),
        ("parts = 'many'", "parts must be an integer, got 'many'"),
        ("experts.rate = 1.0", "unknown field 'rate'"),
        ("experts.lr = -1.0", "experts.lr must be positive, got -1.0"),
        ("strategies = ['magic']", "strategies must be one of"),
        ("background = 'noise'", "background must be one of"),
        ("background = 'natural-fields'", "got 'natural-fields' and 0.0 for model-inversion"),
        ("distillation = { background_share = 0.5, targets = 'stored' }", "got None and 0.5 for model-inversion"),
        ("typicality = 0.5", "typicality must be 0 where no method has a calibration, got 0.5"),
        ("typicality = -1.0", "typicality must be at least 0, got -1.0"),
        ("inversion.recipe = 'magic'", "recipe must be one of"),
        ("distillation = { rate = 3 }", "unknown field 'rate'"),
        ("seeds = 3", "unknown field 'seeds'"),
    ):
        own.write_text(f'task = "learn"\n{line}\n')
        assert message in call("learn", "--preset", own, "--out", tmp_path / "bad", code=2).output
    assert "is for task 'zskd'" in call("learn", "--preset", "digits/zskd", code=2).output
    assert not (tmp_path / "bad").exists()
