import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import JOB, digests, small_teacher

from exml_fast.data import Shards
from exml_fast.data.shards import shard_path
from exml_fast.distributed import LocalExecutor, Lost, SlurmExecutor, load_job, make_shard, prepare, resume, synthesize
from exml_fast.distributed.executors import Outcome
from exml_fast.ownership import temporary_name


class Here(LocalExecutor):
    """Makes shards in this process, some at a time, the last first; loses and counts as it is told to."""

    def __init__(self, slots: int = 3, lose: Sequence[int] = (), stop_after: int | None = None) -> None:
        super().__init__(0)
        self.many, self.lose, self.made, self.stop_after = slots, list(lose), [], stop_after

    @property
    def slots(self) -> int:
        return self.many

    def finished(self, seconds: float) -> list[Outcome]:
        index = self._waiting.pop()
        if index in self.lose:
            self.lose.remove(index)
            return [(index, Lost("gone"))]
        self.made.append(index)
        if self.stop_after == len(self.made):
            os.kill(os.getpid(), signal.SIGINT)
        return [(index, make_shard(self._folder, index))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """Hashes of the shards' files, made one after another."""
    folder = tmp_path_factory.mktemp("expected")
    synthesize(small_teacher(), folder, executor=LocalExecutor(0), **JOB)
    return digests(folder)


def test_another_order_gives_the_same_bytes(tmp_path: Path, expected: dict[str, str]) -> None:
    reports: list[Any] = []
    shards = synthesize(small_teacher(), tmp_path, executor=Here(), progress=lambda *now: reports.append(now), **JOB)
    assert digests(tmp_path) == expected and len(expected) == 5 and shards.complete and shards.verify() == {}
    assert [(stage, step, total) for stage, step, total, _ in reports] == [("synthesize", n, 5) for n in range(1, 6)]
    assert reports[-1][3]["images"] == 20


def test_shards_of_one_job_differ(expected: dict[str, str]) -> None:
    assert len(set(expected.values())) == 5


def test_three_processes_give_the_same_bytes_also_when_one_is_killed(tmp_path: Path, expected: dict[str, str]) -> None:
    executor, killed = LocalExecutor(3), []

    def kill(*now: Any) -> None:
        busy = [worker for worker in executor._workers.values() if worker.shard is not None]
        if busy and not killed:
            killed.append(busy[0].shard)
            busy[0].process.kill()

    shards = synthesize(small_teacher(), tmp_path, executor=executor, progress=kill, **JOB)
    assert digests(tmp_path) == expected and shards.complete and killed
    assert not executor._workers


def test_submitit_gives_the_same_bytes(tmp_path: Path, expected: dict[str, str]) -> None:
    pytest.importorskip("submitit")
    synthesize(small_teacher(), tmp_path, executor=SlurmExecutor(1, block=2, cluster="debug"), **JOB)
    assert digests(tmp_path) == expected


def test_lost_shards_are_made_again(tmp_path: Path, expected: dict[str, str]) -> None:
    synthesize(small_teacher(), tmp_path, executor=Here(lose=[1, 1, 4]), **JOB)
    assert digests(tmp_path) == expected


def test_a_shard_that_is_always_lost_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shard 2 cannot be made: gone"):
        synthesize(small_teacher(), tmp_path, executor=Here(1, lose=[2] * 100), **JOB)


def test_ctrl_c_finishes_what_is_in_flight_and_a_resumed_run_the_rest(tmp_path: Path, expected: dict[str, str]) -> None:
    first, second = Here(stop_after=1), Here()
    with pytest.raises(KeyboardInterrupt):
        synthesize(small_teacher(), tmp_path, executor=first, **JOB)
    assert sorted(first.made) == [0, 1, 2]
    resume(tmp_path, executor=second)
    assert sorted(second.made) == [3, 4] and digests(tmp_path) == expected
    third = Here()
    resume(tmp_path, executor=third)
    assert third.made == []


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    class Twice(Here):
        def finished(self, seconds: float) -> list[Outcome]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().finished(seconds)

    executor = Twice()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        synthesize(small_teacher(), tmp_path, executor=executor, **JOB)
    assert len(executor.made) == 1 and signal.getsignal(signal.SIGINT) is before


def test_missing_entries_and_missing_files_are_mended(tmp_path: Path, expected: dict[str, str]) -> None:
    synthesize(small_teacher(), tmp_path, executor=Here(), **JOB)
    manifest = tmp_path / "manifest.txt"
    manifest.write_bytes(manifest.read_bytes()[: -109 - 50])  # two entries fewer, the last line torn
    entered = set(Shards(tmp_path).indices.tolist())
    removed = entered.pop()
    shard_path(tmp_path, removed).unlink()
    again = Here()
    resume(tmp_path, executor=again)
    assert again.made == [removed] and digests(tmp_path) == expected and len(Shards(tmp_path)) == 20


def test_a_damaged_file_without_an_entry_is_made_again(tmp_path: Path, expected: dict[str, str]) -> None:
    prepare(tmp_path, small_teacher(), **JOB)
    shard_path(tmp_path, 3).parent.mkdir(parents=True)
    shard_path(tmp_path, 3).write_bytes(b"damaged")
    resume(tmp_path, executor=Here())
    assert digests(tmp_path) == expected


def test_a_driver_that_is_killed_can_be_resumed(tmp_path: Path, expected: dict[str, str]) -> None:
    prepare(tmp_path, small_teacher(), **JOB)
    code = f"""
import os, signal
from exml_fast.distributed import LocalExecutor, resume
def stop(stage, step, total, terms):
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
resume({str(tmp_path)!r}, executor=LocalExecutor(0), progress=stop)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == -signal.SIGKILL and len(Shards(tmp_path)) == 8
    again = Here()
    resume(tmp_path, executor=again)
    assert sorted(again.made) == [2, 3, 4] and digests(tmp_path) == expected


def test_two_drivers_of_one_job_are_refused(tmp_path: Path) -> None:
    class Nested(Here):
        def finished(self, seconds: float) -> list[Outcome]:
            with pytest.raises(ValueError, match="another process is making the shards"):
                resume(tmp_path, executor=Here())
            return super().finished(seconds)

    synthesize(small_teacher(), tmp_path, executor=Nested(), **JOB | {"shards": 1})


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"seed": 1}, "seed = 0 instead of 1"), ({"steps": 5}, r"recipe.steps = 4 instead of 5"),
     ({"shards": 6}, "count = 20 instead of 24"), ({"classes": [3]}, "classes"), ({"threads": 2}, "threads")],
)  # fmt: skip
def test_a_folder_of_another_job_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    job = prepare(tmp_path, small_teacher(), **JOB)
    assert prepare(tmp_path, small_teacher(), **JOB).digest == job.digest == load_job(tmp_path).digest
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, small_teacher(), **JOB | changed)


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, small_teacher(), **JOB)
    with pytest.raises(ValueError, match="another teacher"):
        prepare(tmp_path, small_teacher(1), **JOB)


def test_a_changed_job_file_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, small_teacher(), **JOB)
    about = json.loads((tmp_path / "job.json").read_text())
    about["job"]["seed"] = 7
    (tmp_path / "job.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="was changed"):
        load_job(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shards": 0}, "shards must be a positive integer"), ({"per_shard": 0}, "per_shard"),
     ({"classes": [4]}, r"classes \[4\] are not among"), ({"count": 0}, "count"),
     ({"recipe": "adaptive_deep_inversion", "bn": 0.0}, "without a student")],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, small_teacher(), **JOB | arguments)


def test_the_number_of_threads_of_the_caller_stays(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    synthesize(small_teacher(), tmp_path, executor=Here(), **JOB | {"threads": before + 1, "shards": 1})
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path, expected: dict[str, str]) -> None:
    pytest.importorskip("ray")
    from exml_fast.distributed import RayExecutor

    begun = time.monotonic()
    synthesize(small_teacher(), tmp_path, executor=RayExecutor(cpus=0.5), **JOB)
    assert digests(tmp_path) == expected and time.monotonic() - begun < 300


def test_temporary_files_of_a_killed_run_are_gone_when_the_job_is_done(tmp_path: Path) -> None:
    """During the job they may be of a worker on another machine, unless they are old."""
    prepare(tmp_path, small_teacher(), **JOB)
    shard = shard_path(tmp_path, 0)
    shard.parent.mkdir(parents=True)
    left = [temporary_name(path) for path in (shard, tmp_path / "job.json", tmp_path / "teacher" / "model.safetensors")]
    mine = [path.with_name(".notes") for path in left]
    old = temporary_name(shard)
    for file in (*left, *mine, old):
        file.write_text("half")
    os.utime(old, (0, 0))
    seen: list[bool] = []
    resume(tmp_path, executor=Here(), progress=lambda *_: seen.append(left[0].exists() and not old.exists()))
    assert all(seen) and len(seen) == 5
    assert not any(file.exists() for file in left) and all(file.exists() for file in mine)
