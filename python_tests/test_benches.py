"""The benchmarks: all contenders compute the same, rows are complete, tables are rendered."""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from exml_fast.data import InputSpec
from exml_fast.inversion import Synthesizer
from exml_fast.inversion.augmentation import Augmentation, Draws
from exml_fast.storage import load_json

BENCHES = Path(__file__).resolve().parents[1] / "benches"
STEPS = 4
SEED = 2  # some of its steps flip, others not


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("inversion")


def network() -> tuple[nn.Module, str]:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return model, "random weights"


@pytest.fixture
def roofline(bench: Any) -> Any:
    return importlib.import_module("roofline")


@pytest.fixture
def problem(bench: Any) -> Any:
    found, _ = bench.problem_of(bench.Teacher(network, 3, 16, 6, 6, 2), "cpu")
    # Weights at which every term counts: a wrong one would show.
    found.recipe = found.recipe.replace(tv_l2=1e-2, l2=1e-2, steps=STEPS)
    return found


def test_contenders_see_the_same_losses(bench: Any, problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = problem.labels
    still = problem.recipe.replace(steps=1, lr=1e-30, clip=None)
    problem.start = Synthesizer(problem.model, problem.spec, still, precision="float32").run(labels, seed=SEED).images

    drawn: list[Draws] = []
    original = Augmentation.draw

    def draw(self: Augmentation, *args: Any, **kwargs: Any) -> Draws:
        drawn.append(original(self, *args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(Augmentation, "draw", draw)
    # Not "auto": which of the small convolutions are faster in bfloat16 is the machine's mood.
    engine = Synthesizer(problem.model, problem.spec, problem.recipe, precision="float32").run(labels, seed=SEED)
    (draws,) = drawn
    assert draws.shift is not None and draws.flip is not None and 0 < draws.flip.sum() < STEPS
    shift, flip = draws.shift.tolist(), draws.flip.tolist()

    def same_draws() -> Iterator[tuple[int, int, bool]]:
        return iter([(*s, f) for s, f in zip(shift, flip, strict=True)])

    problem.draws = same_draws
    published, compiled = bench.Published(problem), bench.Compiled(problem, bench.Option("float32"), backend="eager")
    for contender in (published, compiled):
        losses = torch.tensor([float(contender.step()) for _ in range(STEPS)], dtype=torch.float64)
        assert torch.allclose(losses, engine.history["loss"], rtol=1e-3), type(contender)
        assert torch.allclose(losses[0], engine.history["loss"][0], rtol=1e-5), type(contender)
        assert (contender.x.detach() - engine.images).abs().mean() < 1e-3


def test_each_term_counts(bench: Any, problem: Any) -> None:
    """Without this the test above could pass with terms that are zero."""
    for term in ("ce", "tv_l2", "l2", "bn"):
        without = dataclasses.replace(problem, recipe=problem.recipe.replace(**{term: 0.0}))
        losses = [bench.Published(p).step() for p in (problem, without)]
        assert abs(losses[0] - losses[1]) > 1e-3 * losses[0], term


def test_folding(bench: Any, problem: Any) -> None:
    model = problem.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = importlib.import_module("inversion_contenders").folded(model, problem.start)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert torch.allclose(fused(problem.start), model(problem.start), atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in fused.parameters())


def test_folding_keeps_a_batch_norm_that_follows_no_convolution(bench: Any) -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.bn(x * 2)).mean((2, 3))

    model = PreActivation().eval()
    assert isinstance(
        importlib.import_module("inversion_contenders").folded(model, torch.randn(2, 3, 4, 4)).bn, nn.BatchNorm2d
    )


def test_catching_up(bench: Any) -> None:
    assert bench.catches_up(30.0, 90.0, 1.0, 100.0) == 2900
    assert bench.catches_up(30.0, 100.0, 1.0, 90.0) is None
    assert bench.catches_up(0.0, 90.0, 1.0, 100.0) == 0


def test_results(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(bench, "TEACHERS", {"tiny": bench.Teacher(network, 3, 16, 6, 6, 2)})
    path = tmp_path / "results.json"
    argv = ["inversion.py", "--teachers", "tiny", "--no-compile", "--rounds", "3", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", [*argv, "--precisions", "float32"])
    bench.main()
    (row,) = load_json(path)["rows"]
    assert (row["teacher"], row["batch"], row["device"], row["dtype"], row["rounds"]) == (
        "tiny",
        6,
        "cpu",
        "float32",
        3,
    )
    for kind in ("reference", "bare", "engine"):
        low, high = row["spread"][kind]
        assert 0 < low <= row[f"{kind}_ms"] <= high and row["plain_ms"][kind] > 0
        assert row["setup_s"][kind] >= 0 and row[f"{kind}_peak_mb"] >= 0 and row["plain_peak_mb"][kind] >= 0
    assert row["convolutions_ms"] > 0 and "convolutions" not in row["plain_ms"]
    assert row["alternative_ms"] is None and row["alternative"] is None and row["bare"] in bench.DTYPES
    assert "tiny 16² b6" in capsys.readouterr().out


def test_recorded_commands_contain_no_folders(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/f/x.py", "--data", "/a/b/c.npz", "--out", "d/e", "--n", "3", "a b"])
    importlib.import_module("measure").write_results(tmp_path / "results.json", [])
    assert load_json(tmp_path / "results.json")["command"] == "x.py --data c.npz --out d/e --n 3 'a b'"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_counts_memory_that_is_freed(bench: Any) -> None:
    def call() -> None:
        torch.ones(16 * 2**20).sum()

    measure = importlib.import_module("measure")
    assert 60 < measure.peak_rss_mb(call) < 90


def test_roofline_counts_the_flops_that_pytorch_counts(roofline: Any) -> None:
    model = network()[0].eval().requires_grad_(False)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    costs = roofline.costs(model, images)
    assert sum(cost.flops for cost in costs) == counter.get_total_flops()


def test_roofline_counts_the_numbers_moved(roofline: Any) -> None:
    model = network()[0].eval()
    found = {cost.name: cost.elements for cost in roofline.costs(model, torch.randn(4, 3, 16, 16))}
    images, first, second = 4 * 3 * 16 * 16, 4 * 6 * 16 * 16, 4 * 8 * 7 * 7
    assert found == {
        "0": 2 * (images + first + 6 * 3 * 9),
        "1": 5 * first,
        "3": 2 * (first + second + 8 * 6 * 9),
        "4": 5 * second,
        "6": 2 * (second + 4 * 8),
        "8": 2 * (4 * 8 + 4 * 5 + 8 * 5),
    }


def test_roofline_takes_the_larger_of_the_two_times(roofline: Any) -> None:
    layers = [roofline.Cost("a", flops=8000, elements=100), roofline.Cost("b", flops=0, elements=1000)]
    machine = roofline.Machine(bytes_per_s=1000.0, flops_per_s={"bfloat16": 1000.0})
    found = roofline.ideal(layers, 0, machine, "bfloat16")
    assert found["ideal_ms"] == pytest.approx(1e3 * (8 + 2))
    assert (found["compute_ms"], found["memory_ms"]) == (pytest.approx(8e3), pytest.approx(2.2e3))


@pytest.fixture
def bench_ops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces compilation by a call of the same function."""
    monkeypatch.syspath_prepend(BENCHES)
    module = importlib.import_module("bench_ops")
    monkeypatch.setattr(module, "compiled", lambda f, *args: lambda: f(*args))
    monkeypatch.setattr(module, "ROWS", {"cpu": []})
    return module


def of_every_op(bench_ops: Any, benchmark: Any) -> None:
    """Runs the benchmark of every op, on small shapes."""
    for memory_format in bench_ops.FORMATS:
        bench_ops.test_bn_match(benchmark, (2, 3, 8, 8), memory_format, "cpu")
        bench_ops.test_frozen_bn_act(benchmark, (2, 3, 8, 8), "tanh", False, memory_format, torch.float32, "cpu")
        bench_ops.test_frozen_bn_act(benchmark, (2, 3, 8, 8), "relu", True, memory_format, torch.bfloat16, "cpu")
        bench_ops.test_image_prior(benchmark, (2, 3, 8, 8), memory_format, "cpu")
        bench_ops.test_jitter_flip(benchmark, (2, 3, 8, 8), memory_format, torch.bfloat16, "cpu")
        bench_ops.test_adam_clip(benchmark, (2, 3, 8, 8), memory_format, "cpu")
        bench_ops.test_lane_conv2d(benchmark, "LeNet-5, first", memory_format)
    bench_ops.test_winograd_conv2d(benchmark, "ResNet-50, first stage", torch.float32)
    bench_ops.test_frozen_conv2d(benchmark, torch.float32)
    bench_ops.test_average_pool2d(benchmark, (2, 3, 8, 8))
    bench_ops.test_match_statistics(benchmark, 3, "cpu")
    for target in ("indices", "soft"):
        bench_ops.test_soft_cross_entropy(benchmark, (4, 10), target, "cpu")
    bench_ops.test_jensen_shannon(benchmark, (4, 10), "cpu")


def test_contenders_of_an_op_compute_the_same(bench_ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def assert_same(case: dict[str, Any], found: dict[str, list[Tensor]], tolerance: float) -> None:
        seen.append(case["op"])
        for name, tensors in found.items():
            for a, b in zip(tensors, found["exml_fast"], strict=True):
                error = (a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-6)
                assert error < tolerance, (case, name, float(error))

    def run(_benchmark: Any, case: dict[str, Any], contenders: Any, *leaves: Tensor) -> None:
        results = {name: f() for name, f in contenders.items()}
        found = {name: [y.detach(), *torch.autograd.grad(y, leaves)] for name, y in results.items()}
        half = torch.bfloat16 in (leaves[0].dtype, results["exml_fast"].dtype)
        assert_same(case, found, 0.02 if half else 1e-4)

    def run_calls(_benchmark: Any, case: dict[str, Any], contenders: Any, _device: str) -> None:
        assert_same(case, {name: [f().detach()] for name, f in contenders.items()}, 1e-5)

    monkeypatch.setattr(bench_ops, "run", run)
    monkeypatch.setattr(bench_ops, "run_calls", run_calls)
    of_every_op(bench_ops, None)
    assert len(set(seen)) == 12


def test_ops_are_rendered(bench_ops: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = bench_ops.interleaved
    monkeypatch.setattr(bench_ops, "interleaved", lambda *a, **options: measured(*a, rounds=1, warmup=1, **options))
    of_every_op(bench_ops, SimpleNamespace(extra_info={}, pedantic=lambda *_, **__: None))
    bench_ops.test_dirichlet_targets(SimpleNamespace(extra_info={}, pedantic=lambda *_, **__: None), 10, "cpu")
    rows = bench_ops.ROWS["cpu"]
    importlib.import_module("measure").write_results(tmp_path / "ops-cpu.json", rows)
    engine = importlib.import_module("readme_tables.engine")
    short, lines = (table(tmp_path / "ops-cpu.json").splitlines() for table in (engine.ops, engine.all_ops))
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines if line.startswith("| `")}
    assert len(cells) == len(rows)
    medians = {line.split(" | ")[0][3:-1]: line.split(" | ")[3:5] for line in short if line.startswith("| `")}
    assert list(medians) == list(engine.OPS) and set(medians) == {row["op"] for row in rows}
    for name, (median, worst) in medians.items():
        found = {engine.case_of(row): engine.over_pytorch(row) for row in rows if row["op"] == name}
        assert median == f"{statistics.median(found.values()):.1f}×"
        factor, _, case = worst.partition("×: ")
        assert factor == f"{min(found.values()):.1f}" == f"{found[case]:.1f}"
    for name in (
        "`frozen_bn_act` 2 × 3 × 8 × 8, tanh, contiguous",
        "`frozen_bn_act` 2 × 3 × 8 × 8, residual and relu, channels_last, bfloat16",
        "`match_statistics` 3 layers",
        "`jitter_flip` 2 × 3 × 8 × 8, channels_last, bfloat16",
        "`adam_clip_` 2 × 3 × 8 × 8, contiguous",
        "`jensen_shannon` 4 × 10",
        "`lane_conv2d` 256 × 1 × 32 × 32, LeNet-5, first, contiguous",
    ):
        time, over_pytorch, _, over_compiled, _ = cells[name]
        assert time.endswith(" ms") and over_pytorch.endswith("×") and over_compiled.endswith("×"), name


def test_compiling_that_copies_eager_is_no_win(bench: Any) -> None:
    engine = importlib.import_module("readme_tables.engine")
    faster = {"published": 12.0, "var_mean": 6.0, "compiled": 10.6}
    assert engine.over_best({"times_faster": faster}) == 6.0
    assert engine.over_best({"times_faster": {**faster, "compiled": 2.0}}) == 2.0
    assert engine.over_best({"times_faster": {"published": 12.0}}) is None


@pytest.mark.parametrize("seeds", [1, 2])
def test_precisions_are_compared_and_rendered(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seeds: int
) -> None:
    precision = importlib.import_module("precision")
    small, large = precision.cases(tmp_path, 0.001)
    assert [case.recipe.optimisation.steps for case in (small, large)] == [1, 1]
    assert large.recipe.optimisation.coarse_steps == (1,)
    spec = InputSpec(3, (16, 16), (0.5,) * 3, (0.5,) * 3)
    networks = lambda: (network()[0].eval(), network()[0].eval())  # noqa: E731
    case = dataclasses.replace(small, load=networks, spec=spec, labels=torch.arange(5))
    monkeypatch.setattr(precision, "cases", lambda *_: [case])
    path = tmp_path / "precision-cpu.json"
    argv = f"precision.py --weights {tmp_path} --seeds {seeds} --json {path} --folder {tmp_path}/cells".split()
    monkeypatch.setattr(sys, "argv", argv)
    precision.main()
    rows = load_json(path)["rows"]
    assert rows[0]["judge_difference"] == 0 and rows[0]["images"] == 5 * seeds
    monkeypatch.setattr(precision, "measured", lambda *_: pytest.fail("measured again"))
    precision.main()
    assert load_json(path)["rows"] == rows
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    assert all(0 <= row["teacher"] <= 100 and 0 <= row["judge"] <= 100 and row["objective"] > 0 for row in rows)
    table = importlib.import_module("readme_tables.engine").precision(path)
    assert f"| ResNet-20, {5 * seeds} images, 1 steps, bfloat16 |" in table and ("±" in table) == (seeds > 1)


def test_deep_inversion_writes_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numpy as np

    from exml_fast.continual import train_expert
    from exml_fast.data import load
    from exml_fast.models import CifarResNet

    monkeypatch.syspath_prepend(BENCHES)
    bench = importlib.import_module("deep_inversion")
    for depth, file in bench.FILES.items():
        state = {f"module.{name}": value for name, value in CifarResNet(depth).state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / file)
    pixels, labels = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    options = (
        f"agreement ablation students table1 --cifar10 {tmp_path}/cifar10.npz --weights {tmp_path} "
        f"--results {tmp_path} --steps 2 --per-class 2 --student-steps 2 --student-image-steps 1 --rounds 1 "
        f"--per-round 4 --teacher {tmp_path}/vgg --student resnet18_cifar"
    ).split()
    data = load(str(tmp_path / "cifar10.npz"))
    vgg = {"architecture": "vgg11_bn_cifar", "arguments": {"width": 4}}
    train_expert(data, epochs=1, batch_size=4, **vgg).expert.save(tmp_path / "vgg")
    monkeypatch.setattr(sys, "argv", ["deep_inversion.py", *options, "--methods", "Adaptive DeepInversion"])
    bench.main()
    table1 = tmp_path / "yin2020-table1-vgg11_bn-resnet18.json"
    files = {**{name: tmp_path / file for name, file in bench.FILES_OF.items()}, "table1": table1}
    found = {name: load_json(file)["rows"] for name, file in files.items()}
    cells = [row["cell"] for row in found["agreement"]]
    assert len(cells) == 5 and cells[-1] == "agreement/DeepInversion, ours" and found["agreement"][-1]["reduced"]
    assert [row["cell"] for row in found["ablation"][2:]] == [
        f"ablation/{name}" for name in bench.RECIPES_OF["ablation"]
    ]
    (row,) = found["students"][2:]
    assert row["cell"] == "student/Adaptive DeepInversion" and row["images"] == 4 and 0 <= row["ours"] <= 100
    assert "48750" in row["note"] and row["paper"] is None
    network, row = found["table1"]
    assert network["cell"] == "network/vgg11_bn_cifar (teacher)" and network["training"]["epochs"] == 1
    assert (row["student"], row["paper"], row["reduced"]) == ("resnet18_cifar", 90.36, True)
    tables = importlib.import_module("readme_tables.images")
    for question in bench.RECIPES_OF:
        assert "by ResNet-56" in tables.agreement(files[question])
    assert "| Adaptive DeepInversion |" in tables.students(files["students"])
    assert "| Adaptive DeepInversion | 90.36 % |" in tables.students(table1)
    options = [*options[3:], "--published"]  # table1 alone
    monkeypatch.setattr(sys, "argv", ["deep_inversion.py", *options, "--methods", "DeepInversion"])
    bench.main()
    (_, row) = load_json(table1.with_stem(f"{table1.stem}-published"))["rows"]
    assert row["published"] and row["recipe"]["name"] == "deep_inversion/cifar10"
    training = row["config"]["training"]
    assert (training["schedule"], training["mixup"], training["decay_every"]) == ("step", 0.0, 1)


def test_table_of_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One run has its accuracies; runs of further seeds beside it have a column each, and the mean."""
    monkeypatch.syspath_prepend(BENCHES)
    readme, streams = map(importlib.import_module, ("readme", "readme_tables.streams"))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    machine = {"gpu": None, "cpu": "a CPU", "threads": 1, "torch": "2"}
    for seed, accuracy in ((0, 70.0), (1, 75.0)):
        row = {"cell": "a", "name": "A method", "ours": accuracy, "seconds": 9.0, "peak_mb": 1.0}
        row |= {"kind": "strategy", "slug": "model-inversion", "note": "10 of 20 steps"}
        run = {
            "command": "exml-fast demo",
            "commit": None,
            "machine": machine,
            "settings": {"seed": seed, "distillation": {"buffer_size": 300}},
            "rows": [row],
        }
        (tmp_path / f"run{seed}" / "report").mkdir(parents=True)
        (tmp_path / f"run{seed}" / "results.json").write_text(json.dumps(run))
    (tmp_path / "docs").mkdir()
    (tmp_path / "run0" / "report" / "samples.png").write_bytes(b"a picture")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    readme.take_demo(tmp_path / "run0")
    assert "| A method | 70.0 % | 9 s | 1 MB |" in streams.demo(tmp_path / "demo-digits.json")
    assert "\n\nA method: 10 of 20 steps.\n\n" in streams.demo(tmp_path / "demo-digits.json")
    readme.take_demo(tmp_path / "run1")
    assert "| A method | 70.0 % | 75.0 % | 72.5 % | 9 s | 1 MB |" in streams.demo(tmp_path / "demo-digits.json")
    assert (tmp_path / "docs" / "demo.png").read_bytes() == b"a picture"


@pytest.fixture
def ex_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("ex_model")


def test_published_inversion_of_mnist_has_the_loss_of_the_recipe(ex_model: Any) -> None:
    from exml_fast.inversion.objective import Objective, Step

    expert, labels, start = ex_model.random_experts()[0], torch.arange(6) % 2, torch.randn(6, 1, 32, 32)
    published = ex_model.PublishedInversion(expert.model, labels, start)
    loss = published.loss(0, 0)
    logits = expert.model(start)
    total, _ = Objective.of(ex_model.RECIPE.classification, ex_model.RECIPE.priors)(Step(start, start, logits, labels))
    assert loss.item() == pytest.approx(total.item() / len(labels), rel=1e-4)
    before = published.x.detach().clone()
    assert published() == pytest.approx(loss.item(), rel=0.2) and not torch.equal(published.x, before)


def test_published_distillation_is_equation_10(ex_model: Any) -> None:
    from exml_fast.continual.ex_model.losses import distillation_loss
    from exml_fast.continual.ex_model.targets import combined_targets

    first, second, *_ = ex_model.random_experts()
    images, labels = torch.randn(6, 1, 32, 32), torch.tensor([0, 1, 2, 3, 0, 2])
    student = type(first.model)()
    published = ex_model.PublishedDistillation(student, second, first.model, [0, 1], images, labels)
    known = torch.zeros(2, 10, dtype=torch.bool)
    known[0, :2], known[1, 2:4] = True, True
    with torch.no_grad():
        target, mask = combined_targets(first.model(images), second.model(images), known[0], known[1], labels)
        term, ce = distillation_loss(student(images), target, mask, labels, torch.arange(4), ex_model.CONFIG.loss)
    assert published.loss(images, labels).item() == pytest.approx((term + ce).item(), rel=1e-5)


def test_ex_model_writes_rows(ex_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ex_model, "BLOCK", 1)
    monkeypatch.setattr(ex_model, "RECIPE", ex_model.RECIPE.replace(batch_size=8))
    monkeypatch.setattr(ex_model, "CONFIG", ex_model.CONFIG.replace(steps=10, batch_size=4, buffer_size=40))
    argv = ["ex_model.py", "--rounds", "2", "--precisions", "float32", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", argv)
    ex_model.main()
    (row,) = load_json(tmp_path / "rows.json")["rows"]
    assert row["inversion_steps"] == 3000 * (5 + 3 + 2 + 2 + 1) and row["distillation_steps"] == 50
    assert row["times_faster"] == pytest.approx(row["published_hours"] / row["ours_hours"], rel=0.2)
    assert len(row["step_cpu_ms"]) == 6 and row["weights"] == "random"


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    module = importlib.import_module("student")
    monkeypatch.setitem(module.NETWORKS, "ResNet-20", lambda: module.CifarResNet(8))
    monkeypatch.setattr(module, "POOL", 64)
    return module


def test_students_contenders_take_the_same_steps(student: Any) -> None:
    case = student.Case("ResNet-20", 16, 1, "float32", 2, 2, False)
    parts = student.problem(case)
    plain, compiled = student.Plain(case, *parts), student.Compiled(case, *parts, backend="eager")
    ours = student.Ours(case, *parts)
    for contender in (plain, compiled):
        contender.run(5)  # beyond an epoch
    for _ in range(5):
        ours.run(1)
    torch.testing.assert_close(torch.tensor(plain.losses), torch.tensor(ours.losses), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.tensor(plain.losses), torch.tensor(compiled.losses), rtol=1e-3, atol=1e-6)
    assert len(set(plain.losses)) == 5


def test_student_writes_rows(student: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    small = student.Case("ResNet-20", 8, 1, "bfloat16", 3, 2, False)
    monkeypatch.setattr(student, "cases", lambda: [small])
    monkeypatch.setattr(student, "side_by_side", lambda case, processes, _: 8.0 / case.threads * processes)
    argv = ["student.py", "--networks", "ResNet-20", "--json", str(tmp_path / "student-cpu.json")]
    monkeypatch.setattr(sys, "argv", argv)
    threads = torch.get_num_threads()
    student.main()
    torch.set_num_threads(threads)
    row, scaling = load_json(tmp_path / "student-cpu.json")["rows"]
    assert (row["network"], row["batch"], row["dtype"]) == ("ResNet-20", 8, "bfloat16") and "alternative" not in row
    for name in ("plain", "ours"):
        assert set(row[name]) == {*student.PARTS, "step"}
        for times in row[name].values():
            assert 0 <= times["low"] <= times["median"] <= times["high"]
    assert scaling["scaling"] == {
        "network": "ResNet-20", "batch": 128, "dtype": "bfloat16", "one_thread_ms": 8.0, "two_threads_ms": 4.0,
        "two_processes_ms": 16.0,
    }  # fmt: skip
    assert "ResNet-20 b8 t1 bfloat16" in capsys.readouterr().out
    for name in ("plain", "ours"):
        for part, times in row[name].items():
            times["median"] = {"plain": 30.0, "ours": 10.0}[name] if part == "step" else 1.0
    path = tmp_path / "student-cpu.json"
    write = importlib.import_module("measure").write_results
    write(path, [row, scaling])
    row["ours"]["step"]["median"] = 15.0
    write(path.with_name("student-cpu-before.json"), [row])
    text = importlib.import_module("readme_tables.engine").student(path)
    assert "| 2.00× | 3.00× | – |" in text and "two threads take 2.00 times as many steps a second as one" in text
    assert "side by side take 1.00 times as many" in text and "20.0 to 20.0 % of our steps" in text
