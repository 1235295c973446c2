from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_networks import SPEC, network
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.generators import networks
from exml_fast.generators.generator import draw_latents
from exml_fast.generators.meta import Disagreement, Fast, FastSynthesis
from exml_fast.inversion.objective import Step

SMALL = Fast(steps=3, batch_size=8, width=4, latent_size=6, warmup=0)
PLAIN = SMALL.replace(shift=0, flip=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(settings: Fast, count: int = 8, **options: Any) -> tuple[Tensor, Tensor]:
    return FastSynthesis(network(), SPEC, settings, **options).make(count, network(1), seeded())


def statistics_of(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    features = model[0](x)
    return features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)


@pytest.mark.parametrize(("meta", "code"), [("fomaml", 0.0), ("reptile", 0.0), ("fomaml", 2.0)])
def test_two_batches_by_hand(meta: str, code: float) -> None:
    """Algorithm 1 of Fang 2022 in plain PyTorch."""
    settings = PLAIN.replace(meta=meta, bn=2.0, bn_memory=0.75, class_code=code)
    teacher, student = network().eval(), network(1).eval()
    synthesis = FastSynthesis(teacher, SPEC, settings, precision="float32", seed=3)
    images, labels = synthesis.make(16, student, seeded(5))

    torch.manual_seed(3)
    theta = networks.create("upsampling", latent_size=6, width=4, channels=1, size=[12, 12], helper_bn=False).train()
    outer = torch.optim.Adam(theta.parameters(), 3 * 3e-3, (0.5, 0.999))
    random, past, running = seeded(5), None, (teacher[1].running_mean, teacher[1].running_var)
    classes = torch.cat([torch.randperm(5, generator=random) for _ in range(4)])[:16]
    assert torch.equal(labels, classes)
    for part in range(2):
        targets = classes[8 * part : 8 * part + 8]
        z = draw_latents(8, 6, random, "cpu") + code * draw_latents(5, 6, seeded(3), "cpu")[targets]
        z = (z / (1 + code**2) ** 0.5).requires_grad_()
        adapted = copy.deepcopy(theta)
        inner = torch.optim.Adam([{"params": adapted.parameters()}, {"params": [z], "lr": 0.01}], 3e-3, (0.5, 0.999))
        sums, found = [0.0] * len(list(theta.parameters())), []
        for _ in range(3):
            pixels = (adapted(z) + 1) / 2
            x = (pixels - 0.5) / 0.25
            torch.randint(-0, 1, (8, 2), generator=random), torch.rand(8, generator=random)  # of the augmentation
            logits, other = teacher(x), student(x)
            mean, var = statistics_of(teacher, x)
            share = 1.0 if past is None else 0.25
            if past is not None:
                second = var + mean**2
                mean = 0.25 * mean + 0.75 * past[0]
                var = 0.25 * second + 0.75 * (past[1] + past[0] ** 2) - mean**2
            bn = (mean - running[0]).norm() + (var - running[1]).norm()
            p, q = logits.softmax(1), other.softmax(1)
            divergence = (p * (p / q).log()).sum(1) * (logits.argmax(1) == other.argmax(1))
            ce = nn.functional.cross_entropy(logits, targets)
            loss = 0.5 * ce + 2.0 * bn - 1.33 * divergence.mean()
            found.append((loss.item(), x.detach()))
            # Only the statistics' gradient is divided by the share of the batch.
            inner.zero_grad()
            (0.5 * ce - 1.33 * divergence.mean() + 2.0 / share * bn).backward()
            sums = [a + p.grad for a, p in zip(sums, adapted.parameters(), strict=True)]
            inner.step()
        past = mean.detach(), var.detach()
        best = min(found, key=lambda pair: pair[0])[1]
        assert torch.allclose(images[8 * part : 8 * part + 8], best, atol=2e-3)
        for weight, after, gradient in zip(theta.parameters(), adapted.parameters(), sums, strict=True):
            weight.grad = gradient if meta == "fomaml" else (weight - after).detach()
        outer.step()
    state = synthesis.state_dict()
    assert torch.allclose(state["statistics"]["mean"], past[0], atol=1e-3) and synthesis.batches == 2


def test_disagreement_counts_where_both_name_the_same_class() -> None:
    teacher, student = torch.randn(6, 4), torch.randn(6, 4)
    x = torch.randn(6, 1, 2, 2)
    found = Disagreement(1.0)(Step(x, x, teacher, torch.zeros(6), (), student))
    p, q = teacher.softmax(1), student.softmax(1)
    for n in range(6):
        same = p[n].argmax() == q[n].argmax()
        assert torch.allclose(found[n], -1.0 * same * (p[n] * (p[n] / q[n]).log()).sum(), atol=1e-6)
    with pytest.raises(ValueError, match="needs a student"):
        Disagreement(1.0)(Step(x, x, teacher, torch.zeros(6)))


def test_images_are_balanced_and_valid_and_the_seed_decides() -> None:
    images, labels = made(SMALL, 23, classes=[3, 1], units=[3, 0, 1, 7, 5])
    assert images.shape == (23, 1, 12, 12) and images.dtype == torch.float32
    assert sorted(labels.bincount().tolist()) == [0, 0, 11, 12] and set(labels.tolist()) == {1, 3}
    pixels = SPEC.denormalize(images)
    assert pixels.min() >= 0 and pixels.max() <= 1
    again, _ = made(SMALL, 23, classes=[3, 1], units=[3, 0, 1, 7, 5])
    other, _ = made(SMALL, 23, classes=[3, 1], units=[3, 0, 1, 7, 5], seed=1)
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_nothing_given_is_changed() -> None:
    teacher, student = network(), network(1).train()
    before = [copy.deepcopy(model.state_dict()) for model in (teacher, student)]
    state = torch.get_rng_state()
    FastSynthesis(teacher, SPEC, SMALL).make(8, student, seeded())
    assert torch.equal(torch.get_rng_state(), state) and student.training
    for model, old in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes", [{}, {"meta": "reptile", "bn_memory": "set", "reset_after": 2, "class_code": 1.0}, {"adversarial": 0.0}]
)
def test_a_resumed_synthesis_makes_the_same_images(changes: dict[str, Any]) -> None:
    settings = SMALL.replace(warmup=1, **changes)
    whole, generator = FastSynthesis(network(), SPEC, settings), seeded()
    whole.make(8, network(1), generator)
    state, draws = whole.state_dict(), generator.get_state()
    expected = whole.make(12, network(2), generator)
    resumed, generator = FastSynthesis(network(), SPEC, settings, seed=9), seeded()
    resumed.load_state_dict(state)
    generator.set_state(draws)
    found = resumed.make(12, network(2), generator)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert resumed.batches == 4


