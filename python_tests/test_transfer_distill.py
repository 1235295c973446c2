from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exml_fast import InputSpec, Recipe, TransferConfig, distill, invert
from exml_fast.continual import Augmentation
from exml_fast.data import load
from exml_fast.distillation import divergence, mixup
from exml_fast.progress import TensorBoard
from exml_fast.storage import load_checkpoint
from exml_fast.training import ARITHMETIC

SPEC = InputSpec(1, (8, 8), (0.5,), (0.25,))
STILL = Augmentation(0)
RECIPE = Recipe("r", steps=6, batch_size=8, lr=0.1, bn=0.1, compete=1.0)
SHORT = TransferConfig(steps=20, batch_size=4, lr=0.05, generate_every=5, per_round=6, rounds=3, mixup=0.5)


def network(seed: int = 0, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(45, outputs)
    )


def test_divergence_and_mixup_are_their_formulas() -> None:
    t, s = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    assert torch.allclose(divergence(t, s, 3.0), 9 * (p * (p / q).log()).sum(1).mean())
    x, order = torch.randn(3, 1, 2, 2), torch.tensor([2, 0, 1])
    assert torch.allclose(mixup(x, torch.tensor(0.3), order), 0.3 * x + 0.7 * x[order])


def test_rates_are_those_of_the_paper() -> None:
    config = TransferConfig()
    assert [config.rate(s) for s in (0, 19499)] == [0.1, 0.1]
    assert [config.rate(s) for s in (19500, 39000)] == pytest.approx([0.01, 0.001])
    assert (config.steps, config.batch_size, config.generate_every, config.per_round) == (250 * 195, 256, 50, 256)
    cosine = TransferConfig(steps=100, schedule="cosine", warmup=10)
    assert cosine.rate(0) == pytest.approx(0.01) and cosine.rate(10) == pytest.approx(0.1) and cosine.rate(99) < 1e-4
    assert TransferConfig(**config.to_dict()) == config


@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_a_step_is_sgd_on_the_divergence(mixed: float) -> None:
    teacher, student, images = network(1), network(0).eval(), torch.randn(4, *SPEC.shape)
    student[4].p = 0.0
    config = TransferConfig(
        steps=1, batch_size=4, lr=0.1, momentum=0.0, weight_decay=0.0, augmentation=STILL, temperature=2.0, mixup=mixed,
        lambda_ce=0.5,
    )  # fmt: skip
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                seen.append(x.clone())
            return self.model(x)

    result = distill(Seen(teacher), student, images, spec=SPEC, config=config)
    inputs = seen[-1]
    student.train()
    goal, logits = teacher.eval()(inputs).detach(), student(inputs)
    loss = divergence(goal, logits, 2.0)
    if not mixed:
        loss = loss + 0.5 * nn.functional.cross_entropy(logits, goal.argmax(1))
        assert result.history["loss"] == pytest.approx([loss.item()], rel=1e-4)
        loss.backward()
        expected = student[5].weight - 0.1 * student[5].weight.grad
        assert torch.allclose(result.student[5].weight, expected, atol=1e-5)
    else:  # every input is a mixture of two of the images
        basis = images.flatten(1).T
        shares = torch.linalg.lstsq(basis, inputs.flatten(1).T).solution
        assert torch.allclose(basis @ shares, inputs.flatten(1).T, atol=1e-4)
        assert torch.allclose(shares.sum(0), torch.ones(4), atol=1e-4)
        assert result.history["kl"] == pytest.approx([loss.item()], rel=1e-3)


