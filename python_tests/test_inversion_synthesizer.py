from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small_networks import BN, CE, SPEC, network
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.conv_plan import Plan
from exml_fast.engine.memory import required_bytes
from exml_fast.inversion import Recipe, Synthesizer, invert
from exml_fast.inversion.state import mixed_batches
from exml_fast.models import LeNet5
from exml_fast.storage import load_checkpoint, save_checkpoint


def test_more_images_than_memory_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from exml_fast.engine import memory

    monkeypatch.setattr(memory, "available_bytes", lambda device: 4 * 144 * 200)
    with pytest.raises(ValueError, match=r"201 images \(1, 12, 12\) are 0\.0 GB, and 0\.0 GB of memory are free"):
        invert(network(), [0], per_class=201, recipe=CE.replace(batch_size=1, steps=1), spec=SPEC)
    assert len(invert(network(), [0], per_class=5, recipe=CE.replace(batch_size=1, steps=1), spec=SPEC)) == 5


def test_images_do_not_depend_on_the_batch_size_without_coupling() -> None:
    labels = torch.arange(5).repeat(3)
    runs = [Synthesizer(network(), SPEC, CE.replace(batch_size=size)).run(labels, seed=1) for size in (4, 15)]
    assert torch.allclose(runs[0].images, runs[1].images, atol=1e-3)
    assert torch.allclose(runs[0].history["loss"], runs[1].history["loss"], rtol=1e-4)


def test_adam_and_clip_are_those_of_torch() -> None:
    model = network().eval()
    recipe = CE.replace(jitter=0, l2=0.0, steps=30, clip="valid", lr=0.1)
    result = Synthesizer(model, SPEC, recipe, precision="float32").run([0, 1, 2], seed=5)
    start = Synthesizer(model, SPEC, recipe.replace(steps=1, lr=1e-30, clip=None)).run([0, 1, 2], seed=5)
    x = start.images.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1)
    low, high = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(3), reduction="sum").backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(low, high)
    assert torch.allclose(result.images, x, atol=1e-3)
    assert result.images.min() >= low and result.images.max() <= high
    assert result.pixels().min() >= 0 and result.pixels().max() <= 1


def test_uniform_start_is_in_the_range_of_pixels() -> None:
    result = invert(network(), recipe=CE, spec=SPEC, init="uniform", steps=1, lr=1e-30)
    pixels = SPEC.denormalize(result.images)
    assert 0 <= pixels.min() < 0.05 and 0.95 < pixels.max() <= 1 and abs(pixels.mean() - 0.5) < 0.05


