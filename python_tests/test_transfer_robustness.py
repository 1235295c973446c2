"""Attacks against their formulas, and robust networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_training import (
    SMALL,
    SPEC,
    assert_resumes,
    assert_seed_decides,
    everything,
    network,
    unchanged,
)
from torch import nn

from exml_fast.data import Augmentation, ImageData, Split
from exml_fast.evaluation import accuracy
from exml_fast.models import create
from exml_fast.training import Training, train_classifier
from exml_fast.transfer import Attack, RampedAttack, adversarial_training, attack_accuracies, pgd


@pytest.fixture(scope="module")
def split() -> Split:
    return Split(torch.rand(24, *SMALL.shape, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4)


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
            model = adversarial_training(model, data.train, SPEC, config=config, attack=attack).model
        else:
            model = train_classifier(model, data.train, SPEC, config=config).model
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
    with pytest.raises(ValueError, match=r"epsilon must be at most 1, got 8\.0"):
        Attack(8.0)
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        Attack(0)
    with pytest.raises(ValueError, match=r"step must be at most epsilon = 0\.1, got 0\.2"):
        Attack(0.1, 0.2)
    with pytest.raises(ValueError, match="attacks must be among"):
        attack_accuracies(teacher, data.test, SPEC, Attack(), ["deepfool"])


def test_the_bound_of_a_ramped_attack_grows(split: Split) -> None:
    """Linearly over the first share of the steps; the network is in evaluation mode for the attack alone."""
    x, labels, model = SMALL.prepare(split.images), split.labels, network().train()
    modes = list[bool]()
    model.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    attack = RampedAttack(Attack(0.2, 0.1, 2), SMALL, 20, warmup=0.5, seed=3)
    start = torch.Generator().manual_seed(3)
    before = everything(model)
    for step in range(1, 14):
        share = min(step / 10, 1.0)
        moved = attack(model, x, labels)
        assert model.training and unchanged(before, model)
        begun = 2 * torch.rand(x.shape, generator=start) - 1
        model.eval()
        expected = pgd(model, x, labels, Attack(0.2 * share, 0.1 * share, 2), SMALL, begun)
        model.train()
        torch.testing.assert_close(moved, expected)
        assert float((moved - x).abs().max()) * SMALL.std[0] <= 0.2 * share + 1e-6
    assert not any(modes)


def test_a_ramped_attack_continues_from_its_state(split: Split) -> None:
    x, labels, model = SMALL.prepare(split.images), split.labels, network()
    first, second = (RampedAttack(Attack(0.2, 0.1, 1), SMALL, 20, seed=3) for _ in range(2))
    first(model, x, labels)
    kept = first.state_dict()
    expected = [first(model, x, labels) for _ in range(2)]
    second.load_state_dict(kept)
    assert all(torch.equal(second(model, x, labels), moved) for moved in expected)


def test_an_interrupted_adversarial_training_continues_bit_for_bit(split: Split, tmp_path: Path) -> None:
    config = Training(steps=130, batch_size=8, augmentation=Augmentation(1, flip=0.5), mixup=0.3)

    def run(steps: int = 2, **options: Any) -> Any:
        attack = Attack(0.1, 0.05, steps)
        return adversarial_training(network(), split, SMALL, config=config, attack=attack, warmup=0.9, **options)

    assert_resumes(run, tmp_path / "run", 100)
    (tmp_path / "another").mkdir()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path / "another", progress=stop)
    with pytest.raises(ValueError, match="belongs to another run"):
        run(3, checkpoint_dir=tmp_path / "another")


def test_a_seed_decides_adversarial_training_and_the_network_given_stays(split: Split) -> None:
    model, config = network(), Training(steps=4, batch_size=8)
    attack = Attack(0.1, 0.05, 2)
    assert_seed_decides(lambda **o: adversarial_training(model, split, SMALL, config=config, attack=attack, **o), model)
    plain = train_classifier(model, split, SMALL, config=config, seed=5)
    robust = adversarial_training(model, split, SMALL, config=config, attack=attack, seed=5)
    assert plain.history != robust.history
