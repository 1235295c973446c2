import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from small_jobs import small_teacher

from exml_fast.continual import Catalogue, Expert
from exml_fast.continual.index import Index


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the plans of convolutions are measured anew."""
    monkeypatch.setenv("EXML_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three experts, written long ago."""
    for number in range(3):
        small_teacher(number).save(tmp_path / "experts" / f"expert_{number}")
    return settled(tmp_path / "experts")


def settled(folder: Path) -> Path:
    """Wait until the times of all files can be told from later ones."""
    newest = max(file.stat().st_ctime for file in folder.glob("*/*"))
    time.sleep(max(0.0, newest + 2.1 - time.time()))
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the experts whose cards were read, and of those that were loaded."""
    from exml_fast.continual import catalogue

    made: list[str] = []
    read, load = catalogue.Entry.read, Expert.load
    monkeypatch.setattr(catalogue.Entry, "read", lambda path: (made.append(f"read {Path(path).name}"), read(path))[1])
    monkeypatch.setattr(Expert, "load", lambda path: (made.append(f"load {Path(path).name}"), load(path))[1])
    return made


def test_unchanged_experts_are_read_once_also_by_another_process(folder: Path, loads: list[str]) -> None:
    first = Catalogue(folder).experts
    assert loads == ["read expert_0", "read expert_1", "read expert_2"]
    again = Catalogue(folder)
    assert again.experts == first and again.find(classes=["3"]) == first and len(again) == 3
    assert len(loads) == 3


def test_changed_new_and_removed_experts_are_seen(folder: Path, loads: list[str]) -> None:
    catalogue = Catalogue(folder)
    assert len(catalogue) == 3
    loads.clear()
    small_teacher(7).save(folder / "expert_1")
    small_teacher(8).save(folder / "expert_9")
    shutil.rmtree(folder / "expert_0")
    assert [entry.name for entry in catalogue] == ["expert_1", "expert_2", "expert_9"]
    assert [entry.name for entry in Catalogue(folder)] == ["expert_1", "expert_2", "expert_9"]
    assert set(loads) == {"read expert_1", "read expert_9"}
    assert catalogue["expert_1"].card.sha256 == Expert.load(folder / "expert_1").card.sha256


def test_verified_experts_are_loaded_once_and_damage_is_found(folder: Path, loads: list[str]) -> None:
    assert Catalogue(folder).verify() == {}
    assert [name for name in loads if name.startswith("load")] == [f"load expert_{n}" for n in range(3)]
    loads.clear()
    assert Catalogue(folder).verify() == {} and not [name for name in loads if name.startswith("load")]
    file = folder / "expert_2" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert list(Catalogue(folder).verify()) == ["expert_2"] and loads.count("load expert_2") == 1
    loads.clear()
    assert Catalogue(folder).verify(["expert_0"], full=True) == {} and loads == ["load expert_0"]


def test_a_damaged_file_with_its_old_times_is_found_by_its_change_time(folder: Path) -> None:
    assert Catalogue(folder).verify() == {}
    file = folder / "expert_1" / "model.safetensors"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(Catalogue(folder).verify()) == ["expert_1"]


def test_a_link_is_never_taken_from_the_index(folder: Path, loads: list[str]) -> None:
    target = folder / "expert_0" / "other.safetensors"
    (folder / "expert_0" / "model.safetensors").rename(target)
    (folder / "expert_0" / "model.safetensors").symlink_to(target)
    settled(folder)
    for _ in range(2):
        Catalogue(folder).verify()
    assert loads.count("load expert_0") == 2


@pytest.mark.parametrize("content", ["", "{", '{"index": 0}\n', "damaged\n"])
def test_a_damaged_index_is_made_anew(folder: Path, content: str, loads: list[str]) -> None:
    expected = Catalogue(folder).experts
    Index(folder).file.write_text(content)
    loads.clear()
    assert Catalogue(folder).experts == expected and len(loads) == 3
    assert Catalogue(folder).experts == expected and len(loads) == 3


@pytest.mark.parametrize("length", [50, 300])
def test_a_damaged_line_of_the_index_is_made_anew(folder: Path, length: int) -> None:
    expected = Catalogue(folder).experts
    lines = Index(folder).file.read_text().splitlines(keepends=True)
    Index(folder).file.write_text("".join([*lines[:2], lines[2][:length] + "\n", *lines[3:]]))
    assert Catalogue(folder).experts == expected


def test_without_a_writable_cache_experts_are_read(folder: Path, cache: Path, loads: list[str]) -> None:
    cache.write_text("no folder")
    assert len(Catalogue(folder)) == 3 and len(Catalogue(folder)) == 3 and len(loads) == 6


def test_files_that_have_just_changed_are_not_remembered(folder: Path, loads: list[str]) -> None:
    small_teacher(5).save(folder / "expert_0")
    Catalogue(folder).verify()
    Catalogue(folder).verify()
    assert loads.count("load expert_0") == 2 and loads.count("load expert_1") == 1
    assert torch.is_tensor(Expert.load(folder / "expert_0").model(torch.zeros(1, 1, 32, 32)))
