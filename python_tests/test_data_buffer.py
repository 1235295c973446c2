"""The buffer of images: balance, capacity, files, checkpoints."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exml_fast.data.buffer import ImageBuffer, balanced_indices
from exml_fast.profiling import Meter

LABELS = st.lists(st.integers(0, 5), min_size=0, max_size=60)


@given(LABELS, st.floats(0, 1), st.integers(0, 2**31))
def test_balanced_indices_are_as_equal_as_the_classes_allow(labels: list[int], share: float, seed: int) -> None:
    count = round(share * len(labels))
    y = torch.tensor(labels, dtype=torch.int64)
    index = balanced_indices(y, count, torch.Generator().manual_seed(seed))
    assert index.shape == (count,) and index.dtype == torch.int64
    assert index.tolist() == sorted(set(index.tolist()))
    have = {c: labels.count(c) for c in set(labels)}
    took = {c: y[index].tolist().count(c) for c in have}
    most = max(took.values(), default=0)
    for c in have:
        assert took[c] <= have[c]
        assert took[c] == have[c] or took[c] >= most - 1


@given(LABELS.filter(bool), st.integers(0, 2**31))
def test_balanced_indices_repeat_with_the_seed(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    one, two = (balanced_indices(y, len(labels) // 2, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two)


def test_balanced_indices_refuse_impossible_counts() -> None:
    for count in (-1, 3):
        with pytest.raises(ValueError, match="count must be between 0 and the number of samples, 2"):
            balanced_indices(torch.tensor([0, 1]), count)


def coded(labels: torch.Tensor) -> torch.Tensor:
    """Images whose pixels equal their label, so that a wrong pairing is visible."""
    return labels.float()[:, None, None, None].expand(-1, 1, 2, 2)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), max_size=8))
def test_buffer_never_exceeds_its_capacity_and_keeps_pairs_together(
    capacity: int, additions: list[tuple[int, int]]
) -> None:
    buffer = ImageBuffer(capacity)
    generator = torch.Generator().manual_seed(0)
    for count, label in additions:
        count = min(count, capacity)
        buffer.subsample(min(len(buffer), capacity - count), generator)
        buffer.add(coded(y := torch.full((count,), label)), y)
        assert len(buffer) <= capacity
        assert torch.equal(buffer.images[:, 0, 0, 0].long(), buffer.labels)
        images, labels = buffer.sample(5, generator)
        assert torch.equal(images, coded(labels))


def test_state_dict_round_trip() -> None:
    buffer = ImageBuffer(4)
    buffer.add(coded(y := torch.tensor([1, 2, 3])), y)
    other = ImageBuffer(4)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.images, buffer.images) and torch.equal(other.labels, buffer.labels)
    with pytest.raises(ValueError, match="capacity must be 4, as in the checkpoint, got 5"):
        ImageBuffer(5).load_state_dict(buffer.state_dict())


def test_the_buffer_copies_its_images() -> None:
    images, labels = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    buffer = ImageBuffer(2)
    buffer.add(images, labels)
    images.fill_(1)
    assert float(buffer.images.sum()) == 0


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 4)), max_size=8))
def test_a_buffer_on_disk_equals_one_in_memory(capacity: int, additions: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        both = ImageBuffer(capacity), ImageBuffer(capacity, folder)
        for count, label in additions:
            count = min(count, capacity)
            images = torch.randn(count, 2, 3, 3)
            for buffer in both:
                buffer.subsample(min(len(buffer), capacity - count), torch.Generator().manual_seed(count))
                buffer.add(images, torch.full((count,), label))
            assert torch.equal(both[0].images, both[1].images) and torch.equal(both[0].labels, both[1].labels)
            (file,) = Path(folder).iterdir()
            assert file.stat().st_size == both[1].images.numel() * 4 <= capacity * 18 * 4
        if additions:
            again = ImageBuffer(capacity, folder)
            again.load_state_dict(both[0].state_dict())
            assert torch.equal(again.images, both[0].images)
            both[1].subsample(0)
            assert len(both[1].images) == 0


def test_images_on_disk_are_not_in_memory(tmp_path: Path) -> None:
    before = Meter()
    with before:
        pass
    buffer = ImageBuffer(4000, tmp_path)
    buffer.add(torch.zeros(1, 1, 1, 1).expand(4000, 3, 64, 64), torch.zeros(4000, dtype=torch.int64))
    with Meter() as written:
        pass
    images = buffer.images
    assert images.shape == (4000, 3, 64, 64) and images[3999].sum() == 0
    assert written.peak_mb - before.peak_mb < 100, "the file has 197 MB"


def test_a_full_disk_leaves_the_buffer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = ImageBuffer(6, tmp_path)
    buffer.add(coded(y := torch.tensor([1, 2, 3])), y)
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match=r"the disk is full: .*buffer\.images could not be written, its previous content"):
        buffer.add(coded(y), y)
    with pytest.raises(OSError, match="the disk is full"):
        buffer.subsample(1)
    assert torch.equal(buffer.images, coded(y)) and buffer.labels.tolist() == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["buffer.images"]


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".0123456789ab.buffer.images").write_bytes(b"half")
    (tmp_path / "other").write_bytes(b"mine")
    ImageBuffer(2, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_errors_name_the_argument() -> None:
    buffer = ImageBuffer(2)
    y = torch.tensor([0])
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="images must be float"):
        buffer.add(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), y)
    with pytest.raises(ValueError, match="labels must be int64"):
        buffer.add(torch.zeros(1, 1, 2, 2), y.int())
    buffer.add(torch.zeros(1, 1, 2, 2), y)
    with pytest.raises(ValueError, match=r"images must be \(1, 2, 2\)"):
        buffer.add(torch.zeros(1, 1, 3, 3), y)
    with pytest.raises(ValueError, match="2 images do not fit: 1 of 2"):
        buffer.add(torch.zeros(2, 1, 2, 2), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="capacity must be a positive integer"):
        ImageBuffer(0)
