from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from exml_fast.reading import opened, parse_json, read_limited, regular_file, shortened


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' must not be repeated"),
        ("[1e999]", "must fit into float64, got 1e999"),
        ("[-1e400]", "must fit into float64"),
        ("[1e-999]", "must fit into float64"),
        ("9" * 400, "must fit into float64, got 999"),
        ("9" * 5000, "must fit into float64, got 999"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        (r'["\ud800"]', "surrogates must come in pairs"),
        (r'{"\udfff": 1}', "surrogates must come in pairs"),
        ("[" * 65 + "]" * 65, "at most 64 deep"),
        ('{"a":' * 50_000, "at most 64 deep"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_ambiguous_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_ordinary_json_is_read() -> None:
    assert parse_json(r'{"a": [1, -2.5e3, 0.0, 0e5, null, true, "\ud83d\ude00"]}') == {
        "a": [1, -2500.0, 0.0, 0.0, None, True, "😀"]
    }
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("123456789012345678901234567890") == 123456789012345678901234567890


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    file, inside, folder = tmp_path / "file", tmp_path / "folder/link", tmp_path / "folder"
    folder.mkdir()
    file.write_bytes(b"12345")
    inside.symlink_to(file)
    assert regular_file(inside) == file.resolve()
    with pytest.raises(ValueError, match="must not be a link out of its folder"):
        regular_file(inside, within=folder)
    (folder / "own").write_bytes(b"1")
    (folder / "near").symlink_to("own")
    assert read_limited(folder / "near", 1, within=folder) == b"1"
    with pytest.raises(ValueError, match="must have at most 4 bytes, got 5"):
        read_limited(file, 4)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "circle").symlink_to("circle")
    for name, message in (
        ("fifo", "got a FIFO"), ("socket", "got a socket"), ("folder", "got a folder"), ("circle", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message), opened(tmp_path / name):
            pass
    with pytest.raises(ValueError, match="must be a regular file, got a device"), opened("/dev/zero"):
        pass
    with pytest.raises(FileNotFoundError, match="no such file"), opened(tmp_path / "nothing"):
        pass


def test_long_texts_are_shortened() -> None:
    assert shortened("abc", 3) == "abc" and shortened("abcd", 3) == "ab…"
