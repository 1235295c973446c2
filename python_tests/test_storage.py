from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from exml_fast import storage


def test_atomic_path_replaces_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with storage.atomic_path(target) as temporary:
        temporary.write_text("one")
        assert not target.exists() and temporary.suffix == ".txt"
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError, match="halfway"), storage.atomic_path(target) as temporary:
        temporary.write_text("two")
        raise RuntimeError("halfway")
    assert target.read_text() == "one"
    assert os.listdir(target.parent) == ["file.txt"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "ü": "ж"}
    storage.save_json(tmp_path / "a.json", value)
    assert storage.load_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.save_json(tmp_path / "a.json", {"x": float("nan")})
    assert storage.load_json(tmp_path / "a.json") == value
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
        storage.load_json(tmp_path / "b.json")


def test_tensors_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "shared": base, "view": base[:, 1], "strided": base.t(), "int": torch.tensor(3)}
    storage.save_tensors(tmp_path / "t.safetensors", tensors, {"kind": "test"})
    loaded = storage.load_tensors(tmp_path / "t.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a valid safetensors file"):
        storage.load_tensors(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError, match="none"):
        storage.load_tensors(tmp_path / "none")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert storage.sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_checkpoints_hold_data_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"step": 3, "model": {"w": torch.randn(2)}, "list": [1.5, "x", None]}
    storage.save_checkpoint(tmp_path / "c.pt", state)
    loaded = storage.load_checkpoint(tmp_path / "c.pt")
    assert loaded["step"] == 3 and loaded["list"] == [1.5, "x", None]
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    storage.save_checkpoint(tmp_path / "h.pt", {"x": Hostile()})
    with pytest.raises(pickle.UnpicklingError):
        storage.load_checkpoint(tmp_path / "h.pt")
