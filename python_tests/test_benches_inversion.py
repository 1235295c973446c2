"""The contenders of benches/inversion.py: torch.compile's options, the same allocator for all, runs that continue."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exml_fast.storage import load_json, save_json

BENCHES = Path(__file__).resolve().parents[1] / "benches"
TEACHERS = ("lenet-bn", "resnet18-cifar", "resnet34-cifar", "mobilenet_v2", "efficientnet_lite0", "resnet50")


def network() -> tuple[nn.Module, str]:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return model, "random weights"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("inversion")


@pytest.fixture
def problem(bench: Any) -> Any:
    found, _ = bench.problem_of(bench.Teacher(network, 3, 16, 6, 6, 2), "cpu")
    found.recipe = found.recipe.replace(tv_l2=1e-2, l2=1e-2, steps=4)
    return found


def every_option(bench: Any) -> list[Any]:
    return [*bench.OPTIONS, *(bench.Option(o.dtype, mode) for o in bench.OPTIONS for mode in bench.MODES["cpu"])]


def test_every_option_of_torch_compile_is_the_same_step(bench: Any, problem: Any) -> None:
    exact = bench.Published(problem)
    losses = [exact.step() for _ in range(4)]
    for option in every_option(bench):
        torch._dynamo.reset()
        compiled = bench.Compiled(problem, option, backend="eager")
        found = [float(compiled.step()) for _ in range(4)]
        single = option.dtype == "float32"
        assert found == pytest.approx(losses, rel=1e-4 if single else 2e-2), option
        assert (compiled.x.detach() - exact.x.detach()).abs().mean() < (1e-4 if single else 0.05), option


def small(bench: Any, name: str) -> Any:
    """The problem of a real teacher, with two images."""
    teacher = dataclasses.replace(bench.TEACHERS[name], batch=2)
    return bench.problem_of(teacher, "cpu")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
def test_contenders_agree_on_the_real_teachers(bench: Any, name: str) -> None:
    """With the inductor backend: the loss, and the step of the images."""
    problem = small(bench, name)
    exact = bench.Published(problem)
    loss = exact.step()
    for option in (*bench.OPTIONS, bench.Option("float32", "frozen"), bench.Option("bfloat16", "frozen")):
        torch._dynamo.reset()
        compiled = bench.Compiled(problem, option)
        assert float(compiled.step()) == pytest.approx(loss, rel=1e-3 if option.dtype == "float32" else 3e-2), option
        if option.dtype == "float32":
            assert cosine(compiled.x.grad, exact.x.grad) > 0.999, option
    draw = next(problem.draws())
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 3e-2)):
        gradient, value = engine_gradient(problem, precision, draw)
        assert value == pytest.approx(loss, rel=tolerance), precision
        assert cosine(gradient, exact.x.grad) > (0.999 if precision == "float32" else 0.9), precision


def engine_gradient(problem: Any, precision: str, draw: Any) -> tuple[torch.Tensor, float]:
    """Gradient of the loss for the images, and the loss, on the engine's teacher."""
    from exml_fast import FrozenTeacher
    from exml_fast.inversion.objective import Objective, Step

    bench = importlib.import_module("inversion_contenders")
    recipe = problem.recipe
    teacher = FrozenTeacher(problem.model, problem.spec, precision=precision, batch_size=len(problem.labels))
    images = problem.start.clone().requires_grad_()
    inputs = bench.augmented(images, draw)
    logits, layers = teacher(inputs)
    objective = Objective.of(recipe.classification, recipe.priors, recipe.matching)
    total, _ = objective(Step(images, inputs, logits, problem.labels, layers))
    loss = total / len(images)
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient, float(loss)


def test_modes_are_tried_in_the_fastest_dtype(bench: Any, problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"float32, default": 3.0, "bfloat16, default": 1.0, "autocast, default": 2.0, "bfloat16, frozen": 0.5}
    asked: list[str] = []

    def tried(make: Any, _problem: Any) -> float:
        asked.append(str(make.args[1]))
        return times[asked[-1]]

    monkeypatch.setattr(bench, "tried", tried)
    monkeypatch.setattr(bench, "can_pack", lambda dtype: True)
    written: list[int] = []
    found = bench.searched(problem, {"bfloat16, max-autotune": 1.5}, lambda options: written.append(len(options)))
    assert asked == list(times) and found == {"bfloat16, max-autotune": 1.5, **times} and written == [2, 3, 4, 5]


def test_bfloat16_is_left_out_where_the_cpu_emulates_it(
    bench: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "tried", lambda *_: 1.0)
    monkeypatch.setattr(bench, "can_pack", lambda dtype: dtype == torch.float32)
    found = bench.searched(problem, {}, lambda _: None)
    assert list(found) == ["float32, default", "float32, max-autotune", "float32, frozen"]


def test_contenders_run_under_the_same_allocator(bench: Any, problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    def reused(where: str) -> Any:
        @contextmanager
        def block() -> Iterator[None]:
            entered.append(where)
            yield

        return block

    race = bench.Race(problem, 1, None, ["float32"], "float32")
    assert list(race.contenders) == ["reference", "engine float32", "convolutions float32", "bare"]
    monkeypatch.setattr(bench, "reused_memory", reused("bench"))
    monkeypatch.setattr("exml_fast.inversion.synthesizer.reused_memory", reused("engine"))
    for name in race.contenders:
        race._milliseconds(name)
    assert entered == ["bench", "engine", "bench", "bench"]
    for name in race.contenders:
        race._plain_milliseconds(name)
    assert len(entered) == 4
    plain = {f"plain {name}" for name in race.contenders if name != "convolutions float32"}
    assert set(race.times(1)) == {*race.contenders, *plain}
    assert len(entered) == 8


def test_the_convolutions_are_those_of_the_engine(bench: Any, problem: Any) -> None:
    alone = importlib.import_module("inversion_contenders").Convolutions(problem, "float32")
    expected = [m for m in problem.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [layer.weight.shape for layer, _ in alone.calls] == [conv.weight.shape for conv in expected]
    hooked: list[torch.Tensor] = []
    for conv in expected:
        conv.register_forward_pre_hook(lambda conv, args: hooked.append(args[0]))
    problem.model(problem.start)
    for (_, x), y in zip(alone.calls, hooked, strict=True):
        assert torch.allclose(x, y, atol=1e-4)
    alone.step()


def test_a_run_continues_with_the_next_teacher(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    measure = importlib.import_module("measure")
    commit = ["abc"]
    given = lambda *_: {"commit": commit[0], "machine": {}}  # noqa: E731
    monkeypatch.setattr(measure, "provenance", given)
    tiny = bench.Teacher(network, 3, 16, 6, 6, 1)
    monkeypatch.setattr(bench, "TEACHERS", {"first": tiny, "second": tiny})
    path = tmp_path / "rows.json"
    argv = f"inversion.py --no-compile --rounds 1 --precisions float32 --json {path} --teachers".split()

    def run(*names: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [*argv, *names])
        bench.main()
        return [row["teacher"] for row in load_json(path)["rows"]]

    assert run("first") == ["first"]
    before = load_json(path)["rows"][0]
    assert run("first", "second") == ["first", "second"] and load_json(path)["rows"][0] == before
    assert "first: measured before at this commit" in capsys.readouterr().out
    commit[0] = "def"
    assert run("second") == ["second"], "rows of an earlier commit are dropped"
    save_json(path, {**json.loads(path.read_text()), "commit": "def+changes"})
    commit[0] = "def+changes"
    assert run("first") == ["first"], "a tree with changes says nothing about what was measured"


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0))