def test_bfloat16_arithmetic_rounds_the_networks_and_nothing_else() -> None:
    teacher, student, images = network(1), network(0), torch.randn(16, *SPEC.shape)
    config = TransferConfig(steps=10, batch_size=8, lr=0.05, augmentation=STILL)
    exact, rounded = (
        distill(teacher, student, images, spec=SPEC, config=config, arithmetic=kind) for kind in ARITHMETIC
    )
    assert rounded.history["kl"] != exact.history["kl"] == pytest.approx(rounded.history["kl"], rel=0.05)
    for a, b in zip(exact.student.state_dict().values(), rounded.student.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and b.is_contiguous() and torch.allclose(a.float(), b.float(), atol=0.02)


def test_rounds_join_the_pool_and_are_learned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from exml_fast.distillation import transfer

    steps: list[Tensor] = []
    take = transfer._Run._take_step

    def spy(run: Any, images: Tensor, labels: Tensor) -> Tensor:
        steps.append(images.clone())
        return take(run, images, labels)

    monkeypatch.setattr(transfer._Run, "_take_step", spy)
    first = torch.randn(5, *SPEC.shape)
    reports: list[tuple[str, int, int]] = []
    result = distill(
        network(1), network(0), first, spec=SPEC, recipe=RECIPE, config=SHORT, augmentation=STILL,
        progress=lambda *a: reports.append(a[:3]),
    )  # fmt: skip
    assert [r["step"] for r in result.rounds] == [0, 5, 10] and len(result.images) == 5 + 18
    assert torch.equal(result.images[:5], first)
    assert [r for r in reports if r[0] == "learn"] == [("learn", n, 20) for n in (5, 10, 15, 20)]

    def among(batch: Tensor, pool: Tensor) -> bool:
        return all(any(torch.equal(x, y) for y in pool) for x in batch)

    for number, step in enumerate((0, 5, 10)):
        assert among(steps[step], result.images[5 + 6 * number : 11 + 6 * number])
        assert all(among(batch, result.images[: 11 + 6 * number]) for batch in steps[step : step + 5])
    # Early images are drawn again later.
    assert any(torch.equal(x, y) for batch in steps[15:] for x in batch for y in first)
    assert result.history["step"] == [5, 10, 15, 20] and set(result.rounds[0]) >= {"teacher", "student", "seconds"}


def test_each_round_takes_one_of_several_recipes() -> None:
    still = RECIPE.replace(steps=1, lr=1e-9, compete=0.0, bn=0.0, clip="valid")
    zeros, noise = still.replace(name="a", init_scale=0.0), still.replace(name="b")
    result = distill(
        network(1), network(0), spec=SPEC, recipe=[zeros, noise], config=SHORT, rounds=20, generate_every=1,
    )  # fmt: skip
    chosen = [r["recipe"] for r in result.rounds]
    assert len(chosen) == 20 and 3 < sum(chosen) < 17
    for number, which in enumerate(chosen):
        assert bool(result.images[6 * number : 6 * number + 6].abs().max() > 0.1) == bool(which)
    with pytest.raises(ValueError, match="recipe must name at least one recipe, got none"):
        distill(network(1), network(0), spec=SPEC, recipe=[])


def test_the_pool_has_its_size_and_classes_are_balanced() -> None:
    result = distill(
        network(1), network(0), spec=SPEC, recipe=RECIPE.replace(compete=0.0), config=SHORT, pool_size=9, per_round=4,
        classes=[1, 3],
    )  # fmt: skip
    assert len(result.images) == 9 and set(result.labels.tolist()) == {1, 3}
    assert abs(int((result.labels == 1).sum()) - 4.5) < 1
    with pytest.raises(ValueError, match="pool_size 3 is smaller than the 4 images given"):
        distill(network(1), network(0), torch.randn(4, *SPEC.shape), spec=SPEC, config=SHORT, pool_size=3)


def test_the_student_in_the_loop_is_the_one_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from exml_fast.inversion import Synthesizer

    students: list[Tensor] = []
    run = Synthesizer.run

    def spy(self: Synthesizer, labels: Tensor, **options: Any) -> Any:
        students.append(options["student"][5].weight.detach().clone())
        return run(self, labels, **options)

    monkeypatch.setattr(Synthesizer, "run", spy)
    student, teacher = network(0), network(1)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    distill(teacher, student, spec=SPEC, recipe=RECIPE, config=SHORT)
    assert len(students) == 3 and torch.equal(students[0], before["5.weight"])
    assert not torch.equal(students[1], students[0]) and not torch.equal(students[2], students[1])
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items()) and student.training