def test_the_warm_up_trains_the_generator_once_without_the_student() -> None:
    synthesis = FastSynthesis(network(), SPEC, SMALL.replace(warmup=4))
    synthesis.make(8, network(1), seeded())
    assert synthesis.batches == 5
    synthesis.make(8, network(1), seeded())
    assert synthesis.batches == 6


def test_the_first_layer_is_drawn_anew_once() -> None:
    synthesis = FastSynthesis(network(), SPEC, SMALL.replace(reset_after=2))
    (linear,) = (layer for layer in synthesis.generator.modules() if isinstance(layer, nn.Linear))
    spreads = []
    for _ in range(3):
        synthesis.make(8, network(1), seeded())
        spreads.append(linear.weight.std().item())
    assert spreads[1] == pytest.approx(0.02, rel=0.2) and spreads[0] > 0.1


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_later_batches_begin_better(meta: str, digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    """The point of the meta-generator: two steps reach more after some batches."""
    teacher, spec = digits_teacher
    settings = PLAIN.replace(
        steps=2, batch_size=32, width=8, adversarial=0.0, bn=0.0, meta=meta, ce=1.0, lr_generator=2e-3
    )
    synthesis, random, losses = FastSynthesis(teacher, spec, settings), seeded(), list[float]()
    for _ in range(16):
        images, labels = synthesis.make(32, None, random)
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(teacher(images), labels).item())
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])


def test_on_a_gpu_too(device: str) -> None:
    images, labels = made(SMALL, 8, device=device)
    assert images.device.type == labels.device.type == "cpu" and images.isfinite().all()


def test_a_network_without_batch_norm() -> None:
    plain = network(batch_norm=False)
    with pytest.raises(ValueError, match=r"runs no BatchNorm layer.*bn_optional"):
        FastSynthesis(plain, SPEC, SMALL)
    for changes in ({"bn": 0.0}, {"bn_optional": True}):
        images, _ = FastSynthesis(plain, SPEC, SMALL.replace(**changes)).make(8, network(1), seeded())
        assert images.isfinite().all()


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="ce must be positive where bn and adversarial are 0"):
        Fast().replace(ce=0.0, bn=0.0, adversarial=0.0)
    for name, value in (("steps", 0), ("width", 0), ("latent_size", 0), ("meta", "maml"), ("bn_memory", 1.0)):
        with pytest.raises(ValueError, match=name):
            Fast().replace(**{name: value})
    with pytest.raises(ValueError, match="unknown field 'step'"):
        Fast().replace(step=3)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"student must be a torch.nn.Module.*adversarial=1.33.*NoneType"):
        FastSynthesis(network(), SPEC, SMALL).make(8, None, seeded())
    with pytest.raises(ValueError, match="student must give the teacher's 5 logits"):
        FastSynthesis(network(), SPEC, SMALL).make(8, nn.Sequential(*network()[:-1], nn.Linear(54, 3)), seeded())
    with pytest.raises(ValueError, match=r"classes must be at least one of the teacher's 5 classes, got \[9\]"):
        FastSynthesis(network(), SPEC, SMALL, classes=[9])
    with pytest.raises(ValueError, match="units must be 5 distinct class ids"):
        FastSynthesis(network(), SPEC, SMALL, units=[0, 0, 1, 2, 3])
    with pytest.raises(ValueError, match="count"):
        FastSynthesis(network(), SPEC, SMALL).make(0, network(1), seeded())
    odd = InputSpec(1, (13, 13), (0.5,), (0.25,))
    with pytest.raises(ValueError, match=r"size must be .height, width., both positive multiples of 4"):
        FastSynthesis(network(), odd, SMALL)


def test_a_loss_that_is_not_finite_is_named() -> None:
    synthesis = FastSynthesis(network(), SPEC, SMALL)
    with torch.no_grad():
        next(synthesis.generator.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"ce became nan at step 0 of batch 0.*lr_generator"):
        synthesis.make(8, network(1), seeded())
