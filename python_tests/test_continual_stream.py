from __future__ import annotations

from pathlib import Path

import pytest
from small_experts import trained

from exml_fast.continual.expert import Expert
from exml_fast.continual.stream import ExpertStream


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    for number, expert in zip((2, 10), trained(), strict=True):
        Expert(expert.model, expert.card).save(tmp_path / f"expert_{number}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a.txt").write_text("not an expert")
    return tmp_path


def test_folders_come_in_natural_order(parent: Path) -> None:
    stream = ExpertStream(parent)
    assert len(stream) == 2
    assert stream.experiences == [[0, 1], [2, 3]] and stream.units == [0, 1, 2, 3]
    assert [e.classes for e in stream] == [(0, 1), (2, 3)]
    assert stream.class_names[3] == "south-east"
    listed = ExpertStream([parent / "expert_10", parent / "expert_2"])
    assert listed.experiences == [[2, 3], [0, 1]]
    assert listed.fingerprints() == stream.fingerprints()[::-1] == [c.sha256 for c in listed.cards]


def test_experts_are_read_when_asked_for_and_not_kept(parent: Path) -> None:
    stream = ExpertStream(parent)
    assert stream[0].model is not stream[0].model
    (parent / "expert_10" / "model.safetensors").write_bytes(b"")
    assert stream[0].classes == (0, 1)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a valid safetensors file"):
        stream[1]


def test_experts_in_memory() -> None:
    stream = ExpertStream(trained())
    assert stream[1] is trained()[1]
    assert stream.fingerprints() == [e.fingerprint() for e in trained()]


def test_empty_streams_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no expert in"):
        ExpertStream(tmp_path)
    with pytest.raises(ValueError, match="no expert in"):
        ExpertStream([])
    with pytest.raises(ValueError, match="no such folder"):
        ExpertStream(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing"):
        ExpertStream([tmp_path])
