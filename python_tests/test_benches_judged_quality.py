"""Images of judged quality: the published loop in pieces, the rows of both sides, the picture, the judges."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exml_fast as xf
from exml_fast.data import ImageData, InputSpec, Split
from exml_fast.inversion import recipes

BENCHES = Path(__file__).resolve().parents[1] / "benches"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("judged_quality")


@pytest.fixture
def contest(bench: Any) -> Any:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()  # fmt: skip
    spec = InputSpec(3, (16, 16), (0.5,) * 3, (0.5,) * 3)
    published = recipes.new("published", steps=6, coarse_steps=(5,), warmup=2, decay="cosine", bn=1.0, bn_first=3.0,
                            tv_l2=1e-2, jitter=2, flip=True, clip="valid", tv_scope="batch", norm_scope="batch",
                            prior_augmented=True)  # fmt: skip
    ours = recipes.get("deep_inversion/cifar10-quick").replace(steps=3)
    return bench.Contest(
        "tiny", teacher, spec, [0, 3], 2, published, ours, "float32", lambda: {"judge": teacher}, {"teacher": teacher}
    )


def test_the_loop_takes_the_steps_of_every_size(bench: Any, contest: Any) -> None:
    run = bench.PublishedRun(contest, seed=0)
    assert run.total == 11 and run.loop.x.shape == (4, 3, 8, 8)
    run.run(5)
    assert run.steps == 5 and run.loop.x.shape[2:] == (8, 8)
    coarse = run.loop.x.detach().clone()
    run.run(6)
    assert run.loop.x.shape[2:] == (16, 16)
    # A step of Adam is at most about the learning rate, which begins at half of the recipe's.
    rate = contest.published.optimisation.lr / 2
    moved = run.loop.x.detach() - coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert 0.5 * rate < moved.abs().max() < 1.01 * rate
    run.run(11)
    assert run.steps == 11 and run.spent.cpu > 0 and run.result.images.abs().max() <= 1


def test_the_loop_computes_the_loss_of_the_recipe(bench: Any, contest: Any) -> None:
    """One step without augmentation, against the formula written out."""
    plain = contest.published.replace(coarse_steps=(), jitter=0, flip=False, steps=1, decay="constant", warmup=0)
    run = bench.PublishedRun(replace(contest, published=plain), seed=1)
    x = run.loop.x.detach().clone()
    conv, norm = contest.teacher[0], contest.teacher[1]
    z = conv(x)
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    distance = torch.linalg.vector_norm(var - norm.running_var) + torch.linalg.vector_norm(mean - norm.running_mean)
    shifts = (x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :],
              x[..., 1:, :-1] - x[..., :-1, 1:], x[..., 1:, 1:] - x[..., :-1, :-1])  # fmt: skip
    expected = nn.functional.cross_entropy(contest.teacher(x), contest.labels) + 3.0 * distance
    expected = expected + 1e-2 * sum(torch.linalg.vector_norm(d) for d in shifts)
    assert run.loop.step() == pytest.approx(expected.item(), rel=1e-5)


def test_images_are_clipped_only_where_the_recipe_says_so(bench: Any, contest: Any) -> None:
    free = replace(contest, published=contest.published.replace(clip=None))
    beyond = {}
    for name, each in (("clipped", contest), ("free", free)):
        run = bench.PublishedRun(each, seed=0)
        run.run(run.total)
        beyond[name] = run.loop.x.abs().max().item() > 1
        assert run.result.images.abs().max() <= 1.0001
    assert beyond == {"clipped": False, "free": True}


def test_an_interrupted_loop_ends_with_the_same_bits(bench: Any, contest: Any, tmp_path: Path) -> None:
    whole = bench.PublishedRun(contest, seed=0)
    whole.run(whole.total)
    for stop in (3, 5, 8):
        folder = tmp_path / str(stop)
        first = bench.PublishedRun(contest, 0, folder)
        first.run(stop)
        first.timed(bench.Spent(1.0, 2.0))
        again = bench.PublishedRun(contest, 0, folder)
        assert (again.steps, again.ours, again.spent) == (stop, [bench.Spent(1.0, 2.0)], first.spent)
        again.run(again.total)
        assert torch.equal(again.loop.x, whole.loop.x)
    with pytest.raises(ValueError, match="another run"):
        bench.PublishedRun(replace(contest, published=contest.published.replace(lr=0.2)), 0, tmp_path / "3")


def test_rows_name_times_and_agreement_of_both(bench: Any, contest: Any, tmp_path: Path) -> None:
    published, images, row = bench.race(contest, 0, tmp_path)
    assert len(published) == len(images) == 4 and row["ours_runs"] == bench.ROUNDS + 1
    assert row["faster"] == pytest.approx(row["published_seconds"] / row["ours_seconds"])
    row["agreement"] = {"published": {"judge": 40.0, "teacher": 90.0}, "ours": {"judge": 80.0, "teacher": 100.0}}
    other = {**row, "seed": 1, "published_seconds": 3 * row["published_seconds"]}
    summary = bench.summary_of(contest, [row, other])
    assert summary["published_seconds"] == pytest.approx(2 * row["published_seconds"])
    assert summary["faster"] == pytest.approx(2 * row["faster"]) and summary["seeds"] == [0, 1]
    assert summary["judged"] == {"published": 40.0, "ours": 80.0}
    assert (summary["published_steps"], summary["ours_steps"], summary["images"]) == ([5, 6], [3], 4)
    assert bench.judged(contest, images).keys() == {"judge", "teacher"}
    bench.picture(tmp_path / "both.png", [published, images], 4, 2)
    assert (tmp_path / "both.png").is_file()
    # A run that was interrupted after its last piece continues with its judgement.
    assert torch.equal(bench.race(contest, 0, tmp_path)[0].images, published.images)


def test_a_sample_of_the_loop_stands_for_all_its_steps(
    bench: Any, contest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(bench.time, "process_time", lambda: next(seconds))
    run = bench.SampledRun(contest, 0, None, sample=2)
    for _ in range(bench.ROUNDS):
        monkeypatch.setattr(bench.PublishedRun, "run", lambda self, until: None)
        run.run()
    # The clock ticks once between both ends of a sample: 2 steps a second, and 11 steps in all.
    assert run.spent.cpu == pytest.approx(11 / 2)
    assert [run._spec(stage).size for stage in (0, 1)] == [(8, 8), (16, 16)]
    assert run.result.images.shape == (4, 3, 16, 16) and run.result.images.abs().max() <= 1.0001


def test_judges_are_trained_once(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = importlib.import_module("judges")
    monkeypatch.setattr(judges, "JUDGES", {"AlexNet": judges.Judge("alexnet_cifar_half", {"hidden": [8, 8]}, 1)})
    images = torch.randint(0, 256, (130, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.arange(130) % 10)
    data = ImageData("noise", split, split, tuple("0123456789"), InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(FileNotFoundError, match="train the judges"):
        judges.judges(tmp_path, None)
    trained = judges.judges(tmp_path, data)["AlexNet"]
    assert trained.card.training is not None and trained.card.training["epochs"] == 1
    assert judges.judges(tmp_path, None)["AlexNet"].fingerprint() == trained.fingerprint()
    assert judges.small_densenet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert isinstance(trained, xf.Expert)
