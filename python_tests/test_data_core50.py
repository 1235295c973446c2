"""Reading CORe50 from small files of its layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from exml_fast.continual import new_classes, new_instances
from exml_fast.data import load
from exml_fast.data.core50 import read_core50
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_rows import shorter_than_published
from exml_fast.reproduction.study_settings import RunOptions, Settings


@pytest.fixture(scope="module")
def core50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sessions and objects, with three frames of 4×4 pixels. The colour is (session, object, frame)."""
    root = tmp_path_factory.mktemp("core50") / "core50_128x128"
    for session in range(1, 12):
        for number in range(1, 51):
            folder = root / f"s{session}" / f"o{number}"
            folder.mkdir(parents=True)
            for frame in (0, 7, 20):
                image = Image.new("RGB", (4, 4), (session, number, frame))
                image.save(folder / f"C_{session:02d}_{number:02d}_{frame:03d}.png")
    return root


def test_sessions_objects_and_frames(core50: Path) -> None:
    data = load(str(core50))
    assert len(data.train) == 8 * 50 and len(data.test) == 3 * 50 and len(data.class_names) == 50
    assert data.spec.size == (4, 4) and data.class_names[5] == "mobile phone 1"
    for split, sessions in ((data.train, {1, 2, 4, 5, 6, 8, 9, 11}), (data.test, {3, 7, 10})):
        assert split.groups is not None and set(split.groups.tolist()) == sessions
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.groups)
        assert torch.equal(split.images[:, 1, 0, 0].long(), split.labels + 1)
        assert split.images[:, 2].max() == 0  # the first of three frames
    assert len(load(str(core50), every=1).train) == 3 * len(data.train)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        load(str(core50), every=0)
    train, _ = read_core50(core50, size=2, every=2)
    assert train.images.shape == (800, 3, 2, 2) and set(train.images[:, 2].unique().tolist()) == {0, 20}


def test_the_paper_s_experiences(core50: Path) -> None:
    data = load(str(core50))
    assert [len(classes) for classes in new_classes(data, [10, 5])] == [10] + [5] * 8
    parts = new_instances(data, 8)
    assert [part.train.groups.unique().tolist() for part in parts if part.train.groups is not None] == [
        [1], [2], [4], [5], [6], [8], [9], [11],
    ]  # fmt: skip


def test_a_study_reports_its_share_of_frames(core50: Path, tmp_path: Path) -> None:
    def study(every: int) -> Study:
        return Study(Settings(data=str(core50), scenario="new-instances", every=every), RunOptions(), tmp_path)

    assert len(study(1).data.train) == 3 * len(study(20).data.train)
    for every, said in ((20, True), (1, False)):
        assert ("one of 20 frames" in shorter_than_published(study(every), None)) == said
        assert ("one of 20 frames" in shorter_than_published(study(every), "model-inversion")) == said
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Settings(every=0)


def test_errors_name_the_file(core50: Path, tmp_path: Path) -> None:
    (tmp_path / "s1" / "o1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"expected frames C_<session>_<object>_<number>\.png, found none"):
        load(str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "s1" / "o1" / "C_02_01_000.png")
    with pytest.raises(ValueError, match=r"expected a frame C_01_01_<number>\.png"):
        load(str(tmp_path))
    (tmp_path / "s1" / "o1" / "C_02_01_000.png").rename(tmp_path / "s1" / "o1" / "C_01_01_000.png")
    with pytest.raises(ValueError, match="s1/o2 is missing"):
        load(str(tmp_path))


def test_the_name_core50_is_found_in_the_root(core50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "core50_128x128").symlink_to(core50, target_is_directory=True)
    assert load("core50", tmp_path).name == "core50"
    with pytest.raises(ValueError, match=r"no such folder: .*elsewhere/core50_128x128; extract .*core50_128x128\.zip"):
        load("core50", tmp_path / "elsewhere")
