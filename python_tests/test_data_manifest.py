import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exml_fast.data.manifest import LINE, Entry, Manifest

DIGEST = "ab" * 32


def entry(index: int) -> Entry:
    return Entry(index, 10 + index, 1000 * index, f"{index:064x}")


def filled(path: Path, count: int = 6, shards: int = 10) -> Path:
    with Manifest(path, DIGEST, shards) as manifest:
        for index in range(count):
            manifest.add(entry(index))
    return path


def test_entries_are_read_back(tmp_path: Path) -> None:
    manifest = Manifest(filled(tmp_path / "m"), DIGEST, 10)
    assert [manifest[i] for i in manifest.finished.tolist()] == [entry(i) for i in range(6)]
    assert len(manifest) == 6 and 5 in manifest and 6 not in manifest and -1 not in manifest and 99 not in manifest
    with pytest.raises(KeyError, match="shard 7 is not finished"):
        manifest[7]


def test_each_entry_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m", DIGEST, 10) as manifest:
        manifest.add(entry(3))
        assert Manifest(tmp_path / "m", DIGEST, 10)[3] == entry(3)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 6 * LINE))
def test_a_file_cut_anywhere_keeps_all_whole_lines_and_can_go_on(tmp_path_factory, cut: int) -> None:
    path = filled(tmp_path_factory.mktemp("cut") / "m")
    whole = (os.path.getsize(path) - cut) // LINE - 1
    os.truncate(path, os.path.getsize(path) - cut)
    assert len(Manifest(path, DIGEST, 10)) == whole
    with Manifest(path, DIGEST, 10) as manifest:
        manifest.add(entry(8))
    again = Manifest(path, DIGEST, 10)
    assert again.finished.tolist() == [*range(whole), 8] and again[8] == entry(8)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(LINE, 7 * LINE - 1), byte=st.integers(0, 255))
def test_a_changed_byte_costs_one_entry_at_most(tmp_path_factory, place: int, byte: int) -> None:
    path = filled(tmp_path_factory.mktemp("flip") / "m")
    content = bytearray(path.read_bytes())
    same = content[place] == byte
    content[place] = byte
    path.write_bytes(content)
    manifest = Manifest(path, DIGEST, 10)
    assert len(manifest) == (6 if same else 5) and manifest.damaged == (0 if same else 1)
    assert all(manifest[i] == entry(i) for i in manifest.finished.tolist())


def test_another_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the manifest of this job"):
        Manifest(filled(tmp_path / "m"), "cd" * 32, 10)


def test_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m", DIGEST, 10) as manifest, pytest.raises(ValueError, match="shard must be below 10"):
        manifest.add(entry(10))


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path) -> None:
    later = entry(2)._replace(sha256="f" * 64)
    with Manifest(filled(tmp_path / "m"), DIGEST, 10) as manifest:
        manifest.add(later)
    assert Manifest(tmp_path / "m", DIGEST, 10)[2] == later


def test_a_large_manifest_opens_fast(tmp_path: Path) -> None:
    lines = filled(tmp_path / "m", 10).read_bytes()
    (tmp_path / "m").write_bytes(lines[:LINE] + lines[LINE:] * 10_000)
    begun = time.perf_counter()
    manifest = Manifest(tmp_path / "m", DIGEST, 10)
    assert time.perf_counter() - begun < 5 and manifest.damaged == 0
    assert np.array_equal(manifest.images, np.arange(10) + 10)
