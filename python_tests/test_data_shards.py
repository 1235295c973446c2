from pathlib import Path

import pytest
import torch
from small_jobs import JOB, SPEC, small_teacher
from torch.utils.data import DataLoader

from exml_fast.data import Shards
from exml_fast.data.shards import read_shard, shard_path
from exml_fast.distributed import LocalExecutor, synthesize


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards of 4, 4, 4, 4 and 3 images."""
    made = tmp_path_factory.mktemp("job")
    synthesize(small_teacher(), made, executor=LocalExecutor(0), **JOB | {"count": 19})
    return made


def everything(shards: Shards) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [read_shard(shards.folder, index) for index in range(5)]
    return SPEC.normalize(torch.cat([p.images for p in parts])), torch.cat([p.labels for p in parts])


def counted(images: torch.Tensor, shards: Shards) -> list[int]:
    """How often each image of the job is among ``images``."""
    whole, _ = everything(shards)
    return [int((images == image).flatten(1).all(1).sum()) for image in whole]


def test_it_gives_the_images_in_order_as_network_input(folder: Path) -> None:
    shards = Shards(folder, keep=2)
    images, labels = everything(shards)
    assert len(shards) == 19 and shards.complete and shards.spec == SPEC and shards.classes == (3, 5, 7, 9)
    found = [shards[n] for n in range(19)]
    assert torch.equal(torch.stack([x for x, _ in found]), images)
    assert torch.equal(torch.stack([y for _, y in found]), labels)
    assert labels.tolist() == [(3, 5, 7, 9)[n % 4] for n in range(19)]
    assert torch.equal(shards[-1][0], images[-1])
    assert torch.equal(shards.rows(torch.tensor([17, 0, 9]))[0], images[[17, 0, 9]])
    with pytest.raises(IndexError, match="below 19"):
        shards[19]


def test_logits_are_those_of_the_rounded_images(folder: Path) -> None:
    shard = read_shard(folder, 1)
    with torch.no_grad():
        expected = small_teacher().model(SPEC.normalize(shard.images))
    assert torch.allclose(shard.logits, expected, atol=1e-4)
    assert shard.names[-1] == "loss" and shard.terms.shape == (len(shard.names),)


def test_a_loader_of_the_map_gives_each_image_once(folder: Path) -> None:
    shards = Shards(folder)
    images = torch.cat([x for x, _ in DataLoader(shards, 4, shuffle=True, num_workers=2)])
    assert counted(images, shards) == [1] * 19


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stream_gives_each_image_once_over_workers_and_ranks(folder: Path, workers: int, ranks: int) -> None:
    shards, parts = Shards(folder), []
    for rank in range(ranks):
        stream = shards.stream(block=2, seed=1, rank=rank, ranks=ranks)
        parts += [x for x, _ in DataLoader(stream, 4, num_workers=workers)]
    assert counted(torch.cat(parts), shards) == [1] * 19


def test_the_order_of_a_stream_is_decided_by_seed_and_epoch(folder: Path) -> None:
    shards = Shards(folder)

    def order(seed: int, epoch: int) -> list[float]:
        stream = shards.stream(seed=seed)
        stream.set_epoch(epoch)
        return [float(x.sum()) for x, _ in stream]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    images, _ = everything(shards)
    assert torch.equal(torch.stack([x for x, _ in shards.stream(shuffle=False)]), images)


def test_damaged_shards_are_found_and_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "job")
    file = shard_path(tmp_path / "job", 2)
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    shard_path(tmp_path / "job", 3).unlink()
    problems = Shards(tmp_path / "job").verify()
    assert set(problems) == {2, 3} and "sha256" in problems[2] and "missing" in problems[3]
    shard_path(tmp_path / "job", 1).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="is not shard 1 of this job"):
        Shards(tmp_path / "job")[5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("job.json", "{}", "is not the file of a synthesis job"), ("job.json", "{", "not valid JSON"),
     ("manifest.txt", "x" * 109, "is not the manifest of this job")],
)  # fmt: skip
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "job")
    (tmp_path / "job" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Shards(tmp_path / "job")


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"job\.json is missing"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"block": 0}, "block must be a positive integer"), ({"rank": 0}, "rank and ranks must be given together"),
     ({"rank": 2, "ranks": 2}, "rank must be from 0")],
)  # fmt: skip
def test_wrong_arguments_of_a_stream_are_named(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shards(folder).stream(**arguments)
