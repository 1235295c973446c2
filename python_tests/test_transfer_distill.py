from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import SMALL as SPEC
from small_training import assert_seed_decides, network
from torch import Tensor, nn

from exml_fast import Distillation, InputSpec, distill, invert, recipes
from exml_fast.data import Augmentation, NaturalFields, load
from exml_fast.progress import TensorBoard
from exml_fast.storage import load_checkpoint
from exml_fast.training import Answers, Batch, Loop, Training, softened_kl
from exml_fast.transfer import Generation
from exml_fast.transfer import pool as pool_module

STILL = Augmentation(0)
RECIPE = recipes.new("r", steps=6, batch_size=8, lr=0.1, bn=0.1, compete=1.0)
SHORT = Distillation().replace(steps=20, batch_size=4, lr=0.05, generate_every=5, per_round=6, rounds=3, mixup=0.5)


def test_settings_of_its_parts_are_given_by_name() -> None:
    """In ``replace``, and as overrides of ``distill``; or whole, as objects and tables."""
    assert (SHORT.training.steps, SHORT.training.lr, SHORT.training.mixup) == (20, 0.05, 0.5)
    assert SHORT.generation == Generation(generate_every=5, per_round=6, rounds=3)
    given = {"steps": 2, "temperature": 2.0, "per_round": 4, "mixup": 0.1}
    config = SHORT.replace(**given)
    assert (config.training.steps, config.temperature, config.generation.per_round) == (2, 2.0, 4)
    assert (
        config
        == Distillation(SHORT.training.replace(steps=2, mixup=0.1), Generation(5, 4, 3), temperature=2.0)
        == Distillation(**config.to_dict())
    )
    whole = SHORT.replace(training=Training(steps=3, lr=0.5), lr=0.25, generation={"rounds": 0}, pool_size=9)
    assert whole.training == Training(steps=3, lr=0.25) and whole.generation == Generation(rounds=0, pool_size=9)
    images = torch.randn(6, *SPEC.shape)
    by_config, by_name = (
        distill(network(1), network(), images, spec=SPEC, **options)
        for options in ({"config": config}, {"config": SHORT, **given})
    )
    assert by_config.history == by_name.history and by_config.history["step"] == [2]
    with pytest.raises(ValueError, match=r"unknown field 'stepz' \(did you mean 'steps'\?\)"):
        SHORT.replace(stepz=3)


