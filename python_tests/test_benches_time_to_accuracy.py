"""Time to accuracy: clock, steps from a budget, rows, the published loop, and cells that are killed and continue."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.models import CifarResNet
from exml_fast.storage import load_json
from exml_fast.training import Training

BENCHES = Path(__file__).resolve().parents[1] / "benches"
SPEC = InputSpec(3, (16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("time_to_accuracy")


@pytest.fixture
def budget(bench: Any) -> Any:
    return importlib.import_module("time_budget")


@pytest.fixture
def published(bench: Any) -> Any:
    return importlib.import_module("published_loop")


class Watch:
    """A time that the test sets: CPU seconds, and ten times as many of wall time."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> tuple[float, float]:
        return self.seconds, 10 * self.seconds


def test_clock_counts_work_without_pauses(budget: Any, tmp_path: Path) -> None:
    watch = Watch()
    clock = budget.Clock(tmp_path / "clock", read=watch)
    watch.seconds += 3
    clock.tick("learn", 50)
    with clock.paused():
        watch.seconds += 40
    watch.seconds += 2
    assert clock.times() == pytest.approx((5.0, 50.0))
    assert clock.step == 50


@pytest.mark.parametrize("torn", [False, True])
def test_clock_counts_repeated_work_once(budget: Any, tmp_path: Path, torn: bool) -> None:
    """The checkpoint is of step 50; the process had gone on to a round of images and was killed."""
    watch = Watch()
    clock = budget.Clock(tmp_path / "clock", read=watch)
    for stage, step in (("learn", 50), ("invert", 5), ("invert", 10), ("learn", 100)):
        watch.seconds += 10
        clock.tick(stage, step)
    if torn:
        with (tmp_path / "clock").open("a") as file:
            file.write('[100, "learn", 1')
    again = budget.Clock(tmp_path / "clock", step=50, read=watch)
    watch.seconds += 7  # start and repeated work
    again.tick("invert", 10)
    assert again.times() == pytest.approx((30.0, 300.0))
    watch.seconds += 4
    again.tick("learn", 100)
    assert again.times()[0] == pytest.approx(34.0)
    # A place that was never reached: all earlier work is kept, and the time since the start is added.
    third = budget.Clock(tmp_path / "clock", step=100, read=watch)
    watch.seconds += 6
    third.tick("learn", 150)
    assert third.times()[0] == pytest.approx(40.0)


@given(
    seconds=st.floats(10, 1e5), step=st.floats(1e-3, 1), a_round=st.floats(1e-2, 8), share=st.floats(0, 1),
    until=st.floats(0.1, 1),
)  # fmt: skip
def test_rounds_and_steps_fill_the_budget(
    seconds: float, step: float, a_round: float, share: float, until: float
) -> None:
    sys.path.insert(0, str(BENCHES))
    try:
        fitted = importlib.import_module("time_budget").fitted
    finally:
        sys.path.remove(str(BENCHES))
    found = fitted(seconds, step, a_round, share=share, until=until)
    spent = found["steps"] * step + found["rounds"] * a_round
    assert spent <= seconds * (1 + 1e-9)
    if found["rounds"] < found["steps"]:
        assert spent > seconds - step - 1e-6 * seconds
        assert abs(found["rounds"] * a_round - share * seconds) <= a_round + step
    assert found["rounds"] * found["generate_every"] <= max(found["steps"], found["rounds"])


def test_steps_between_rounds_may_be_given(budget: Any) -> None:
    found = budget.fitted(100.0, 0.1, 1.0, generate_every=10)
    assert found == {"steps": 500, "rounds": 50, "generate_every": 10}


