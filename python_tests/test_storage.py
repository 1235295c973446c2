"""Files and folders: complete or absent, errors that name the file, no code from files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

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


def test_atomic_folder_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"

    def write(text: str, overwrite: bool = False, fail: bool = False) -> None:
        with storage.atomic_folder(target, overwrite) as temporary:
            (temporary / text).write_text(text)
            assert temporary.parent == target.parent and temporary.name.startswith(".")
            if fail:
                raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write("one", fail=True)
    assert os.listdir(target.parent) == []
    write("one")
    with pytest.raises(FileExistsError, match="folder exists already"):
        write("two")
    with pytest.raises(RuntimeError, match="halfway"):
        write("two", overwrite=True, fail=True)
    assert os.listdir(target) == ["one"]
    write("two", overwrite=True)
    assert os.listdir(target) == ["two"] and os.listdir(target.parent) == ["folder"]


def test_atomic_folder_restores_the_old_one_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("not now")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="not now"), storage.atomic_folder(tmp_path / "a", overwrite=True):
        pass
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["old"] and len(calls) == 3


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
    (tmp_path / "b.json").write_text('{"a": [NaN]}')
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON: NaN"):
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


def test_tensor_header(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(1)}
    storage.save_tensors(tmp_path / "t.safetensors", tensors)
    assert storage.tensor_header(tmp_path / "t.safetensors") == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("I64", ()),
    }
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad is not a valid safetensors file"):
        storage.tensor_header(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="none"):
        storage.tensor_header(tmp_path / "none")


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
    with pytest.raises(ValueError, match=r"h\.pt is damaged, or holds objects other than tensors and plain values"):
        storage.load_checkpoint(tmp_path / "h.pt")
    for content in (b"", b"garbage", b"PK\x03\x04"):
        (tmp_path / "g.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"g\.pt is damaged"):
            storage.load_checkpoint(tmp_path / "g.pt")


def test_an_interrupted_checkpoint_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer itself raises a RuntimeError, of a torn archive."""

    class Interrupted(io.BufferedWriter):
        written = 0

        def write(self, data: Any) -> int:
            Interrupted.written += 1
            if Interrupted.written == 3:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(storage, "open", lambda path, mode: Interrupted(io.FileIO(path, "w")), raising=False)
    with pytest.raises(KeyboardInterrupt):
        storage.save_checkpoint(tmp_path / "c.pt", {"x": torch.zeros(1000)})
    assert list(tmp_path.iterdir()) == []
