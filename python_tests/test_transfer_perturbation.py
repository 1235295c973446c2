"""Universal perturbations: the losses against their formulas, the bound, bad inputs, and small runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import (
    SMALL,
    SPEC,
    assert_resumes,
    assert_seed_decides,
    everything,
    network,
    unchanged,
)
from torch import Tensor, nn

from exml_fast.data import Augmentation, ImageData, InputSpec
from exml_fast.training import Training
from exml_fast.transfer import (
    PerturbationGenerator,
    diversity_loss,
    fooling_loss,
    fooling_rate,
    universal_perturbations,
)


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
    universal_perturbations(model, images, spec=spec, epsilon=1e-3, config=config, clamp=False)
    (between,) = seen
    assert 0 < between.abs().max() <= 2e-3 + 1e-6
    torch.testing.assert_close(between.sum(0), torch.zeros(256), rtol=0, atol=1e-5)


def test_perturbations_fool_and_leave_the_network_alone(data: ImageData, teacher: nn.Module) -> None:
    before, images = everything(teacher), data.train.normalized(SPEC)
    made = universal_perturbations(
        teacher, images, spec=SPEC, epsilon=0.5, config=Training(steps=60, batch_size=32, lr=3e-3), diversity=0.1
    )
    assert unchanged(before, teacher) and isinstance(made.model, PerturbationGenerator)
    v = made.model.sample(3)
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
        universal_perturbations(teacher, images, spec=SPEC, diversity=-1.0)
    with pytest.raises(ValueError, match="diversity must be a number of at least 0, got 'a'"):
        universal_perturbations(teacher, images, spec=SPEC, diversity="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 1\], pixels being in \[0, 1\], got 'a'"):
        universal_perturbations(teacher, images, spec=SPEC, epsilon="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"impressions must be floating point.* got torch.uint8"):
        universal_perturbations(teacher, (255 * images.clamp(0, 1)).byte(), spec=SPEC)
    with pytest.raises(ValueError, match="one class only"):
        universal_perturbations(nn.Sequential(nn.Flatten(), nn.Linear(1024, 1)), images, spec=SPEC)


def test_an_interrupted_generator_continues_bit_for_bit(images: Tensor, tmp_path: Path) -> None:
    config = Training(steps=130, batch_size=8, augmentation=Augmentation(1, flip=0.5))

    def run(epsilon: float = 0.2, diversity: float = 0.5, **options: Any) -> Any:
        return universal_perturbations(
            network(), images, spec=SMALL, epsilon=epsilon, diversity=diversity, config=config, **options
        )

    assert_resumes(run, tmp_path / "run", 100)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=stop)
    for other in ({"epsilon": 0.3}, {"diversity": 1.0}, {"clamp": False}):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(checkpoint_dir=tmp_path, **other)


@pytest.mark.parametrize("training", [True, False])
def test_a_seed_decides_the_generator_and_the_network_given_stays(training: bool, images: Tensor) -> None:
    model, config = network().train(training), Training(steps=4, batch_size=8)
    assert_seed_decides(lambda **o: universal_perturbations(model, images, spec=SMALL, config=config, **o), model)