def test_early_stop_freezes_confident_images(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    model, spec = digits_teacher
    labels = torch.arange(10).repeat(4)
    recipe = CE.replace(steps=300, batch_size=40, lr=0.05, l2=0.0, stop_confidence=0.99)
    runs = [Synthesizer(model, spec, recipe, compact=c, block=5).run(labels) for c in (True, False)]
    for result in runs:
        assert result.summary["stopped"] == 40 and result.summary["steps_per_image"] < 150
        assert result.summary["steps"] == len(result.history["loss"]) < 300
        probability = model(result.images).softmax(1).gather(1, labels[:, None])
        assert (probability >= 0.99 - 1e-3).all()
    assert runs[0].summary["steps_per_image"] == runs[1].summary["steps_per_image"]
    assert torch.allclose(runs[0].images, runs[1].images, atol=1e-3)


def test_coupled_images_are_not_taken_out(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    model, spec = digits_teacher
    synthesizer = Synthesizer(model, spec, BN.replace(steps=300, bn=0.01, stop_confidence=0.9), block=5)
    assert not synthesizer.compact
    result = synthesizer.run(torch.arange(10))
    assert result.summary["stopped"] == 10 and result.summary["steps"] < 300
    assert result.summary["confidence"] >= 0.9


@pytest.mark.parametrize("recipe", [BN.replace(steps=40), CE.replace(steps=60, stop_confidence=0.9, lr=0.03)])
@pytest.mark.parametrize("during", ["progress", "step"])
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path: Path, recipe: Recipe, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, path = torch.arange(5).repeat(3), tmp_path / "inversion.pt"
    expected = Synthesizer(network(), SPEC, recipe, block=5).run(labels, seed=2)
    model, calls = network(), 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls in (13, 40):
            raise KeyboardInterrupt

    interrupts = 0
    for _ in range(3):
        synthesizer = Synthesizer(model, SPEC, recipe, block=5)
        if during == "step":
            problem, gradient = synthesizer.problem, synthesizer.problem.gradient
            monkeypatch.setattr(problem, "gradient", lambda *a, g=gradient, **k: (g(*a, **k), interrupt())[0])
        try:
            result = synthesizer.run(
                labels, seed=2, checkpoint_dir=tmp_path, progress=interrupt if during == "progress" else None
            )
            break
        except KeyboardInterrupt as error:
            interrupts += 1
            assert path.exists() and "continues" in error.__notes__[0]
            with pytest.raises(ValueError, match="another run"):
                synthesizer.run(labels, seed=3, checkpoint_dir=tmp_path)
            with pytest.raises(ValueError, match="another run"):
                Synthesizer(network(1), SPEC, recipe, block=5).run(labels, seed=2, checkpoint_dir=tmp_path)
    assert interrupts >= 1 and not path.exists()
    assert torch.equal(result.images, expected.images)
    assert all(torch.equal(result.history[name], expected.history[name]) for name in expected.history)
    assert result.summary["steps_per_image"] == expected.summary["steps_per_image"]


@pytest.mark.parametrize("steps", [7, 30])
def test_a_run_of_another_device_continues(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as CUDA writes it: plans of the library's, whatever this CPU would choose."""
    recipe = BN.replace(steps=40, targets="dirichlet", similarity_minmax=False)
    labels, path = torch.arange(5).repeat(3), tmp_path / "inversion.pt"
    expected = Synthesizer(network(), SPEC, recipe, block=1).run(labels)

    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == steps + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Synthesizer(network(), SPEC, recipe, block=1).run(labels, checkpoint_dir=tmp_path, progress=interrupt)
    saved = load_checkpoint(path)
    state, plans = saved["state"]["state"], saved["state"]["plans"]
    assert state["step"] == steps
    assert {value.device.type for value in state.values() if isinstance(value, Tensor)} == {"cpu"}
    plans["teacher"] = dict.fromkeys(plans["teacher"], ("float32", ("plain", "library", "plain")))
    save_checkpoint(path, saved)
    # Another device draws other targets from the seed: those of the file count.
    monkeypatch.setattr(Synthesizer, "_soft_targets", lambda self, positions, among, seed: torch.rand(len(labels), 5))
    continued = Synthesizer(network(), SPEC, recipe, block=1)
    result = continued.run(labels, checkpoint_dir=tmp_path)
    assert continued.teacher.plans == {"0": ("float32", Plan())}
    assert torch.equal(result.targets, expected.targets) and torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.history["loss"], expected.history["loss"], rtol=0.02, atol=1e-3)


@pytest.mark.gpu
def test_a_run_begun_on_the_cpu_continues_on_cuda(tmp_path: Path) -> None:
    recipe = BN.replace(steps=40, targets="dirichlet", similarity_minmax=False)
    labels = torch.arange(5).repeat(3)

    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == 20:
            raise KeyboardInterrupt

    options = {"precision": "float32", "block": 10}
    with pytest.raises(KeyboardInterrupt):
        Synthesizer(network(), SPEC, recipe, **options).run(labels, checkpoint_dir=tmp_path, progress=interrupt)
    expected = Synthesizer(network(), SPEC, recipe, **options).run(labels)
    result = Synthesizer(network(), SPEC, recipe, device="cuda", **options).run(labels, checkpoint_dir=tmp_path)
    assert torch.equal(result.targets, expected.targets)
    torch.testing.assert_close(result.history["loss"], expected.history["loss"], rtol=0.02, atol=1e-3)


def test_progress_reports_each_block() -> None:
    seen: list[tuple[str, int, int, dict[str, float]]] = []
    invert(network(), recipe=BN.replace(steps=120), spec=SPEC, per_class=2, progress=lambda *a: seen.append(a))
    assert [s[:3] for s in seen] == [("invert", done, 240) for done in (50, 100, 120, 170, 220, 240)]
    assert set(seen[0][3]) == {"ce", "l2", "bn", "loss"}


def test_batches_are_even_and_mixed() -> None:
    batches = mixed_batches(torch.arange(4).repeat_interleave(10), 16)
    assert sorted(torch.cat(batches).tolist()) == list(range(40))
    for batch in batches:
        counts = torch.bincount(batch // 10, minlength=4)
        assert 13 <= len(batch) <= 14 and counts.min() >= 3 and counts.max() <= 4


def test_statistics_are_matched_or_their_absence_said() -> None:
    plain = network(batch_norm=False)
    with pytest.raises(ValueError, match="no BatchNorm"):
        invert(plain, recipe=BN, spec=SPEC)
    result = invert(plain, recipe=BN, spec=SPEC, bn_optional=True)
    assert result.summary["absent"] == ["bn"] and "bn" not in result.history
    lenet = LeNet5()
    result = invert(
        lenet, [0], per_class=2, recipe="model_inversion/mnist", spec=InputSpec(1, (32, 32), (0.1,), (0.3,)), steps=2
    )
    assert result.summary["absent"] == ["bn"]
    plain[1] = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ValueError, match="running statistics"):
        invert(plain, recipe=BN, spec=SPEC)
    invert(plain, recipe=CE, spec=SPEC, steps=1)


def test_images_must_be_large_enough_for_the_priors() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))  # takes images of any size
    for size, changes, least in (((1, 4), {"tv_l2": 1.0}, "2 x 2"), ((3, 3), {"blur": 1.0, "blur_kernel": 7}, "4 x 4")):
        spec = InputSpec(1, size, (0.0,), (1.0,))
        with pytest.raises(
            ValueError, match=rf"spec.size must be at least {least} pixels .*got \({size[0]}, {size[1]}"
        ):
            Synthesizer(model, spec, CE.replace(**changes))
        assert len(Synthesizer(model, spec, CE.replace(steps=1, l2=0.0)).run([0, 1])) == 2