@pytest.mark.parametrize("options", [{}, {"share": 0.5, "generate_every": 4}])
def test_a_budget_is_divided_in_one_way(budget: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of share and generate_every must be given"):
        budget.fitted(10.0, 0.1, 1.0, **options)
    with pytest.raises(ValueError, match="no room for a round"):
        budget.fitted(1.0, 0.1, 1.0, share=0.5)


def test_settings_may_decide_the_schedule(budget: Any) -> None:
    def measured() -> tuple[float, float]:
        raise AssertionError("must not be measured")

    found = budget.scheduled({"steps": 90, "rounds": 9, "until": 0.5, "share": 0.5}, 1.0, measured)
    assert found == {"steps": 90, "rounds": 9, "generate_every": 5}
    found = budget.scheduled({"steps": 95, "generate_every": 10}, 1.0, measured)
    assert found == {"steps": 95, "rounds": 10, "generate_every": 10}
    found = budget.scheduled({"rounds": 10, "until": 1.0, "share": 0.9}, 1.0, lambda: (0.5, 3.0))
    assert (found["rounds"], found["steps"], found["generate_every"]) == (10, 60, 6)
    found = budget.scheduled({"generate_every": 10, "share": 0.9, "until": 1.0}, 1.0, lambda: (0.5, 1.0))
    assert found == {
        "steps": 100, "rounds": 10, "generate_every": 10, "step_seconds": 0.5, "round_seconds": 1.0
    }  # fmt: skip


def test_row_takes_the_shortest_times_of_all_budgets(budget: Any) -> None:
    def cell(seed: int, curve: list[Any], done: bool = True) -> dict[str, Any]:
        plan = {"schedule": {"steps": 20}, "settings": {}}
        return {"seed": seed, "curve": curve, "done": done, "commits": ["a"], **plan}

    short = [
        cell(0, [[10, 1.0, 2.0, 50.0], [20, 2.0, 4.0, 76.0]]),
        cell(1, [[10, 3.0, 6.0, 60.0], [20, 4.0, 8.0, 78.0]]),
    ]
    long = [cell(0, [[10, 10.0, 20.0, 80.0]])]
    row = budget.row_of("m", "nothing", {40: long, 5: short}, (55, 75, 79, 90), False)
    assert {name: row[name] for name in row if name.startswith("minutes_to")} == {
        "minutes_to_55": 2.0, "minutes_to_75": 3.0, "minutes_to_79": 10.0, "minutes_to_90": None
    }  # fmt: skip
    assert row["ours"] == 80.0 and row["budget"] == 40 and row["seeds"] == 1 and row["curve"] == [[10.0, 80.0]]
    assert "cut after 10 minutes" in row["note"]
    first, _ = row["runs"]
    assert first["values"] == [76.0, 78.0] and first["curve"] == [[2.0, 55.0], [3.0, 77.0]] and first["finished"]
    on_cuda = budget.row_of("m", "nothing", {5: short}, (75,), True)
    assert on_cuda["minutes_to_75"] == 6.0
    assert budget.row_of("m", "nothing", {5: [cell(0, [])]}, (75,), False) == {}


def test_published_augmentation_shifts_and_flips(published: Any) -> None:
    images = torch.arange(1.0, 1 + 64 * 48).view(64, 3, 4, 4)
    found = published.augmented(images, 1, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    seen = set()
    for image, one in zip(padded, found, strict=True):
        fits = [
            (down, right, flip)
            for down in range(3) for right in range(3) for flip in (False, True)
            if torch.equal(
                one, image[:, down : down + 4, right : right + 4].flip([2] if flip else [])
            )
        ]  # fmt: skip
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) > 12


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CifarResNet(8).eval()


def loop_of(published: Any, folder: Path | None) -> Any:
    training = Training(
        steps=5, batch_size=8, optimizer="sgd", lr=0.05, schedule="step", decay_every=2, augmentation={"shift": 1}
    )
    return published.PublishedDistillation(
        small(), small(1), SPEC, 10, training, temperature=3.0, recipe="deep_inversion/cifar10", image_steps=20,
        per_round=8, generate_every=2, rounds=2, seed=0, checkpoint_dir=folder,
    )  # fmt: skip


@pytest.mark.parametrize("place", [("invert", 10), ("learn", 3)])
def test_published_loop_continues_with_the_same_bits(published: Any, tmp_path: Path, place: tuple[str, int]) -> None:
    whole = loop_of(published, None)
    whole.run(lambda *_: None, lambda _: True)
    assert whole.step == 5 and len(whole.images) == 16 and whole.made == 2

    calls = []

    def tick(*where: Any) -> None:
        calls.append(where)
        if where == place and len(calls) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop_of(published, tmp_path).run(tick, lambda _: True)
    again = loop_of(published, tmp_path)
    again.run(lambda *_: None, lambda _: True)
    assert torch.equal(again.images, whole.images)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], value), name