@pytest.mark.parametrize("given", [0, 5])
@pytest.mark.parametrize("where", ["memory", "disk", "disk, bounded"])
@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_an_interrupted_transfer_continues_bit_for_bit(tmp_path: Path, at: int, where: str, given: int) -> None:
    images = torch.randn(given, *SPEC.shape) if given else None
    bounded = {"pool_size": 9} if "bounded" in where else {}

    def run(**options: Any) -> Any:
        return distill(
            network(1), network(0), images, spec=SPEC, recipe=RECIPE, config=SHORT,
            evaluate=lambda s: s[5].weight.sum().item(), evaluate_every=7, **bounded, **options,
        )  # fmt: skip

    expected, calls = run(), 0
    checkpoints, pool = tmp_path / "checkpoints", None if where == "memory" else tmp_path / "pool"

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(checkpoint_dir=checkpoints, pool_dir=pool, progress=interrupt)
    assert any("continues from there" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="another run"):
        run(checkpoint_dir=checkpoints, pool_dir=pool, seed=1)
    torch.rand(3)
    found = run(checkpoint_dir=checkpoints, pool_dir=pool)
    for key, value in expected.student.state_dict().items():
        assert torch.equal(value, found.student.state_dict()[key]), key
    assert torch.equal(found.images, expected.images) and found.history == expected.history
    assert found.evaluations == expected.evaluations and [e[0] for e in found.evaluations] == [7, 14, 20]
    assert not list(checkpoints.iterdir())
    if pool is not None:
        (file,) = pool.iterdir()
        assert file.stat().st_size == expected.images.nbytes


def test_a_checkpoint_of_a_pool_on_disk_holds_no_images_and_checks_the_file(tmp_path: Path) -> None:
    options: dict[str, Any] = {"spec": SPEC, "recipe": RECIPE, "config": SHORT, "checkpoint_dir": tmp_path / "c"}
    first = torch.randn(200, *SPEC.shape)

    def stop(stage: str, step: int, *_: object) -> None:
        if (stage, step) == ("learn", 10):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(network(1), network(0), first, pool_dir=tmp_path / "p", progress=stop, **options)
    (file,) = (tmp_path / "p").iterdir()
    state = load_checkpoint(tmp_path / "c" / "transfer.pt")["pool"]
    assert len(state["labels"]) > 200 and state["last"].shape == (1, *SPEC.shape) and "images" not in state
    whole = file.read_bytes()
    for content, said in ((whole[: 150 * 256], "does not hold"), (bytes(len(whole)), "holds other images")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file.name} {said}"):
            distill(network(1), network(0), first, pool_dir=tmp_path / "p", **options)
    with pytest.raises(ValueError, match="give the buffer its folder"):
        distill(network(1), network(0), first, **options)
    file.write_bytes(whole)
    assert len(distill(network(1), network(0), first, pool_dir=tmp_path / "p", **options).images) == 218


