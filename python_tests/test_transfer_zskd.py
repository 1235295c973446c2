"""Zero-shot distillation against its formula, bad inputs, and small runs on the quadrants."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_experts import quadrants
from small_training import (
    SMALL,
    SPEC,
    assert_resumes,
    assert_seed_decides,
    everything,
    network,
    same,
    unchanged,
)
from torch import Tensor, nn

from exml_fast import invert
from exml_fast.data import Augmentation, ImageData, NaturalFields
from exml_fast.evaluation import accuracy
from exml_fast.models import create, final_linear
from exml_fast.training import Answers, Batch, Loop, Training, softened_kl
from exml_fast.transfer import (
    ADVERSARIAL,
    PERTURBATIONS,
    REHEARSAL,
    ZSKD,
    Attack,
    adapt,
    adapt_by_rehearsal,
    adversarial_training,
    attack_accuracies,
    distill,
    transfer_set_sweep,
    universal_perturbations,
    zskd,
)


def test_the_loss_of_distillation_is_the_scaled_divergence() -> None:
    student, teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5).double()
    found = softened_kl(teacher, student, 20.0)
    p, q = (teacher / 20).softmax(1), (student / 20).softmax(1)
    assert float(found.detach()) == pytest.approx(400 * float((p * (p / q).log()).sum(1).mean().detach()))
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, 20 * (q - p) / 6)
    assert softened_kl(teacher, teacher).item() == pytest.approx(0, abs=1e-10)


def test_a_student_learns_from_impressions_alone(
    data: ImageData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher.train()
    before = everything(teacher)
    impressions = invert(
        teacher, per_class=40, recipe="data_impressions/nayak", spec=SPEC, steps=60, lr=0.05, batch_size=160
    )
    torch.manual_seed(0)
    student = create("lenet5_half", num_classes=4, activation="relu")
    untaught = accuracy(student, data.test, SPEC)
    monkeypatch.setitem(Loop.run.__kwdefaults__, "block_steps", 10)
    done = zskd(teacher, student, impressions, config=Training(steps=150, batch_size=32, lr=3e-3))
    assert unchanged(before, teacher)
    teacher.eval()
    blocks = done.history["loss"]
    assert done.history["step"] == list(range(10, 151, 10))
    assert sum(blocks[-2:]) < 0.3 * sum(blocks[:2])
    assert accuracy(done.model, data.test, SPEC) > max(untaught + 0.2, 0.6)
    assert accuracy(student, data.test, SPEC) == untaught


def test_bfloat16_is_the_networks_alone(data: ImageData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a student is distilled its layers round, and weights and the loss's input do not."""
    given = set[tuple[torch.dtype, torch.dtype]]()

    def spy(target: torch.Tensor, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.add((logits.dtype, target.dtype))
        return softened_kl(target, logits, *rest)

    monkeypatch.setattr(sys.modules["exml_fast.transfer.zskd"], "softened_kl", spy)
    rounded: list[tuple[bool, torch.dtype]] = []

    def look(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        rounded.append((module.training, output.dtype))

    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.manual_seed(0)
        student = create("lenet5_half", num_classes=4, activation="relu")
        handles = [final_linear(student).register_forward_hook(look), final_linear(teacher).register_forward_hook(look)]
        config = Training(steps=100, batch_size=32, lr=3e-3, precision=precision)  # type: ignore[arg-type]
        rounded.clear()
        done = zskd(teacher, student, data.train.normalized(SPEC), spec=SPEC, config=config)
        for handle in handles:
            handle.remove()
        # The linear layer of the frozen teacher is in float32.
        assert set(rounded) == {(False, torch.float32), (True, dtype)}
        assert all(p.dtype == torch.float32 for net in (student, done.model) for p in net.parameters())
        assert given == {(torch.float32, torch.float32)}
        assert accuracy(done.model, data.test, SPEC) > 0.9 and all(map(math.isfinite, done.history["loss"]))
    with pytest.raises(ValueError, match=r"precision must be one of .*, got 'float16'"):
        Training(precision="float16")  # type: ignore[arg-type]


def test_teacher_and_student_see_the_same_blends() -> None:
    """Of black and white images those between, in shares from Beta(1, 1)."""

    seen: dict[str, list[torch.Tensor]] = {}

    class Seeing(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.last, self.name = nn.Linear(1024, 4), name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == 32:
                seen.setdefault(self.name, []).append(x.detach().flatten(1)[:, 0].clone())
            return self.last(x.flatten(1))

    images = (torch.arange(64) % 2).float()[:, None, None, None].expand(64, 1, 32, 32)
    config = Training(steps=40, batch_size=32)
    zskd(Seeing("teacher"), Seeing("student"), images, spec=SPEC, config=config.replace(mixup=1.0))
    zskd(Seeing("plain"), Seeing("other"), images, spec=SPEC, config=config)
    shares, same = torch.cat(seen["teacher"]), torch.cat(seen["student"])
    assert torch.equal(shares, same) and len(shares) == 40 * 32
    between = shares[(shares > 0) & (shares < 1)]
    assert 0.4 < len(between) / len(shares) < 0.6  # the others had a partner of their own colour
    assert (torch.histc(between, 4, 0, 1) / len(between) - 0.25).abs().max() < 0.06
    assert set(torch.cat(seen["plain"]).tolist()) == {0.0, 1.0}


def test_a_student_under_attack_sees_moved_images_and_learns_the_answers_for_those_that_were(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound, which grows over the first 30 % of the steps, and farther from the teacher's answers."""
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}

    class Recording(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.inner(x)
            if len(x) == 16 and self.training:
                seen["student"].append(x.detach().clone())
            return z

    def of(self: Answers, batch: Batch) -> torch.Tensor:
        seen["teacher"].append(batch.images)
        return self(batch.images)

    monkeypatch.setattr(Answers, "of", of)

    torch.manual_seed(0)
    student = create("lenet5_half", num_classes=4, activation="relu")
    images = quadrants().train.normalized(SPEC)
    attack = Attack(0.1, 0.05, 3)
    monkeypatch.setitem(Loop.run.__kwdefaults__, "block_steps", 1)
    config = Training(steps=10, batch_size=16, lr=1e-6)
    done = zskd(
        teacher, Recording(student), images, spec=SPEC, config=config, temperature=2.0, attack=attack,
    )  # fmt: skip
    pairs = list(zip(seen["teacher"], seen["student"], strict=True))
    assert len(pairs) == 10
    bounds = [float((b - a).abs().max()) * SPEC.std[0] for a, b in pairs]
    grown = [0.1 * min(k / 3, 1) for k in range(1, 11)]
    for bound, expected in zip(bounds, grown, strict=True):
        assert 0.8 * expected < bound <= expected + 1e-6
    low, high = (b.item() for b in SPEC.bounds())
    with torch.no_grad():
        for k, (plain, moved) in enumerate(pairs):
            assert moved.min() >= low - 1e-6 and moved.max() <= high + 1e-6
            target = teacher(plain)
            # The student hardly learns at this rate: what it answers now is what it answered then.
            assert done.history["loss"][k] == pytest.approx(float(softened_kl(target, student(moved), 2.0)), rel=1e-2)
            assert softened_kl(target, student(moved), 1.0) > softened_kl(target, student(plain), 1.0)


def test_a_student_under_attack_is_more_robust(data: ImageData) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    attack = Attack(0.25, 0.1, 4)
    torch.manual_seed(0)
    robust = create("lenet5", num_classes=4, activation="relu")
    config = Training(steps=100, batch_size=32, lr=3e-3)
    robust = adversarial_training(robust, data.train, SPEC, config=config, attack=attack).model
    images, found = data.train.normalized(SPEC), []
    for met in (None, attack):
        torch.manual_seed(1)
        student = create("lenet5_half", num_classes=4, activation="relu")
        student = zskd(robust, student, images, spec=SPEC, config=config.replace(steps=150), attack=met).model
        found.append(attack_accuracies(student, data.test, SPEC, attack, ["pgd"]))
    assert found[1].adversarial["pgd"] > found[0].adversarial["pgd"] + 0.1 and found[1].natural > 0.8, found


def test_sweep_takes_the_first_images(data: ImageData, teacher: nn.Module) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return create("lenet5_half", num_classes=4)

    images = data.train.normalized(SPEC)
    config = Training(steps=5, batch_size=16)
    found = transfer_set_sweep(teacher, make, {"real": images}, [8, 60], data.test, SPEC, config=config, seed=2)
    alone = zskd(teacher, make(2), images[:60], spec=SPEC, config=config, seed=2).model
    assert len(found["real"]) == 2 and found["real"][1] == accuracy(alone, data.test, SPEC)
    with pytest.raises(ValueError, match=r"sizes \[100000\].*'real'"):
        transfer_set_sweep(teacher, make, {"real": images}, [100000], data.test, SPEC, config=config)


def test_bad_distillation_is_named(teacher: nn.Module) -> None:
    student, images = create("lenet5_half", num_classes=4), torch.zeros(4, 1, 32, 32)
    with pytest.raises(ValueError, match="spec must be given"):
        zskd(teacher, student, images)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 32, 32\), got \(4, 1, 28, 28\)"):
        zskd(teacher, student, images[..., :28, :28], spec=SPEC)
    with pytest.raises(ValueError, match="student must be a network of the teacher's 4 outputs, got 10"):
        zskd(teacher, create("lenet5_half"), images, spec=SPEC)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        zskd(teacher, student, images, spec=SPEC, temperature=0)
    with pytest.raises(ValueError, match="mixup must be at least 0, got -1"):
        zskd(teacher, student, images, spec=SPEC, config=Training(mixup=-1))
    with pytest.raises(ValueError, match="attack must be an Attack, got 'pgd'"):
        zskd(teacher, student, images, spec=SPEC, attack="pgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images hold NaN"):
        zskd(teacher, student, images * torch.nan, spec=SPEC)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        zskd(teacher, student.requires_grad_(False), images, spec=SPEC)


def test_a_student_may_begin_as_its_teacher(teacher: nn.Module, data: ImageData) -> None:
    """The teacher is frozen for the time, a copy of it learns: at a divergence of 0 there is little to learn."""
    before, images = everything(teacher), data.train.normalized(SPEC)
    config = Training(steps=2, batch_size=16, lr=1e-6)
    done = zskd(teacher, teacher, images, spec=SPEC, config=config)
    assert unchanged(before, teacher) and done.model is not teacher
    assert done.history["loss"] == pytest.approx([0.0], abs=1e-3)
    assert all(p.requires_grad for p in done.model.parameters())


@pytest.mark.parametrize("attack", [None, Attack(0.1, 0.05, 2)])
def test_an_interrupted_distillation_continues_bit_for_bit(
    attack: Attack | None, images: Tensor, tmp_path: Path
) -> None:
    """In the middle of the attack's growth, with mixtures and dropout."""
    config = Training(steps=400, batch_size=8, mixup=0.4, augmentation=Augmentation(1, flip=0.5), lr=1e-3)
    config = config.replace(steps=400 if attack else 130)

    def run(met: Attack | None = attack, temperature: float = 4.0, **options: Any) -> Any:
        return zskd(
            network(1), network(), images, spec=SMALL, config=config, temperature=temperature, attack=met, **options
        )

    assert_resumes(run, tmp_path / "run", 100)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=stop)
    for other in ({"met": Attack(0.2, 0.05, 2)}, {"temperature": 5.0}, {"seed": 1}):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(checkpoint_dir=tmp_path, **other)  # type: ignore[arg-type]


def test_a_seed_decides_distillation_and_the_networks_given_stay(images: Tensor) -> None:
    teacher, student = network(1), network()
    config = Training(steps=4, batch_size=8, mixup=0.4, augmentation=Augmentation(1))
    for attack in (None, Attack(0.1, 0.05, 2)):
        assert_seed_decides(
            lambda a=attack, **o: zskd(teacher, student, images, spec=SMALL, config=config, attack=a, **o),
            teacher, student,
        )  # fmt: skip
    teacher.eval().requires_grad_(False)
    assert_seed_decides(lambda **o: zskd(teacher, student, images, spec=SMALL, config=config, **o), teacher, student)


def test_nan_is_an_error_that_names_the_stage(images: Tensor) -> None:
    teacher, config = network(1), Training(steps=100, batch_size=8, lr=1e30)
    with torch.no_grad():
        teacher[5].weight.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"zskd: the loss is nan at step 50; lower lr \(1e\+30\)"):
        zskd(teacher, network(), images, spec=SMALL, config=config)


def test_methods_take_an_expert(images: Tensor) -> None:
    """An object with a network as ``.model``, as distill and invert do."""
    teacher, config = network(1), Training(steps=2, batch_size=8)
    expert: Any = SimpleNamespace(model=teacher)
    learn: Callable[[Any], Any]
    for learn in (
        lambda t: zskd(t, network(), images, spec=SMALL, config=config),
        lambda t: adapt(t, images, images, spec=SMALL, config=config),
        lambda t: adapt_by_rehearsal(t, images, images, spec=SMALL, config=config),
        lambda t: universal_perturbations(t, images, spec=SMALL, config=config),
    ):
        assert same(learn(expert).model.state_dict(), learn(teacher).model.state_dict())


def test_zskd_and_distill_keep_their_checkpoints_apart(images: Tensor, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    config = Training(steps=60, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        zskd(network(1), network(), images, spec=SMALL, config=config, checkpoint_dir=tmp_path, progress=stop)
    distill(network(1), network(), images, spec=SMALL, training=config, checkpoint_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["zskd.pt"]
    assert tuple(
        inspect.signature(method).parameters["config"].default
        for method in (zskd, adapt, adapt_by_rehearsal, universal_perturbations)
    ) == (ZSKD, ADVERSARIAL, REHEARSAL, PERTURBATIONS)


def test_a_source_draws_the_images_of_every_step(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Seen(NaturalFields):
        def draw(self, count: int, spec: Any, generator: torch.Generator) -> Tensor:
            seen.append(super().draw(count, spec, generator))
            return seen[-1]

    def run(**options: Any) -> Any:
        return zskd(network(1), network(), Seen(), spec=SMALL, config=Training(steps=120, batch_size=4), **options)

    run()
    assert [len(images) for images in seen] == [1] + 120 * [4]
    assert not torch.equal(seen[1], seen[2])
    assert_resumes(run, tmp_path, 50)
    with pytest.raises(ValueError, match="spec must be given where images are drawn, got None"):
        zskd(network(1), network(), NaturalFields())
