"""Each method against its formula computed another way, bad inputs, and small runs on the quadrants."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exml_fast.transfer.training import logits_of
from small_experts import quadrants
from torch import nn

from exml_fast import invert, ops
from exml_fast.continual import Augmentation
from exml_fast.data import ImageData, InputSpec
from exml_fast.inversion import recipes
from exml_fast.models import create, final_linear
from exml_fast.transfer import (
    Attack,
    DomainDiscriminator,
    PerturbationGenerator,
    Training,
    accuracy,
    adapt,
    adapt_by_rehearsal,
    adversarial_training,
    attack_accuracies,
    class_accuracies,
    distillation_loss,
    diversity_loss,
    features,
    fooling_loss,
    fooling_rate,
    mutual_information,
    pgd,
    train_classifier,
    transfer_set_sweep,
    tsne,
    universal_perturbations,
    zskd,
)

SPEC = InputSpec(1, (32, 32), (0.2,), (0.5,))
QUICK = Training(steps=60, batch_size=32, lr=3e-3)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return quadrants()


@pytest.fixture(scope="module")
def teacher(data: ImageData) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = create("lenet5", num_classes=4, activation="relu")
    train_classifier(model, data.train, SPEC, QUICK)
    return model


def test_training_lowers_the_loss_and_is_reproducible(data: ImageData, teacher: nn.Module) -> None:
    assert accuracy(teacher, data.test, SPEC) > 0.9 and not teacher.training
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        model = create("lenet5", num_classes=4)
        torch.rand(7)  # the caller's random state plays no part
        history = train_classifier(model, data.train, SPEC, QUICK, seed=5)
        runs.append((state(model), history))
    assert torch.equal(runs[0][1], runs[1][1]) and same(runs[0][0], runs[1][0])
    assert history.shape == (60,) and history[-10:].mean() < 0.5 * history[:10].mean()


def test_the_last_step_has_a_rate_near_zero_and_progress_is_told(data: ImageData) -> None:
    torch.manual_seed(1)
    model, told = create("lenet5", num_classes=4), []
    train_classifier(model, data.train, SPEC, QUICK, progress=lambda *a: told.append(a[:3]))
    assert told == [("train", 50, 60), ("train", 60, 60)]


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch_size", 1.5), ("lr", 0.0), ("lr", float("nan")), ("lr", "a"),
                         ("weight_decay", -1.0), ("augmentation", None)],
)  # fmt: skip
def test_bad_training_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Training(**{field: value})


def test_divergence_is_an_error(data: ImageData) -> None:
    model = create("lenet5", num_classes=4, activation="relu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the loss became nan"):
        train_classifier(model, data.train, SPEC, Training(steps=2, batch_size=8))


def test_accuracies(data: ImageData, teacher: nn.Module) -> None:
    teacher.train()
    predicted = logits_of(teacher, data.test.normalized(SPEC)).argmax(1)
    assert teacher.training
    teacher.eval()
    assert torch.equal(predicted, teacher(data.test.normalized(SPEC)).argmax(1))
    right = predicted == data.test.labels
    assert accuracy(teacher, data.test, SPEC) == pytest.approx(float(right.double().mean()))
    by_class = class_accuracies(teacher, data.test, SPEC, 5)
    for c in range(4):
        assert by_class[c] == pytest.approx(float(right[data.test.labels == c].double().mean()))
    assert by_class[4].isnan()


def test_no_prediction_is_made_of_nan(data: ImageData) -> None:
    model = create("lenet5", num_classes=4)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        accuracy(model, data.test, SPEC)
    pytest.importorskip("art", reason="needs the extra attacks")
    with pytest.raises(ValueError, match="logits are NaN"):
        attack_accuracies(model, data.test, SPEC, Attack(steps=1))


def test_features_enter_the_final_layer(data: ImageData, teacher: nn.Module) -> None:
    x = data.test.normalized(SPEC, slice(0, 5))
    found = features(teacher, x, batch_size=2)
    head = teacher.classifier[-1]
    torch.testing.assert_close(found @ head.weight.T + head.bias, teacher(x))


# Zero-shot distillation.


def test_distillation_loss_is_the_scaled_divergence() -> None:
    student, teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5).double()
    found = distillation_loss(student, teacher, 20.0)
    p, q = (teacher / 20).softmax(1), (student / 20).softmax(1)
    assert float(found.detach()) == pytest.approx(400 * float((p * (p / q).log()).sum(1).mean().detach()))
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(gradient, 20 * (q - p) / 6)
    assert distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-10)


def test_a_student_learns_from_impressions_alone(data: ImageData, teacher: nn.Module) -> None:
    before = state(teacher)
    teacher.train()
    impressions = invert(
        teacher, per_class=40, recipe="data_impressions/nayak", spec=SPEC, steps=60, lr=0.05, batch_size=160
    )
    torch.manual_seed(0)
    student = create("lenet5_half", num_classes=4, activation="relu")
    untaught = accuracy(student, data.test, SPEC)
    done = zskd(teacher, student, impressions, config=Training(steps=150, batch_size=32, lr=3e-3))
    assert done.student is student and done.history[-20:].mean() < 0.3 * done.history[:20].mean()
    assert accuracy(student, data.test, SPEC) > max(untaught + 0.2, 0.6)
    assert same(before, state(teacher)) and teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    teacher.eval()


def test_bfloat16_is_the_networks_alone(data: ImageData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both while a student is distilled: their layers round, weights and the loss's input do not."""
    kept, given = ops.soft_cross_entropy, set[tuple[torch.dtype, torch.dtype]]()

    def spy(logits: torch.Tensor, target: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.add((logits.dtype, target.dtype))
        return kept(logits, target, *rest)

    monkeypatch.setattr(ops, "soft_cross_entropy", spy)
    rounded: list[tuple[bool, torch.dtype]] = []

    def look(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        rounded.append((module.training, output.dtype))

    for arithmetic, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.manual_seed(0)
        student = create("lenet5_half", num_classes=4, activation="relu")
        handles = [final_linear(student).register_forward_hook(look), final_linear(teacher).register_forward_hook(look)]
        config = Training(steps=100, batch_size=32, lr=3e-3, arithmetic=arithmetic)
        rounded.clear()
        done = zskd(teacher, student, data.train.normalized(SPEC), SPEC, config=config)
        for handle in handles:
            handle.remove()
        assert set(rounded[2:]) == {(False, dtype), (True, dtype)}  # after a look at the number of outputs
        assert all(p.dtype == torch.float32 for p in student.parameters())
        assert given == {(torch.float32, torch.float32)}
        assert accuracy(student, data.test, SPEC) > 0.9 and done.history.isfinite().all()
    with pytest.raises(ValueError, match=r"arithmetic must be one of .*, got 'float16'"):
        Training(arithmetic="float16")


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
    zskd(Seeing("teacher"), Seeing("student"), images, SPEC, config=config, mixup=1.0)
    zskd(Seeing("plain"), Seeing("other"), images, SPEC, config=config)
    shares, same = torch.cat(seen["teacher"]), torch.cat(seen["student"])
    assert torch.equal(shares, same) and len(shares) == 40 * 32
    between = shares[(shares > 0) & (shares < 1)]
    assert 0.4 < len(between) / len(shares) < 0.6  # the others had a partner of their own colour
    assert (torch.histc(between, 4, 0, 1) / len(between) - 0.25).abs().max() < 0.06
    assert set(torch.cat(seen["plain"]).tolist()) == {0.0, 1.0}


def test_a_student_under_attack_sees_moved_images_and_learns_the_answers_for_those_that_were(
    teacher: nn.Module,
) -> None:
    """Within the bound, which grows over the first 30 % of the steps, and farther from the teacher's answers."""
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}

    class Recording(nn.Module):
        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.inner(x)
            if len(x) == 16 and (self.name == "teacher" or self.training):
                seen[self.name].append(x.detach().clone())
            return z

    torch.manual_seed(0)
    student = create("lenet5_half", num_classes=4, activation="relu")
    images = quadrants().train.normalized(SPEC)
    attack = Attack(0.1, 0.05, 3)
    config = Training(steps=10, batch_size=16, lr=1e-6)
    done = zskd(
        Recording("teacher", teacher), Recording("student", student), images, SPEC, config=config, temperature=2.0,
        attack=attack,
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
            assert done.history[k] == pytest.approx(float(distillation_loss(student(moved), target, 2.0)), rel=1e-2)
            assert distillation_loss(student(moved), target, 1.0) > distillation_loss(student(plain), target, 1.0)


def test_a_student_under_attack_is_more_robust(data: ImageData) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    attack = Attack(0.25, 0.1, 4)
    torch.manual_seed(0)
    robust = create("lenet5", num_classes=4, activation="relu")
    adversarial_training(robust, data.train, SPEC, Training(steps=100, batch_size=32, lr=3e-3), attack)
    images, found = data.train.normalized(SPEC), []
    for met in (None, attack):
        torch.manual_seed(1)
        student = create("lenet5_half", num_classes=4, activation="relu")
        zskd(robust, student, images, SPEC, config=Training(steps=150, batch_size=32, lr=3e-3), attack=met)
        found.append(attack_accuracies(student, data.test, SPEC, attack, ["pgd"]))
    assert found[1].adversarial["pgd"] > found[0].adversarial["pgd"] + 0.1 and found[1].natural > 0.8, found


def test_sweep_takes_the_first_images(data: ImageData, teacher: nn.Module) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return create("lenet5_half", num_classes=4)

    images = data.train.normalized(SPEC)
    config = Training(steps=5, batch_size=16)
    found = transfer_set_sweep(teacher, make, {"real": images}, [8, 60], data.test, SPEC, config=config, seed=2)
    alone = make(2)
    zskd(teacher, alone, images[:60], SPEC, config=config, seed=2)
    assert len(found["real"]) == 2 and found["real"][1] == accuracy(alone, data.test, SPEC)
    with pytest.raises(ValueError, match=r"sizes \[100000\].*'real'"):
        transfer_set_sweep(teacher, make, {"real": images}, [100000], data.test, SPEC, config=config)


def test_bad_distillation_is_named(teacher: nn.Module) -> None:
    student, images = create("lenet5_half", num_classes=4), torch.zeros(4, 1, 32, 32)
    with pytest.raises(ValueError, match="spec must be given"):
        zskd(teacher, student, images)
    with pytest.raises(ValueError, match=r"impressions must be \(N, 1, 32, 32\), got \(4, 1, 28, 28\)"):
        zskd(teacher, student, images[..., :28, :28], SPEC)
    with pytest.raises(ValueError, match="student must have the teacher's 4 outputs, got 10"):
        zskd(teacher, create("lenet5_half"), images, SPEC)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        zskd(teacher, student, images, SPEC, temperature=0)
    with pytest.raises(ValueError, match="mixup must not be negative, got -1"):
        zskd(teacher, student, images, SPEC, mixup=-1)
    with pytest.raises(ValueError, match="attack must be an Attack, got 'pgd'"):
        zskd(teacher, student, images, SPEC, attack="pgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="impressions hold NaN"):
        zskd(teacher, student, images * torch.nan, SPEC)
    with pytest.raises(ValueError, match="student must be another network"):
        zskd(teacher, teacher, images, SPEC)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        zskd(teacher, student.requires_grad_(False), images, SPEC)


# Perturbations.


def test_generator_stays_within_its_bound() -> None:
    spec = InputSpec(3, (32, 16), (0.5, 0.4, 0.3), (0.5, 0.25, 0.125))
    generator = PerturbationGenerator(spec, 0.1)
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in generator.modules()) == 4
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(50)
    v = generator.sample(6, seed=1)
    assert v.shape == (6, 3, 32, 16) and torch.equal(v, generator.sample(6, seed=1))
    torch.testing.assert_close(v.abs().amax((0, 2, 3)), 0.1 / torch.tensor(spec.std), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="multiples of 8"):
        PerturbationGenerator(InputSpec(1, (28, 30), (0.0,), (1.0,)))
    with pytest.raises(ValueError, match="epsilon must be in"):
        PerturbationGenerator(spec, 10)


def test_fooling_loss_is_the_log_of_the_rest() -> None:
    logits, labels = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert fooling_loss(logits, labels).item() == pytest.approx(float(-(1 - p).log().mean()))
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    value = fooling_loss(sure, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value, sure)
    assert value.item() == pytest.approx(200 - torch.tensor(2.0).log().item()) and gradient[0, 0] == 1


def test_diversity_is_the_cosine_with_another() -> None:
    rows, others = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(rows, others, strict=True)) / 5
    assert diversity_loss(rows, others).item() == pytest.approx(expected)


def test_diversity_is_of_one_image_under_two_perturbations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        seen.append(features - others)
        return diversity_loss(features, others)

    monkeypatch.setattr("exml_fast.transfer.perturbation.diversity_loss", spy)
    model, spec = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), InputSpec(1, (16, 16), (0.0,), (1.0,))
    images = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 1, 16, 16)  # further apart than 2ε
    config = Training(steps=1, batch_size=8)
    universal_perturbations(model, images, spec, epsilon=1e-3, config=config, clamp=False)
    (between,) = seen
    assert 0 < between.abs().max() <= 2e-3 + 1e-6
    torch.testing.assert_close(between.sum(0), torch.zeros(256), rtol=0, atol=1e-5)


