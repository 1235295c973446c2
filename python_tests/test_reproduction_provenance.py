"""What is recorded beside results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from exml_fast.reproduction import provenance as provenance_module
from exml_fast.reproduction.provenance import provenance


def test_results_are_no_changes_of_the_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    module = tmp_path / "exml_fast" / "reproduction" / "provenance.py"
    results = tmp_path / "benches" / "results" / "rows.json"
    for path in (module, results):
        path.parent.mkdir(parents=True)
        path.write_text("before")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance_module, "__file__", str(module))
    results.write_text("after")
    clean = provenance("cpu")["commit"]
    assert clean and not clean.endswith("+changes")
    module.write_text("after")
    assert provenance("cpu")["commit"] == f"{clean}+changes"


def test_the_instructions_of_the_cpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert provenance()["machine"]["instructions"] == "AVX512, bf16"
