"""What several processes compute together, against one process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import JOB, small_teacher
from small_networks import BN, CE, SPEC, network
from small_ranks import on_ranks
from torch import Tensor

from exml_fast.data import NaturalFields, Shards
from exml_fast.distributed import LocalExecutor, synthesize
from exml_fast.engine.statistics import LayerStatistics
from exml_fast.inversion import Synthesizer
from exml_fast.inversion.rank_statistics import over_ranks
from exml_fast.models import create
from exml_fast.ranks import Ranks
from exml_fast.transfer import distill

LABELS = [0, 1, 2, 3, 4, 0, 1, 2]
IMAGE_SCOPE: dict[str, Any] = {"tv_scope": "image", "norm_scope": "image"}


def together(ranks: Ranks) -> dict[str, Any]:
    own = torch.arange(6.0).view(3, 2) + 10 * ranks.rank
    kept = own.clone()
    ranks.take_first([kept])
    return {
        "sum": ranks.sum(own), "gather": ranks.gather(own), "share": ranks.share(torch.arange(5)), "first": kept,
        "unchanged": own,
    }  # fmt: skip


def test_what_ranks_exchange() -> None:
    zero, one = on_ranks(together, 2)
    own = torch.arange(6.0).view(3, 2)
    for found, offset in ((zero, 0), (one, 10)):
        assert torch.equal(found["sum"], 2 * own + 10) and torch.equal(found["gather"], torch.cat([own, own + 10]))
        assert torch.equal(found["first"], own) and torch.equal(found["unchanged"], own + offset)
    assert zero["share"].tolist() == [0, 2, 4] and one["share"].tolist() == [1, 3]


def test_one_rank_does_nothing() -> None:
    alone, x = Ranks(), torch.ones(3)
    assert alone.sum(x) is x and alone.gather(x) is x and alone.share(x) is x and alone.first
    alone.wait()


def part_of(ranks: Ranks, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    part = x.split(sizes)[ranks.rank].clone().requires_grad_()
    var, mean = torch.var_mean(part, 0, correction=0)
    (found,) = over_ranks([LayerStatistics("a", mean, var, mean.detach(), var.detach())], len(part), ranks)
    loss = (found.mean - 1).square().sum() + (found.var - 2).abs().sum()
    (gradient,) = torch.autograd.grad(loss, part)
    return found.mean.detach(), found.var.detach(), gradient


@pytest.mark.parametrize("sizes", [[4, 4], [5, 3], [2, 4, 2]])
def test_statistics_over_ranks_are_those_of_the_whole_batch_with_its_gradient(sizes: list[int]) -> None:
    whole = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    var, mean = torch.var_mean(whole, 0, correction=0)
    (gradient,) = torch.autograd.grad((mean - 1).square().sum() + (var - 2).abs().sum(), whole)
    parts = on_ranks(part_of, len(sizes), whole.detach(), sizes)
    for found_mean, found_var, _ in parts:
        assert torch.allclose(found_mean, mean) and torch.allclose(found_var, var)
    assert torch.allclose(torch.cat([part[2] for part in parts]), gradient)


def inverted(ranks: Ranks, **changes: Any) -> dict[str, Any]:
    recipe = BN.replace(**IMAGE_SCOPE, **changes)
    result = Synthesizer(network(), SPEC, recipe).run(LABELS, seed=2, ranks=ranks)
    return {"images": result.images, "labels": result.labels, "history": result.history, "logits": result.logits}


def test_a_batch_over_two_ranks_gives_the_images_of_one_process() -> None:
    alone = inverted(Ranks())
    found = on_ranks(inverted, 2)
    for other in found:
        assert torch.equal(other["images"], found[0]["images"]), "every rank gets all images"
        assert torch.allclose(other["images"], alone["images"], atol=2e-4)
        assert torch.equal(other["labels"], alone["labels"])
        for name, values in alone["history"].items():
            assert torch.allclose(other["history"][name], values, rtol=1e-3), name
    separate = Synthesizer(network(), SPEC, BN.replace(**IMAGE_SCOPE)).run(LABELS[::2], seed=2).images
    assert not torch.allclose(separate, alone["images"][::2], atol=1e-2), "the batch matters for this recipe"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [({"stop_confidence": 0.9}, {}, "stop_confidence must be None over 2 ranks"),
     ({"bn_memory": 0.5, "bn": 1.0}, {}, "bn_memory must be 0 over 2 ranks"),
     ({"norm_scope": "batch"}, {}, "norm_scope must be 'image' over 2 ranks"),
     ({"batch_size": 1}, {}, "batch_size must be at least 2"),
     ({}, {"checkpoint_dir": "x"}, "checkpoint_dir must be None over 2 ranks")],
)  # fmt: skip
def test_batches_that_cannot_be_spread_are_named(changes: dict[str, Any], arguments: dict, message: str) -> None:
    synthesizer = Synthesizer(network(), SPEC, CE.replace(**changes))
    with pytest.raises(ValueError, match=message):
        synthesizer.run(LABELS, ranks=Ranks(0, 2), **arguments)


QUICK: dict[str, Any] = {"steps": 8, "batch_size": 8, "lr": 0.05, "augmentation": {"shift": 1}}


def student() -> torch.nn.Module:
    torch.manual_seed(5)
    return create("lenet5", num_classes=4)


def learned(ranks: Ranks, images: Any, changes: dict[str, Any]) -> dict[str, Any]:
    images = Shards(images) if isinstance(images, str) else images
    result = distill(small_teacher(), student(), images, ranks=ranks, seed=1, **QUICK | changes)
    return {"weights": result.model.state_dict(), "history": result.history, "images": result.images}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_of_two_ranks_learns_what_one_process_learns() -> None:
    # LeNet-5 has no BatchNorm and these images no augmentation: the mean of two halves is the whole batch.
    images = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    plain = {"augmentation": {}, "lr": 0.01}
    alone = learned(Ranks(), images, plain)
    zero, one = on_ranks(learned, 2, images, plain)
    assert equal(zero["weights"], one["weights"]) and zero["history"] == one["history"]
    for name, value in alone["weights"].items():
        assert torch.allclose(zero["weights"][name], value, atol=1e-4), name
    assert zero["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=1e-3)


@pytest.mark.parametrize("kind", ["shards", "source", "recipe", "shared"])
def test_all_ranks_end_with_one_student_and_one_pool(kind: str, tmp_path: Path) -> None:
    images: Any = None
    changes: dict[str, Any] = {}
    if kind == "shards":
        synthesize(small_teacher(), tmp_path, executor=LocalExecutor(0), **JOB)
        images = str(tmp_path)
    elif kind == "source":
        images, changes = NaturalFields(), {"generate_every": 4, "per_round": 16, "pool_size": 32}
    else:
        recipe = CE.replace(**IMAGE_SCOPE, steps=3)
        changes = {"recipe": recipe, "generate_every": 4, "per_round": 8, "shared_statistics": kind == "shared"}
    zero, one = on_ranks(learned, 2, images, changes)
    assert equal(zero["weights"], one["weights"]) and torch.equal(zero["images"], one["images"])


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 ranks, got 8"):
        distill(small_teacher(), student(), torch.randn(16, 1, 32, 32), ranks=Ranks(0, 3), **QUICK)


def torchrun(*arguments: object, restarts: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "--max-restarts", str(restarts), "-m", "exml_fast", *map(str, arguments)]


def run_and_kill(command: list[str], killed_at: int) -> str:
    """Run to the end; SIGKILL rank 1 once the student has taken so many steps."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said, victim = "", None
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        found = re.search(r"learn: (\d+)/", line)
        if victim is None and found and int(found[1]) >= killed_at:
            victim = next(pid for pid in ranks_of(process.pid) if environment(pid).get("RANK") == "1")
            os.kill(victim, signal.SIGKILL)
    assert process.wait() == 0, said
    assert (victim is not None) == (killed_at < 10**6), said
    return said


def ranks_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if "RANK" in environment(int(pid))]


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode().partition("=")[::2] for pair in pairs if pair)


@pytest.mark.slow
def test_torchrun_goes_on_after_a_killed_rank_and_ends_with_the_same_student(tmp_path: Path) -> None:
    small_teacher().save(tmp_path / "teacher")
    synthesize(small_teacher(), tmp_path / "job", executor=LocalExecutor(0), **JOB)
    job = ("distill", tmp_path / "teacher", "--images", tmp_path / "job", "--steps", 1000, "--threads", 1)
    job = (*job, "--distillation", "batch_size=8")
    run_and_kill(torchrun(*job, "--out", tmp_path / "whole"), 10**6)
    said = run_and_kill(torchrun(*job, "--out", tmp_path / "killed"), 300)
    whole, killed = (tmp_path / name / "student" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    before, after = said.split("WorkerGroup")[0], said.split("WorkerGroup")[-1]
    first = min(int(step) for step in re.findall(r"learn: (\d+)/", after))
    assert first >= 250, f"it began again:\n{before}\n{after}"