@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_a_step_is_sgd_on_the_divergence(mixed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student, images = network(1), network(0).eval(), torch.randn(4, *SPEC.shape)
    student[4].p = 0.0
    config = Distillation().replace(
        steps=1, batch_size=4, lr=0.1, momentum=0.0, weight_decay=0.0, augmentation=STILL, temperature=2.0, mixup=mixed,
        lambda_ce=0.5,
    )  # fmt: skip
    seen: list[Tensor] = []
    original = Answers.of

    def of(self: Answers, batch: Batch) -> Tensor:
        seen.append(batch.images)
        return original(self, batch)

    monkeypatch.setattr(Answers, "of", of)
    result = distill(teacher, student, images, spec=SPEC, config=config)
    inputs = seen[-1]
    student.train()
    goal, logits = teacher.eval()(inputs).detach(), student(inputs)
    loss = softened_kl(goal, logits, 2.0)
    if not mixed:
        loss = loss + 0.5 * nn.functional.cross_entropy(logits, goal.argmax(1))
        assert result.history["loss"] == pytest.approx([loss.item()], rel=1e-4)
        loss.backward()
        expected = student[5].weight - 0.1 * student[5].weight.grad
        assert torch.allclose(result.model[5].weight, expected, atol=1e-5)
    else:  # every input is a mixture of two of the images
        basis = images.flatten(1).T
        shares = torch.linalg.lstsq(basis, inputs.flatten(1).T).solution
        assert torch.allclose(basis @ shares, inputs.flatten(1).T, atol=1e-4)
        assert torch.allclose(shares.sum(0), torch.ones(4), atol=1e-4)
        # Each row holds its own image and that of the row before, and has both their labels.
        assert ((shares.abs() > 1e-3).sum(0) <= 2).all()
        said = teacher(images).argmax(1)
        targets = shares.T @ torch.eye(4)[said]
        ce = nn.functional.cross_entropy(logits, targets)
        assert result.history["ce"] == pytest.approx([ce.item()], rel=1e-3)
        assert result.history["loss"] == pytest.approx([(loss + 0.5 * ce).item()], rel=1e-3)
        assert result.history["kl"] == pytest.approx([loss.item()], rel=1e-3)


def test_bfloat16_rounds_the_networks_and_nothing_else() -> None:
    teacher, student, images = network(1), network(0), torch.randn(16, *SPEC.shape)
    config = Distillation().replace(steps=10, batch_size=8, lr=0.05, augmentation=STILL)
    exact, rounded = (
        distill(teacher, student, images, spec=SPEC, config=config, precision=kind) for kind in ("float32", "bfloat16")
    )
    assert rounded.history["kl"] != exact.history["kl"] == pytest.approx(rounded.history["kl"], rel=0.05)
    for a, b in zip(exact.model.state_dict().values(), rounded.model.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and b.is_contiguous() and torch.allclose(a.float(), b.float(), atol=0.02)


def test_rounds_join_the_pool_and_are_learned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Tensor] = []
    take = Loop._take_step

    def spy(loop: Any, batch: Batch) -> Any:
        steps.append(batch.images.clone())
        return take(loop, batch)

    monkeypatch.setattr(Loop, "_take_step", spy)
    first = torch.randn(5, *SPEC.shape)
    reports: list[tuple[str, int, int]] = []
    result = distill(
        network(1), network(0), first, spec=SPEC, recipe=RECIPE, config=SHORT, augmentation=STILL, mixup=0,
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


class Squares:
    """A source of the test: images of a random grey each."""

    domain = "grey images"

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator).expand(count, *spec.shape).clone()

    def describe(self) -> dict[str, Any]:
        return {"source": "Squares"}


def test_a_source_fills_the_pool_and_refreshes_it() -> None:
    given = {"steps": 20, "batch_size": 4, "generate_every": 5, "lr": 0.01, "augmentation": STILL}
    result = distill(network(1), network(0), Squares(), spec=SPEC, **given)
    # Steps see five batches of four a round: a quarter are new, at least a batch; the pool holds those of four rounds.
    assert [(r["step"], r["images"]) for r in result.rounds] == [(0, 20), (5, 5), (10, 5), (15, 5)]
    assert len(result.images) == 20 and set(result.rounds[0]) == {"step", "images", "seconds", "student"}
    with torch.no_grad():
        assert torch.equal(result.labels, network(1).eval()(result.images).argmax(1))
    given |= {"per_round": 7, "pool_size": 12, "rounds": 2}
    result = distill(network(1), network(0), Squares(), spec=SPEC, units=[7, 5, 3, 1], **given)
    assert [(r["step"], r["images"]) for r in result.rounds] == [(0, 12), (5, 7)] and len(result.images) == 12
    assert set(result.labels.tolist()) <= {7, 5, 3, 1}


def test_defaults_of_rounds() -> None:
    usual = Generation()
    assert usual.resolved(128, cheap=False) == Generation(per_round=256)
    assert usual.resolved(128, cheap=True) == Generation(per_round=1600, pool_size=6400)
    assert Generation(generate_every=1).resolved(32, cheap=True).per_round == 32
    assert Generation(per_round=9, pool_size=50).resolved(8, cheap=True) == Generation(per_round=9, pool_size=50)


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_transfer_from_a_source_continues(tmp_path: Path, at: int) -> None:
    def run(**options: Any) -> Any:
        return distill(network(1), network(0), Squares(), spec=SPEC, config=SHORT, pool_size=9, **options)

    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == 5 * at:
            raise KeyboardInterrupt

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="another run"):
        distill(network(1), network(0), NaturalFields(), spec=SPEC, config=SHORT, pool_size=9, checkpoint_dir=tmp_path)
    found = run(checkpoint_dir=tmp_path)
    assert found.history == expected.history and torch.equal(found.images, expected.images)
    assert [r["student"] for r in found.rounds] == [r["student"] for r in expected.rounds]


