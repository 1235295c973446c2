"""`exml-fast doctor`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from exml_fast.cli import doctor
from exml_fast.cli.app import app

ROOT = Path(__file__).resolve().parents[1]


def test_it_prints_every_section_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans").write_bytes(bytes(3 << 20))
    monkeypatch.setenv("EXML_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    for section in (*doctor.findings(), "What to do"):
        assert f"\n{section}\n" in "\n" + done.output
    assert torch.__version__ in done.output
    assert f"{tmp_path} (3 MiB)" in done.output
    assert "HF_HUB_OFFLINE is set: nothing is downloaded" in done.output


def test_programs_that_are_missing_or_fail_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {"c++": 0, "ninja": 1}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} 12.3.4\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "COMPILED", False)
    monkeypatch.setattr(doctor, "WHY_NOT", "the extension is not compiled")
    assert doctor.findings()["Compiler"] == {"c++": "c++ 12.3.4", "ninja": "not found", "nvcc": "not found"}
    assert any(
        line.startswith("The fast ops are not in use: the extension is not compiled") for line in doctor.advice()
    )
    (tmp_path / "c++").unlink()
    assert any("There is no C++ compiler" in line for line in doctor.advice())


def test_extras_are_read_from_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [("cli", ["typer"]), ("timm", ["a-package-that-is-nowhere"])]
    monkeypatch.setattr(doctor, "_requirements", lambda: iter(wanted))
    assert doctor.findings()["Extras"] == {"cli": "installed", "timm": "missing a-package-that-is-nowhere"}
    assert doctor.optional() == ['timm: pip install "exml_fast[timm]"']


def test_it_runs_without_the_extension() -> None:
    environment = {**os.environ, "EXML_EXTENSION": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "exml_fast", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and "PyTorch's (EXML_EXTENSION=0 turns the compiled extension off)" in done.stdout
