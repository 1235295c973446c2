from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import JOB, small_teacher

from exml_fast.data import InputSpec, Shards
from exml_fast.distributed import LocalExecutor, synthesize
from exml_fast.models import create
from exml_fast.training import Training
from exml_fast.transfer import distill
from exml_fast.transfer.shard_batches import ShardBatches

QUICK: dict[str, Any] = {"steps": 12, "batch_size": 6, "lr": 0.01, "augmentation": {"shift": 1}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    return synthesize(small_teacher(), tmp_path_factory.mktemp("job"), executor=LocalExecutor(0), **JOB)


def student() -> torch.nn.Module:
    torch.manual_seed(5)
    return create("lenet5", num_classes=4)


def batches(shards: Shards, size: int) -> ShardBatches:
    config, spec = Training(batch_size=size), shards.spec
    return ShardBatches(config, spec, torch.device("cpu"), torch.Generator(), shards, shards.units, seed=3)


def test_an_epoch_has_every_image_once_and_the_next_another_order(shards: Shards) -> None:
    source = batches(shards, 5)
    first, second = (torch.cat([source._next() for _ in range(4)]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second


def test_images_and_labels_belong_together(shards: Shards) -> None:
    positions = batches(shards, 6)._next()
    batch = next(batches(shards, 6).block(0, 1))
    images, labels = shards.rows(positions)
    assert torch.equal(batch.images, images)
    assert batch.labels is not None and [shards.units[p] for p in batch.labels.tolist()] == labels.tolist()


@pytest.mark.parametrize("taken", [0, 2, 3, 4])
def test_the_state_continues_within_and_between_epochs(shards: Shards, taken: int) -> None:
    source, other = batches(shards, 6), batches(shards, 6)
    for _ in range(taken):
        source._next()
    other.load_state_dict(source.state_dict())
    assert [source._next().tolist() for _ in range(4)] == [other._next().tolist() for _ in range(4)]


def test_a_student_learns_from_shards_and_resumes_bit_for_bit(shards: Shards, tmp_path: Path) -> None:
    teacher = small_teacher()
    whole = distill(teacher, student(), shards, seed=1, **QUICK)
    assert len(whole.images) == 20 and whole.rounds == [] and whole.labels.tolist()[:4] == [3, 5, 7, 9]

    def stop(*now: Any) -> None:
        raise KeyboardInterrupt

    arguments = {"seed": 1, "checkpoint_dir": tmp_path, "evaluate": lambda network: None, "evaluate_every": 5, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student(), shards, progress=stop, **arguments)
    resumed = distill(teacher, student(), shards, **arguments)
    assert all(map(torch.equal, resumed.model.state_dict().values(), whole.model.state_dict().values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"recipe": "deep_inversion"}, "recipe must be None with images of Shards"),
     ({"classes": [3]}, "classes must be None with images of Shards"),
     ({"spec": InputSpec(1, (32, 32), (0.4,), (0.25,))}, "the teacher takes")],
)  # fmt: skip
def test_wrong_arguments_are_named(shards: Shards, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(small_teacher(), student(), shards, **QUICK, **arguments)


def test_classes_that_the_teacher_lacks_are_named(shards: Shards) -> None:
    with pytest.raises(ValueError, match=r"classes \[9\] of .* are not among the teacher's"):
        distill(small_teacher().model, student(), shards, units=[3, 5, 7, 8], **QUICK)