def test_sources_that_do_not_fit_are_named() -> None:
    class Wrong(Squares):
        def __init__(self, *shape: int) -> None:
            self.shape = shape

        def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
            return torch.zeros(self.shape)

    def run(source: Any = None, **options: Any) -> None:
        distill(network(1), network(), source or Squares(), spec=SPEC, config=SHORT, **options)

    with pytest.raises(ValueError, match=r"images drawn by Wrong must be \(N, 1, 8, 8\), got \(24, 3, 8, 8\)"):
        run(Wrong(24, 3, 8, 8))
    with pytest.raises(ValueError, match="images drawn by Wrong must be 24, got 5"):
        run(Wrong(5, 1, 8, 8))
    with pytest.raises(ValueError, match="recipe must be None with images of Squares, got 'deep_dream'"):
        run(recipe="deep_dream")
    with pytest.raises(ValueError, match=r"classes must be None with images of Squares, got \[0, 1\]"):
        run(classes=[0, 1])
    with pytest.raises(ValueError, match="rounds is 0 and there are no images"):
        run(rounds=0)


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
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[key]), key
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
    state = load_checkpoint(tmp_path / "c" / "distill.pt")["state"]["parts"]["pool"]["buffer"]
    assert len(state["labels"]) > 200 and state["last"].shape == (1, *SPEC.shape) and "images" not in state
    whole = file.read_bytes()
    for content, said in (
        (whole[: 150 * 256], "does not hold"),
        (bytes(len(whole)), "does not hold the checkpoint's images: its image 206 differs"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file.name} {said}"):
            distill(network(1), network(0), first, pool_dir=tmp_path / "p", **options)
    with pytest.raises(ValueError, match="pool_dir must be given again"):
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
    config = Distillation().replace(steps=250, batch_size=64, lr=0.1, schedule="cosine", augmentation=Augmentation(2))
    result = distill(teacher, student, images, config=config, evaluate=accuracy)
    assert result.evaluations[-1][1] > max(0.5, before + 0.3)
    assert accuracy(result.model) == result.evaluations[-1][1] and accuracy(student.eval()) == before
    assert result.history["agreement"][-1] > 0.9


def test_a_pool_larger_than_memory_is_an_error_before_any_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pool_module, "available_bytes", lambda device: 4 * 64 * 20)
    options: dict[str, Any] = {"spec": SPEC, "recipe": RECIPE, "config": SHORT}
    teacher = network(1)
    with pytest.raises(
        ValueError, match="fewer rounds, a pool_size or a pool_dir must be given: 24 images"
    ):  # four rounds of six
        distill(teacher, network(), **options, rounds=None)
    assert len(distill(teacher, network(), **options, rounds=None, pool_dir=tmp_path / "new").images) == 24
    monkeypatch.setattr(pool_module.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 9))
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