def test_perturbations_fool_and_leave_the_network_alone(data: ImageData, teacher: nn.Module) -> None:
    before, images = state(teacher), data.train.normalized(SPEC)
    made = universal_perturbations(
        teacher, images, SPEC, epsilon=0.5, config=Training(steps=60, batch_size=32, lr=3e-3), diversity=0.1
    )
    assert same(before, state(teacher)) and not any(m._forward_pre_hooks for m in teacher.modules())
    v = made.generator.sample(3)
    rates = fooling_rate(teacher, v, data.test, SPEC)
    random = fooling_rate(teacher, 0.5 / SPEC.std[0] * torch.randn_like(v).sign(), data.test, SPEC)
    assert rates.mean() > 0.4 and rates.mean() > random.mean()
    x = data.test.normalized(SPEC)
    low, high = SPEC.bounds()
    expected = (teacher((x + v[1]).clamp(low.item(), high.item())).argmax(1) != teacher(x).argmax(1)).double().mean()
    assert rates[1] == pytest.approx(float(expected))
    assert fooling_rate(teacher, torch.zeros(1, 1, 32, 32), data.test, SPEC).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"perturbations must be \(N, 1, 32, 32\), got \(1, 32, 32\)"):
        fooling_rate(teacher, v[0], data.test, SPEC)
    with pytest.raises(ValueError, match="perturbations hold NaN"):
        fooling_rate(teacher, v / 0 * 0, data.test, SPEC)
    with pytest.raises(ValueError, match="diversity must be a number of at least 0"):
        universal_perturbations(teacher, images, SPEC, diversity=-1.0)
    with pytest.raises(ValueError, match="diversity must be a number of at least 0, got 'a'"):
        universal_perturbations(teacher, images, SPEC, diversity="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 1\], pixels being in \[0, 1\], got 'a'"):
        universal_perturbations(teacher, images, SPEC, epsilon="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"impressions must be floating point.* got torch.uint8"):
        universal_perturbations(teacher, (255 * images.clamp(0, 1)).byte(), SPEC)
    with pytest.raises(ValueError, match="one class only"):
        universal_perturbations(nn.Sequential(nn.Flatten(), nn.Linear(1024, 1)), images, SPEC)


# Robustness.


def test_pgd_of_one_step_is_fgsm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 3))
    x, labels = SPEC.normalize(torch.rand(4, 1, 32, 32)), torch.tensor([0, 1, 2, 0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
    low, high = (bound.item() for bound in SPEC.bounds())
    expected = (x + 0.1 / 0.5 * gradient.sign()).clamp(low, high)
    found = pgd(model, x, labels, Attack(0.1, 0.1, 1), SPEC)
    torch.testing.assert_close(found, expected)
    free = pgd(model, x, labels, Attack(0.1, 0.1, 1), SPEC, clamp=False)
    torch.testing.assert_close(free, x + 0.1 / 0.5 * gradient.sign())
    assert not torch.equal(free, found)
    started = pgd(model, x, labels, Attack(0.1, 0.05, 5), SPEC, start=2 * torch.rand_like(x) - 1)
    assert (started - x).abs().max() <= 0.2 + 1e-6 and low - 1e-6 <= started.min() and started.max() <= high + 1e-6
    assert F.cross_entropy(model(started), labels) > F.cross_entropy(model(x), labels)
    assert all(p.grad is None for p in model.parameters())


def test_adversarial_training_makes_robust(data: ImageData) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    attack = Attack(0.15, 0.05, 4)
    found = []
    for robust in (False, True):
        torch.manual_seed(0)
        model = create("lenet5", num_classes=4, activation="relu")
        config = Training(steps=100, batch_size=32, lr=3e-3)
        if robust:
            adversarial_training(model, data.train, SPEC, config, attack)
        else:
            train_classifier(model, data.train, SPEC, config)
        found.append(attack_accuracies(model, data.test, SPEC, attack))
        assert found[-1].natural == pytest.approx(accuracy(model, data.test, SPEC))
    x, y = data.test.normalized(SPEC), data.test.labels
    ours = pgd(model, x, y, attack, SPEC)
    assert float((model(ours).argmax(1) == y).double().mean()) == pytest.approx(found[1].adversarial["ifgsm"], abs=0.03)
    assert set(found[1].adversarial) == {"fgsm", "ifgsm", "pgd"}
    assert found[1].adversarial["pgd"] > found[0].adversarial["pgd"]
    for row in found:
        assert row.adversarial["pgd"] <= row.natural
        assert row.fooling["pgd"] >= row.natural - row.adversarial["pgd"] - 1e-9


def test_bad_attacks_are_named(data: ImageData, teacher: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 1\]"):
        Attack(8.0)
    with pytest.raises(ValueError, match="step must be in"):
        Attack(0.1, 0.2)
    with pytest.raises(ValueError, match="attacks must be among"):
        attack_accuracies(teacher, data.test, SPEC, Attack(), ["deepfool"])


# Adaptation.


def test_a_result_brings_its_own_input(data: ImageData, teacher: nn.Module) -> None:
    recipe = recipes.get("data_impressions/nayak").replace(steps=2, batch_size=4)
    found, x = invert(teacher, per_class=2, recipe=recipe, spec=SPEC), data.train.normalized(SPEC)
    config = Training(steps=2, batch_size=4)
    for method in (adapt, adapt_by_rehearsal):
        by_result, by_tensor = (
            method(teacher, found, x, config=config).model, method(teacher, found.images, x, SPEC, config=config).model
        )  # fmt: skip
        assert same(state(by_result), state(by_tensor))
        with pytest.raises(ValueError, match="spec must be given where impressions are a tensor"):
            method(teacher, found.images, x, config=config)
    assert len(universal_perturbations(teacher, found, config=config).history) == 2
    with pytest.raises(ValueError, match="discriminator_lr must be a positive number, got 0"):
        adapt(teacher, found, x, discriminator_lr=0)


def test_discriminator_is_the_papers() -> None:
    layers = list(DomainDiscriminator(10).layers)
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(500, 10), (500, 500), (2, 500)]
    assert sum(isinstance(layer, nn.LeakyReLU) for layer in layers) == 2


def test_adaptation_to_less_contrast(data: ImageData, teacher: nn.Module) -> None:
    """The target domain is the source's with less contrast, and brighter: what a network adapts to without labels."""
    before = state(teacher)
    x = data.train.normalized(SPEC)
    moved = 0.5 * x + 0.5
    test = 0.5 * data.test.normalized(SPEC) + 0.5
    unadapted = float((logits_of(teacher, test).argmax(1) == data.test.labels).double().mean())
    done = adapt(teacher, x, moved, SPEC, config=Training(steps=150, batch_size=32, lr=3e-4), discriminator_lr=1e-3)
    adapted = float((logits_of(done.model, test).argmax(1) == data.test.labels).double().mean())
    assert same(before, state(teacher)) and done.model is not teacher
    assert unadapted < 0.8 and adapted > unadapted + 0.2
    with pytest.raises(ValueError, match=r"target must be \(N, 1, 32, 32\)"):
        adapt(teacher, x, moved[:, :, :16], SPEC)


def test_rehearsal_reaches_smaller_and_fainter_images(data: ImageData, teacher: nn.Module) -> None:
    """Sizes that no source image had are met in the augmented impressions, whose answers are known."""
    before = state(teacher)

    def smaller(x: torch.Tensor) -> torch.Tensor:
        x = SPEC.denormalize(x)
        return SPEC.normalize(0.7 * F.pad(F.interpolate(x, scale_factor=0.5, mode="area"), (8, 8, 8, 8)))

    x = data.train.normalized(SPEC)
    test = smaller(data.test.normalized(SPEC))
    config = Training(steps=150, batch_size=32, lr=1e-3, augmentation=Augmentation(shift=2, scale=0.5))
    told: list[Any] = []
    done = adapt_by_rehearsal(teacher, x, smaller(x), SPEC, config=config, progress=lambda *a: told.append(a[:3]))
    unadapted, adapted = (
        float((logits_of(model, test).argmax(1) == data.test.labels).double().mean()) for model in (teacher, done.model)
    )
    assert same(before, state(teacher)) and not done.model.training and told[-1] == ("adapt", 150, 150)
    assert unadapted < 0.8 and adapted > unadapted + 0.15, (unadapted, adapted)
    again = adapt_by_rehearsal(teacher, x, smaller(x), SPEC, config=config)
    assert torch.equal(done.history, again.history) and same(state(done.model), state(again.model))


def test_the_terms_of_rehearsal(data: ImageData, teacher: nn.Module) -> None:
    """Of one step, without augmentation, and all images in the batch: each term as its definition says."""
    x, target = data.train.normalized(SPEC)[:8], data.test.normalized(SPEC)[:8]
    config = Training(steps=1, batch_size=8)
    chosen = torch.randint(8, (8,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source, answers = teacher(x[chosen]), teacher(target)
    rehearsed = F.cross_entropy(source, source.softmax(1))
    probability, label = answers.softmax(1).max(1)
    for weights, expected in (
        ({"information": 0.0, "consistency": 0.0}, rehearsed),
        ({"information": 2.0, "consistency": 0.0}, rehearsed - 2 * mutual_information(answers)),
        # One step has no second half, in which alone this term counts.
        ({"information": 0.0, "consistency": 3.0}, rehearsed),
    ):
        found = adapt_by_rehearsal(teacher, x, target, SPEC, config=config, **weights).history
        assert found[0] == pytest.approx(float(expected), rel=1e-4)
    still = Training(steps=2, batch_size=8, lr=1e-12)
    second = [
        adapt_by_rehearsal(teacher, x, target, SPEC, config=still, information=0.0, consistency=c, confidence=0.9)
        for c in (0.0, 3.0)
    ]
    pseudo = F.cross_entropy(answers, label, reduction="none") * (probability >= 0.9)
    difference = second[1].history - second[0].history
    assert difference.tolist() == pytest.approx([0.0, 3 * float(pseudo.mean())], abs=1e-5)


def test_mutual_information() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    joint = p / 6  # of image and answer; its mutual information by definition
    expected = (joint * (joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log()).sum()
    torch.testing.assert_close(mutual_information(logits), expected)
    assert torch.autograd.gradcheck(mutual_information, logits)
    certain = 1e4 * torch.eye(4)
    assert float(mutual_information(certain)) == pytest.approx(torch.tensor(4.0).log().item())
    nobody = certain[:2].clone().requires_grad_()
    mutual_information(nobody).backward()
    assert nobody.grad is not None and nobody.grad.isfinite().all()


def test_bad_rehearsals_are_named(data: ImageData, teacher: nn.Module) -> None:
    x = data.train.normalized(SPEC)[:8]
    for name, value in (("information", -1.0), ("consistency", float("nan")), ("confidence", 1.5)):
        with pytest.raises(ValueError, match=name):
            adapt_by_rehearsal(teacher, x, x, SPEC, **{name: value})
    with pytest.raises(ValueError, match=r"impressions must be \(N, 1, 32, 32\)"):
        adapt_by_rehearsal(teacher, x[:, :, :16], x, SPEC)


def test_tsne_separates_what_is_apart() -> None:
    pytest.importorskip("sklearn", reason="needs the extra eval")
    a, b = torch.randn(20, 5), torch.randn(15, 5) + 50
    flat = tsne([a, b])
    assert [f.shape for f in flat] == [(20, 2), (15, 2)]
    assert torch.cdist(flat[0], flat[1]).min() > 0.2 * torch.cdist(flat[0], flat[0]).mean()