def test_a_student_learns_digits_from_images_alone(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    teacher, spec = digits_teacher
    data = load("digits")
    x, y = spec.prepare(data.test.images), data.test.labels
    torch.manual_seed(3)
    student = nn.Sequential(
        nn.Conv2d(1, 12, 5, 2, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(5),
        nn.Flatten(),
        nn.Linear(300, 10),
    )

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    before = accuracy(student.eval())
    images = invert(teacher, per_class=8, recipe="deep_inversion", spec=spec, steps=100)
    config = TransferConfig(steps=250, batch_size=64, lr=0.1, schedule="cosine", augmentation=Augmentation(2))
    result = distill(teacher, student, images, config=config, evaluate=accuracy)
    assert result.evaluations[-1][1] > max(0.5, before + 0.3)
    assert accuracy(student.eval()) == before and result.history["agreement"][-1] > 0.9


def test_a_pool_larger_than_memory_is_an_error_before_any_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from exml_fast.distillation import transfer

    monkeypatch.setattr(transfer, "available_bytes", lambda device: 4 * 64 * 20)
    options: dict[str, Any] = {"spec": SPEC, "recipe": RECIPE, "config": SHORT}
    teacher = network(1)
    with pytest.raises(
        ValueError, match="fewer rounds, a pool_size or a pool_dir must be given: 24 images"
    ):  # four rounds of six
        distill(teacher, network(), **options, rounds=None)
    assert len(distill(teacher, network(), **options, rounds=None, pool_dir=tmp_path / "new").images) == 24
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(
        ValueError, match=r"pool_dir with room must be given, not .*another: 24 images .* 0\.0 GB are free"
    ):
        distill(teacher, network(), **options, rounds=None, pool_dir=tmp_path / "another")
    assert not (tmp_path / "another").exists()
    assert len(distill(teacher, network(), **options, rounds=None, pool_size=20).images) == 20
    assert len(distill(teacher, network(), **options).images) == 18


def test_students_with_auxiliary_outputs_learn_by_their_logits() -> None:
    """As GoogLeNet: a tuple in training, logits in evaluation."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def forward(self, x: Tensor) -> Any:
            logits = self.model(x)
            return (logits, -logits) if self.training else logits

    images = torch.randn(12, *SPEC.shape)
    found = [
        distill(network(1), student, images, spec=SPEC, config=SHORT).history["loss"]
        for student in (network(), Auxiliary())
    ]
    assert found[0] == found[1]


def test_errors_name_the_argument() -> None:
    teacher, images = network(), torch.randn(4, *SPEC.shape)
    with pytest.raises(ValueError, match="nothing to learn from"):
        distill(teacher, network(), spec=SPEC)
    with pytest.raises(ValueError, match="the teacher's 4 logits, it gives 3"):
        distill(teacher, network(outputs=3), images, spec=SPEC)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\)"):
        distill(teacher, network(), images[:, :, :4], spec=SPEC)
    with pytest.raises(ValueError, match="finite"):
        distill(teacher, network(), images * float("nan"), spec=SPEC)
    with pytest.raises(ValueError, match="no setting 'step'"):
        distill(teacher, network(), images, spec=SPEC, step=3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        distill(teacher, network(), images, spec=SPEC, temperature=0.0)
    with pytest.raises(ValueError, match=r"classes \[9\]"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, classes=[9])
    with pytest.raises(ValueError, match="rounds is 0"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, rounds=0)
    with pytest.raises(ValueError, match="pool_size must hold a round, per_round = 30, got 10"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, pool_size=10, per_round=30)
    with pytest.raises(ValueError, match=r"a batch of 2 images \(1, 200000, 200000\) needs at least"):
        distill(teacher, network(), spec=InputSpec(1, (200_000, 200_000), (0.5,), (0.25,)), recipe=RECIPE)
    for name, value in (("lr", "fast"), ("mixup", None), ("temperature", True), ("augmentation", 3)):
        with pytest.raises(ValueError, match=name):
            TransferConfig(**{name: value})
    with pytest.raises(ValueError, match="augmentation has no field 'zoom'"):
        TransferConfig(augmentation={"zoom": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        distill(teacher, network().requires_grad_(False), images, spec=SPEC)
    with pytest.raises(ValueError, match=r"student must be a torch\.nn\.Module"):
        distill(teacher, 3, images, spec=SPEC)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the student's loss is nan at step 20; lower lr"):
        distill(teacher, network(), images, spec=SPEC, config=SHORT, lr=1e30)


def test_tensorboard_gets_the_terms(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen: list[str] = []
    with TensorBoard(tmp_path, then=lambda stage, *_: seen.append(stage)) as log:
        distill(network(1), network(0), spec=SPEC, recipe=RECIPE, config=SHORT, progress=log)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("learn/kl")] == [5, 10, 15, 20] and seen[:2] == ["invert", "learn"]
    steps, rounds = [e.step for e in events.Scalars("invert/ce")], seen.count("invert")
    assert steps == [RECIPE.steps * n for n in range(1, rounds + 1)] and rounds == 3
