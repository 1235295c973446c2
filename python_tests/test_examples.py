"""The examples of DeepInversion: one runs, the other's settings are valid without its weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_efficientnet_lite0_has_valid_settings() -> None:
    found = runpy.run_path(str(EXAMPLES / "efficientnet_lite0.py"))
    recipe = found["recipe"](20, 10)
    assert recipe.coarse_steps == (20,) and recipe.steps == 10 and recipe.jitter == 30
    assert found["SPEC"].bounds()[0].flatten().tolist() == [-1, -1, -1] and len(found["CLASSES"]) == 10


@pytest.mark.slow
def test_a_student_learns_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "adaptive_deep_inversion.py"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("student: ") and float(last.split()[1].rstrip("%")) > 80
    assert (tmp_path / "dreamed_digits.png").stat().st_size > 0