def test_errors_name_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, images = network(), torch.randn(4, *SPEC.shape)
    with pytest.raises(ValueError, match="nothing to learn from"):
        distill(teacher, network(), spec=SPEC)
    with pytest.raises(ValueError, match="the teacher's 4 logits, it gives 3"):
        distill(teacher, network(outputs=3), images, spec=SPEC)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\)"):
        distill(teacher, network(), images[:, :, :4], spec=SPEC)
    with pytest.raises(ValueError, match="images hold NaN or infinity"):
        distill(teacher, network(), images * float("nan"), spec=SPEC)
    with pytest.raises(ValueError, match="unknown field 'step'"):
        distill(teacher, network(), images, spec=SPEC, step=3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        distill(teacher, network(), images, spec=SPEC, temperature=0.0)
    with pytest.raises(ValueError, match=r"classes \[9\]"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, classes=[9])
    with pytest.raises(ValueError, match="rounds is 0"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, rounds=0)
    with pytest.raises(ValueError, match="pool_size must hold a round, per_round = 30, got 10"):
        distill(teacher, network(), spec=SPEC, recipe=RECIPE, pool_size=10, per_round=30)
    with monkeypatch.context() as small, pytest.raises(ValueError, match=r"a batch of 2 images \(1, 60000, 60000\)"):
        small.setattr("exml_fast.engine.memory.available_bytes", lambda _device: 2**33)
        distill(teacher, network(), spec=InputSpec(1, (60_000, 60_000), (0.5,), (0.25,)), recipe=RECIPE)
    for every in (0, 2.5, True):
        with pytest.raises(ValueError, match="evaluate_every must be a positive integer"):
            distill(teacher, network(), images, spec=SPEC, evaluate_every=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images must be a tensor, a data set or the result of .*, got list"):
        distill(teacher, network(), [images], spec=SPEC)  # type: ignore[arg-type]
    for name, value in (("lr", "fast"), ("mixup", None), ("temperature", True), ("augmentation", 3), ("per_round", 0)):
        with pytest.raises(ValueError, match=name):
            Distillation().replace(**{name: value})
    with pytest.raises(ValueError, match="augmentation: unknown field 'zoom'"):
        Distillation().replace(augmentation={"zoom": 2})
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        distill(teacher, network().requires_grad_(False), images, spec=SPEC)
    with pytest.raises(ValueError, match=r"student must be a torch\.nn\.Module"):
        distill(teacher, 3, images, spec=SPEC)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"learn: the loss is nan at step 20; lower lr \(1e\+30\)"):
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
    assert steps == [RECIPE.optimisation.steps * n for n in range(1, rounds + 1)] and rounds == 3


def test_a_seed_decides_distillation_and_the_networks_given_stay() -> None:
    teacher, student = network(1), network()
    assert_seed_decides(
        lambda **o: distill(teacher, student, spec=SPEC, recipe=RECIPE, config=SHORT, lambda_ce=0.5, **o),
        teacher, student,
    )  # fmt: skip
    images = torch.randn(12, *SPEC.shape)
    assert_seed_decides(lambda **o: distill(teacher, student, images, spec=SPEC, config=SHORT, **o), teacher, student)


def test_a_student_may_begin_as_its_teacher() -> None:
    teacher, images = network(1).eval(), torch.randn(12, *SPEC.shape)
    teacher[4].p = 0.0
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = distill(teacher, teacher, images, spec=SPEC, config=SHORT)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(result.model[5].weight, teacher[5].weight)  # type: ignore[index]


def test_many_steps_of_given_images_resume_in_any_block(tmp_path: Path) -> None:
    """Without rounds, a block has 50 steps."""
    images = torch.randn(30, *SPEC.shape)

    def run(**options: Any) -> Any:
        given = {"spec": SPEC, "config": SHORT, "steps": 130, "lambda_ce": 0.5}
        return distill(network(1), network(), images, **given | options)

    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == 100:
            raise KeyboardInterrupt

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=interrupt)
    pool = load_checkpoint(tmp_path / "distill.pt")["state"]["parts"]["pool"]
    assert pool["buffer"] is None, "the images are given again"
    other = InputSpec(1, (8, 8), (0.5,), (0.5,))
    for options in ({"spec": other}, {"lambda_ce": 0.25}, {"temperature": 4.0}, {"seed": 1}):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(checkpoint_dir=tmp_path, **options)
    found = run(checkpoint_dir=tmp_path)
    assert found.history == expected.history and found.history["step"] == [50, 100, 130]
    for key, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[key]), key


def test_images_in_double_precision_are_those_in_single_precision() -> None:
    images = torch.randn(12, *SPEC.shape)
    found = [distill(network(1), network(), x, spec=SPEC, config=SHORT) for x in (images, images.double())]
    assert found[0].history == found[1].history and torch.equal(found[0].images, found[1].images)


def test_progress_and_evaluate_may_draw_random_numbers() -> None:
    def run(**options: Any) -> Any:
        return distill(
            network(1), network(), spec=SPEC, recipe=RECIPE, config=SHORT, evaluate_every=7, seed=3, **options
        )

    plain = run()
    drawing = run(evaluate=lambda _: torch.rand(3).sum().item(), progress=lambda *_: torch.rand(2))
    assert plain.history == drawing.history and torch.equal(plain.images, drawing.images)
