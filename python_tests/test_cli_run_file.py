"""What becomes of the files in a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_experts import save_npz
from typer.testing import CliRunner

from exml_fast.cli.app import app
from exml_fast.storage import load_json


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def train(npz: Path, out: Path, *more: object, code: int = 0) -> str:
    return call("train-experts", "--data", npz, "--epochs", 1, "--out", out, *more, code=code)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return Path(save_npz(tmp_path / "quadrants.npz"))


def test_a_finished_run_is_replaced_and_files_of_the_user_stay(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(npz, out)
    (out / "notes.txt").write_text("mine")
    (out / "expert_01" / "notes.txt").write_text("mine")
    train(npz, out, "--parts", 1, "--scenario", "joint")
    assert (out / "notes.txt").read_text() == (out / "expert_01" / "notes.txt").read_text() == "mine"
    assert not (out / "expert_02").exists()


def test_files_of_other_making_are_not_replaced(npz: Path, tmp_path: Path) -> None:
    for name in ("expert_01/card.json", "checkpoints/mine", "results.json"):
        out = tmp_path / name.replace("/", "_")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        assert "was not written by a run" in train(npz, out, code=2)
        assert (out / name).read_text() == "mine" and not (out / "run.json").exists()


def test_a_run_of_another_command_is_not_replaced(npz: Path, tmp_path: Path) -> None:
    train(npz, tmp_path / "out")
    for more in ((), ("--overwrite",)):
        said = call("learn", "--data", npz, "--out", tmp_path / "out", *more, code=2)
        assert "holds a run of 'train-experts': give another --out" in said
    assert (tmp_path / "out" / "expert_01" / "card.json").is_file()


DAMAGE: dict[str, Any] = {
    "empty": b"", "text": b"hello", "binary": b"\xff\x00", "list": b"[]", "null": b"null", "number": b"1e999",
    "version": b'{"version": 2, "command": "train-experts", "settings": {}}',
    "bool": b'{"version": true, "command": "train-experts", "settings": {}}',
    "command": b'{"version": 1, "command": 3, "settings": {}}',
    "settings": b'{"version": 1, "command": "train-experts", "settings": []}',
    "twice": b'{"version": 1, "version": 1, "command": "train-experts", "settings": {}}',
    "deep": b"[" * 100_000, "long": b'"' + b"x" * 100_000 + b'"',
    "key": json.dumps({"x" * 100_000: 1}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*DAMAGE, "fifo", "folder", "link"])
def test_a_damaged_run_file_is_one_line(npz: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    file = out / "run.json"
    out.mkdir()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("nowhere")
    else:
        file.write_bytes(DAMAGE[kind])
    for more in ((), ("--overwrite",)):
        said = train(npz, out, *more, code=2)
        assert said.startswith("error: ") and len(said.splitlines()) == 1 and len(said) < 2500
        assert "run.json is damaged or no file of a run" in said
    assert os.listdir(out) == ["run.json"]


@pytest.mark.parametrize("settings", [{}, {"study": 1}, {"study": {}, "options": {}, "threads": 0}])
def test_a_resumed_run_with_damaged_settings_is_one_line(npz: Path, tmp_path: Path, settings: Any) -> None:
    out = tmp_path / "out"
    train(npz, out)
    (out / "run.json").write_text(json.dumps(load_json(out / "run.json") | {"settings": settings}))
    said = call("train-experts", "--out", out, "--resume", code=2)
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and "run.json, settings" in said


def test_out_must_be_a_folder(npz: Path, tmp_path: Path) -> None:
    assert "--out must be a folder" in train(npz, npz, code=2)