def test_not_a_number_is_named() -> None:
    model = network()
    with torch.no_grad():
        model[-1].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match=r"recipe 'bn': ce became nan at step 0 \(batch 1 of 1\)"):
        invert(model, recipe=BN, spec=SPEC, per_class=1)
    model = network()
    model[1].running_var.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="bn became"):
        invert(model, recipe=BN, spec=SPEC, per_class=1)


ADAPTIVE = BN.replace(name="adi", compete=2.0, compete_temperature=2.0)


def test_competition_makes_the_student_disagree(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    teacher, spec = digits_teacher
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[-1].weight += 0.15 * torch.randn_like(student[-1].weight)
    results = [
        invert(teacher, per_class=3, recipe="adaptive_deep_inversion", spec=spec, steps=200, student=student, compete=c)
        for c in (1e-9, 3.0)
    ]
    wrong = [(student(r.images).argmax(1) != r.labels).double().mean().item() for r in results]
    assert wrong[1] > wrong[0] + 0.3 and results[1].summary["teacher_accuracy"] > 0.9
    final = results[1].history["compete"][-1]
    assert final < results[0].history["compete"][-1] and final < results[1].history["compete"][0]


def test_competition_is_in_the_gradient() -> None:
    teacher, student, x = network(0), network(1), torch.randn(4, *SPEC.shape)
    synthesizer = Synthesizer(teacher, SPEC, ADAPTIVE.replace(jitter=0, steps=1), precision="float32")
    labels = torch.arange(4)
    synthesizer.networks.compete_with(student)
    draws = synthesizer.recipe.augmentation.draw(1, SPEC.size, torch.Generator())
    gradient, values = synthesizer.problem.gradient(labels, draws, x, torch.zeros(1, dtype=torch.int64))
    leaf, (bn,) = x.clone().requires_grad_(), [teacher[1]]
    teacher.eval(), student.eval()
    z = teacher[0](leaf)
    p, q = (teacher(leaf) / 2).softmax(1), (student(leaf) / 2).softmax(1)
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    total = nn.functional.cross_entropy(teacher(leaf), labels, reduction="sum") + 1e-3 * leaf.square().sum()
    total = total + 4 * ((mean - bn.running_mean).norm() + (var - bn.running_var).norm()) + 2.0 * (1 - js).sum()
    assert torch.allclose(gradient, torch.autograd.grad(total, leaf)[0], rtol=1e-3, atol=1e-4)
    assert torch.isclose(values[synthesizer.objective.names.index("compete")], (1 - js).mean())


def test_engine_and_reference_compete_alike() -> None:
    labels, options = torch.arange(5).repeat(2), {"seed": 1, "student": network(1)}
    recipe = ADAPTIVE.replace(steps=5)
    engine = Synthesizer(network(), SPEC, recipe, precision="float32").run(labels, **options)
    eager = Synthesizer(network(), SPEC, recipe, engine=False).run(labels, **options)
    assert torch.allclose(engine.images, eager.images, atol=1e-3)
    assert torch.allclose(engine.history["compete"], eager.history["compete"], atol=1e-4)


def test_a_student_must_be_there_and_fit() -> None:
    synthesizer = Synthesizer(network(), SPEC, ADAPTIVE)
    with pytest.raises(ValueError, match=r"competes with a student.*got NoneType"):
        synthesizer.run([0])
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(ValueError, match=r"the teacher's 5 logits, Sequential gives 4"):
        synthesizer.run([0], student=other)
    with pytest.raises(ValueError, match="rejects images"):
        synthesizer.run([0], student=nn.Linear(3, 5))


SMALL = InputSpec(1, (6, 6), SPEC.mean, SPEC.std)


def test_small_images_are_optimised_first_and_enlarged() -> None:
    model, labels = network(), torch.arange(5)
    recipe = BN.replace(steps=4, coarse_steps=(6,), jitter=3)
    result = Synthesizer(model, SPEC, recipe, precision="float32").run(labels, seed=7)
    small = Synthesizer(model, SMALL, recipe.coarser(), precision="float32").run(labels, seed=7)
    assert recipe.coarser().augmentation.jitter == 1 and small.images.shape == (5, 1, 6, 6)
    start = small.images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    large = Synthesizer(model, SPEC, recipe.replace(coarse_steps=()), precision="float32")
    expected = large.run(labels, seed=7, start=start)
    assert torch.equal(result.images, expected.images)
    assert result.summary["steps"] == 10 == len(result.history["bn"]) and result.summary["steps_per_image"] == 10
    assert torch.equal(result.history["bn"], torch.cat([small.history["bn"], expected.history["bn"]]))
    with pytest.raises(ValueError, match=r"start must be floating-point images \(5, 1, 12, 12\)"):
        large.run(labels, start=small.images)


def test_two_levels_of_smaller_images_and_progress() -> None:
    seen: list[tuple[str, int, int]] = []
    recipe = CE.replace(steps=2, coarse_steps=(3, 4))
    spec = InputSpec(1, (24, 24), SPEC.mean, SPEC.std)
    synthesizer = Synthesizer(network(batch_norm=False), spec, recipe)
    assert len(synthesizer.run([0, 1], progress=lambda *a: seen.append(a[:3])).history["loss"]) == 9
    assert seen == [("invert at 6×6", 3, 3), ("invert at 12×12", 4, 4), ("invert", 2, 2)]
    with pytest.raises(ValueError, match="images 1×1 are too small for Sequential"):
        Synthesizer(network(), SPEC, recipe.replace(coarse_steps=(1, 1, 1)))


@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_an_interrupted_run_of_two_resolutions_continues_bit_for_bit(tmp_path: Path, at: int) -> None:
    labels = torch.arange(5).repeat(3)
    recipe = ADAPTIVE.replace(steps=10, coarse_steps=(10,), batch_size=8)
    expected = Synthesizer(network(), SPEC, recipe, block=5).run(labels, seed=2, student=network(1))
    calls = 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    options = {"seed": 2, "checkpoint_dir": tmp_path, "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        Synthesizer(network(), SPEC, recipe, block=5).run(labels, student=network(1), **options)
    assert list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="another run"):
        Synthesizer(network(), SPEC, recipe, block=5).run(labels, student=network(2), **options)
    result = Synthesizer(network(), SPEC, recipe, block=5).run(labels, student=network(1), **options)
    assert torch.equal(result.images, expected.images) and not list(tmp_path.iterdir())
    assert all(torch.equal(result.history[name], expected.history[name]) for name in expected.history)


def test_statistics_from_images_pull_towards_them() -> None:
    model = network(batch_norm=False)
    real = 2 + 0.1 * torch.randn(10, *SPEC.shape)
    recipe = BN.replace(ce=0.1, l2=0.0, steps=200, lr=0.05)
    for engine in (True, False):
        result = invert(model, recipe=recipe, spec=SPEC, statistics=real, layers="0", per_class=2)
        assert result.history["bn"][-1] < 0.2 * result.history["bn"][0], engine
        assert abs(result.images.mean() - 2) < 0.3
    with pytest.raises(ValueError, match="give some real images as statistics and names of layers"):
        invert(model, recipe=recipe, spec=SPEC)
    priors_only = invert(model, recipe=recipe, spec=SPEC, bn=0.0, steps=2)
    assert "bn" not in priors_only.history and priors_only.summary["absent"] == []


def test_images_larger_than_memory_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    huge = InputSpec(1, (60_000, 60_000), SPEC.mean, SPEC.std)
    monkeypatch.setattr("exml_fast.engine.memory.available_bytes", lambda _device: 2**33)
    with pytest.raises(ValueError, match=r"a batch of 1 images \(1, 60000, 60000\) needs at least [\d.]+ GB on cpu"):
        invert(model, recipe=CE, spec=huge)
    # 4 copies of the images in float32, the convolution's and the linear layer's inputs in two bytes.
    assert required_bytes(model, SPEC, 8) == 16 * 8 * 144 + 2 * 8 * (144 + 54)
    assert next(model.parameters()).device.type == "cpu"
    assert required_bytes(nn.Sequential(nn.Linear(3, 5)), SPEC, 2) == 16 * 2 * 144
    monkeypatch.setattr("exml_fast.engine.memory.available_bytes", lambda _device: 19_000)
    for count in (7, 8):
        with pytest.raises(ValueError, match=r"8 images.*smaller batch_size") if count == 8 else nullcontext():
            Synthesizer(model, SPEC, CE.replace(steps=1)).run([0] * count)


@pytest.mark.gpu
def test_cuda_matches_the_cpu() -> None:
    cpu = invert(network(), recipe=BN, spec=SPEC, steps=5)
    model = network()
    cuda = invert(model, recipe=BN, spec=SPEC, steps=5, device="cuda")
    assert torch.allclose(cpu.images, cuda.images, atol=1e-2)
    assert next(model.parameters()).device.type == "cpu"


def test_autocast_of_the_caller_changes_no_bit() -> None:
    def run() -> Tensor:
        return Synthesizer(network(), SPEC, CE.replace(steps=5), precision="float32").run([0, 1, 2], seed=5).images

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(), expected)