def test_published_loop_stops_when_told(published: Any) -> None:
    loop = loop_of(published, None)
    loop.run(lambda *_: None, lambda step: step < 3)
    assert loop.step == 3


def photograph(folder: Path) -> Path:
    pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    Image.fromarray(pixels.numpy()).save(folder / "photograph.png")
    return folder / "photograph.png"


OF_DELEGATOR = [
    "steps=6",
    "generate_every=1",
    "batch_size=8",
    "width=4",
    "latent_size=8",
    "precision=float32",
    "evaluate_every=2",
]
SMALL = [
    "steps=6", "rounds=2", "generate_every=2", "batch_size=8", "precision=float32", "evaluate_every=2",
    "per_round=8", "image_steps=12", "fast.width=4", "fast.latent_size=8", "fast.warmup=1",
]  # fmt: skip


@pytest.fixture
def command(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``command(folder, method, …)`` runs one cell of a small domain and returns its row."""
    images = torch.randint(256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 10
    student = ("cifar_resnet", {"depth": 8})
    domain = bench.Domain("cifar10", small(), SPEC, 10, student, images, labels, "cpu", (photograph(tmp_path),))
    monkeypatch.setattr(bench, "domain_of", lambda args, data: domain)
    monkeypatch.setattr(bench.xf.data, "load", lambda name: None)
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    threads = torch.get_num_threads()

    def run(folder: str, method: str, *more: str, settings: list[str] = SMALL) -> Any:
        path = tmp_path / f"{folder}.json"
        argv = ["cifar10", "--data", "d.npz", "--weights", "w", "--methods", method, "--seeds", "3", "--minutes", "5"]
        argv += ["--folder", str(tmp_path / folder), "--results", str(path), "--set", *settings, *more]
        monkeypatch.setattr("sys.argv", ["time_to_accuracy.py", *argv])
        bench.main()
        (row,) = load_json(path)["rows"]
        return row

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", ["published", "adaptive", "fast", "delegator", "photographs"])
def test_killed_cells_continue_with_the_same_curve(
    bench: Any, command: Any, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = OF_DELEGATOR if method == "delegator" else SMALL
    command = partial(command, settings=settings)
    whole = command("whole", method)
    assert whole["known"] == ("one photograph" if method == "photographs" else "nothing")
    assert [len(whole["curves"]["3"]), whole["seeds"], whole["method"]] == [3, 1, method]
    assert whole["runs"][0]["finished"] and whole["runs"][0]["schedule"]["steps"] == 6

    monkeypatch.setattr("exml_fast.checkpoint.SECONDS", 0.0)
    tick, calls = bench.Clock.tick, []

    def kill(clock: Any, stage: str, step: int) -> None:
        tick(clock, stage, step)
        calls.append(step)
        if (stage, step) == ("learn", 4) and len(calls) < 1000:
            calls.extend([0] * 1000)
            raise SystemExit(143)

    monkeypatch.setattr(bench.Clock, "tick", kill)
    with pytest.raises(SystemExit):
        command("killed", method)
    again = command("killed", method)
    assert [point[1] for point in again["curves"]["3"]] == [point[1] for point in whole["curves"]["3"]]
    minutes = [point[0] for point in again["curves"]["3"]]
    assert minutes == sorted(minutes)
    (cell,) = (tmp_path / "killed").glob("cifar10/*/5/seed3")
    assert load_json(cell / "cell.json")["done"] and not list(cell.glob("*.pt"))
    assert command("killed", method) == again  # nothing is left to do


def test_schedule_follows_from_measured_times(command: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = bench.METHODS["adaptive"]
    monkeypatch.setitem(bench.METHODS, "adaptive", dataclasses.replace(method, costs=lambda *_: (20.0, 30.0)))
    free = [each for each in SMALL if each.split("=")[0] not in ("steps", "rounds", "generate_every", "evaluate_every")]
    row = command("fitted", "adaptive", settings=[*free, "share=0.5", "until=0.8"])
    (run,) = row["runs"]
    found = {name: run["schedule"][name] for name in ("steps", "rounds", "generate_every", "step_seconds")}
    assert found == {"steps": 7, "rounds": 5, "generate_every": 1, "step_seconds": 20.0}
    with pytest.raises(ValueError, match="give another --folder"):
        command("fitted", "adaptive", settings=[*free, "share=0.4"])


def test_measured_times_are_positive(bench: Any) -> None:
    domain = bench.Domain("cifar10", small(), SPEC, 10, ("cifar_resnet", {"depth": 8}), None, None, "cpu")
    settings = bench.changed(bench.METHODS["deep-inversion"].settings, [*SMALL, "mixup=0"])
    step, a_round = bench.METHODS["deep-inversion"].costs(domain, settings)
    assert step > 0 and a_round > 0
    assert min(bench.METHODS["published"].costs(domain, settings)) > 0
    assert bench.METHODS["dead-leaves"].costs(domain, settings)[0] > 0


def test_settings_are_changed_by_name(bench: Any) -> None:
    found = bench.changed({"lr": 0.1}, ["lr=0.2", "recipe=deep_inversion", "recipe.bn=3", 'augmentation={"shift": 2}'])
    assert found == {"lr": 0.2, "recipe": "deep_inversion", "recipe.bn": 3, "augmentation": {"shift": 2}}
    with pytest.raises(ValueError, match="--set must be NAME=VALUE"):
        bench.changed({}, ["lr"])


def test_photographs_must_be_given(bench: Any) -> None:
    domain = bench.Domain("cifar10", small(), SPEC, 10, ("cifar_resnet", {"depth": 8}), None, None, "cpu")
    with pytest.raises(ValueError, match="--photographs must be given"):
        bench.METHODS["photographs"].known(domain)


def test_unknown_settings_are_named(command: Any) -> None:
    with pytest.raises(ValueError, match="learning"):
        command("unknown", "adaptive", settings=[*SMALL, "learning=1"])


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--validation"], "--validation takes seeds of 100 or more"), (["--cells", "adaptive:5"], "METHOD:MINUTES:SEED")],
)
def test_bad_options_are_refused(
    command: Any, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        command("bad", "adaptive", *more)
    assert message in capsys.readouterr().err


def test_cells_may_be_listed(bench: Any) -> None:
    listed = Namespace(cells=["adaptive:40:1", "published:360:0"])
    assert bench.cells_of(listed) == [("adaptive", 40.0, 1), ("published", 360.0, 0)]
    product = Namespace(cells=None, seeds=[0, 1], minutes=[5.0, 9.0], methods=["published", "adaptive"])
    assert bench.cells_of(product) == [
        ("adaptive", 5.0, 0), ("published", 9.0, 0), ("adaptive", 9.0, 0),
        ("adaptive", 5.0, 1), ("published", 9.0, 1), ("adaptive", 9.0, 1),
    ]  # fmt: skip


def test_clock_file_is_json(budget: Any, tmp_path: Path) -> None:
    budget.Clock(tmp_path / "clock", read=Watch()).tick("learn", 7)
    assert json.loads((tmp_path / "clock").read_text()) == [7, "learn", 7, 0.0, 0.0]
