from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exml_fast.data import load
from exml_fast.data.image_files import read_image
from exml_fast.data.npz import read_npz


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    x, y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | changes


def header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(128 - 10 - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def with_raw(path: Path, raw: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """An .npz file whose x_train is ``raw``."""
    np.savez(path, **arrays())
    with zipfile.ZipFile(path) as old:
        others = {name: old.read(name) for name in old.namelist() if name != "x_train.npy"}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in (others | {"x_train.npy": raw}).items():
            new.writestr(name, content)
    return path


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    given = arrays(x_train=np.asfortranarray(np.arange(256, dtype=np.float32).reshape(4, 8, 8) / 256))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **given)
        found = read_npz(tmp_path / "a.npz", list(given))
        assert all(np.array_equal(found[key], given[key]) for key in given)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header("(10000000000, 8, 8)") + b"x", "is damaged"),
        (header("(4, 8, 8)") + bytes(255), "is damaged"),
        (header("(-4, 8, 8)"), "x_train"),
        (header("(4, 8, 8)", "|O") + bytes(256), "must be plain numbers"),
        (header("(" + "1," * 100 + ")") + b"x", "must|dims|NDIM|dimension"),
        (header("import os"), "a.npz"),
        (b"", "a.npz"),
        (b"\x80\x04K\x01.", "a.npz"),
        (bytes(1000), "a.npz"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(str(with_raw(tmp_path / "a.npz", raw)))


def test_decompression_bombs_are_not_unpacked(tmp_path: Path) -> None:
    size = 300_000_000
    file = with_raw(tmp_path / "a.npz", header(f"({size // 64}, 8, 8)") + bytes(size), zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="taken for a decompression bomb"):
        load(str(file))


def test_content_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    monkeypatch.setattr("exml_fast.data.npz.free_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"the arrays need 0\.0 GB"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), os.urandom(1000)])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 10**9, 0, 0]), r"every label from 0 to 1000000000; \[1, 2, 3, 4, 5\] do not occur"),
        (np.array([0, 2**63 - 2, 0, 0]), "do not occur"),
        (np.array([0, 2**64 - 1, 0, 0], np.uint64), "must fit into int64"),
        (np.array([0, -1, 0, 0]), "none below 0"),
    ],
)
def test_absurd_labels_are_refused_at_once(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays(y_train=labels))
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "a.npz"))


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_damaged_and_enormous_images_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    good = png(8, 8)
    file.write_bytes(good)
    assert torch.equal(read_image(file, True, None), torch.zeros(1, 8, 8, dtype=torch.uint8))
    for bad in (b"", good[:40], b"GIF89a", png(9000, 8000)):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
            read_image(file, False, None)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="got a FIFO"):
        read_image(file, False, None)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.png", False, None)


def test_a_folder_with_a_damaged_image_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "a.png").write_bytes(png(8, 8))
    assert load(str(tmp_path)).class_names == ["cat", "dog"]
    (tmp_path / "train/dog/b.png").write_bytes(png(8, 8)[:40])
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        load(str(tmp_path))
