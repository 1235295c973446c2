"""Learning rates against torch's schedulers and the papers' numbers."""

from __future__ import annotations

import math

import pytest
import torch

from exml_fast.training import Training, learning_rate, one_cycle
from exml_fast.transfer import Distillation


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_one_cycle_rises_to_its_peak_and_falls(steps: int) -> None:
    rates = [one_cycle(0.5, step, steps) for step in range(steps)]
    assert all(0.5 / 1e4 <= rate <= 0.5 for rate in rates) and rates[0] == pytest.approx(0.5 / 25)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if steps == 1000:
        assert peak == 300 and rates[300] == 0.5 and rates[-1] == pytest.approx(0.5 / 1e4)
        reference = torch.optim.lr_scheduler.OneCycleLR(
            torch.optim.SGD([torch.zeros(1)], lr=1.0), 0.5, total_steps=steps, pct_start=0.3, final_div_factor=400
        )
        for rate in rates[:3]:
            assert rate == pytest.approx(reference.get_last_lr()[0], rel=0.02)
            reference.optimizer.step()
            reference.step()


def test_rates_of_distillation_are_those_of_the_paper() -> None:
    config = Distillation()
    training, generation = config.training, config.generation
    assert [training.rate(s) for s in (0, 19499)] == [0.1, 0.1]
    assert [training.rate(s) for s in (19500, 39000)] == pytest.approx([0.01, 0.001])
    assert (training.steps, training.batch_size) == (250 * 195, 256)
    assert generation.generate_every == 50 and generation.resolved(256, cheap=False).per_round == 256
    cosine = Distillation().replace(steps=100, schedule="cosine", warmup=10).training
    assert cosine.rate(0) == pytest.approx(0.01) and cosine.rate(10) == pytest.approx(0.1) and cosine.rate(99) < 1e-4
    assert Distillation(**config.to_dict()) == config


def scheduled(kind: str, steps: int) -> list[float]:
    """Rates of torch's own scheduler, from 0.3."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    table = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.2),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    }
    scheduler, found = table[kind](), []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_rates_are_those_of_torch(kind: str, steps: int) -> None:
    rates = [learning_rate(kind, 0.3, step, steps, decay=0.2, decay_every=7) for step in range(steps)]
    assert rates == pytest.approx(scheduled(kind, steps))


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_warmup_rises_linearly_to_the_schedule(kind: str) -> None:
    plain, warm = Training(steps=40, lr=0.5, schedule=kind), Training(steps=40, lr=0.5, schedule=kind, warmup=8)  # type: ignore[arg-type]
    rates = [warm.rate(step) for step in range(40)]
    assert rates[:8] == pytest.approx([0.5 * (step + 1) / 8 for step in range(8)])
    if kind == "cosine":  # over the steps that are left
        assert rates[8:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 32)) for step in range(32)])
    else:
        assert rates[8:] == [plain.rate(step) for step in range(8, 40)]


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of .*'onecycle', got 'linear'"):
        Training(schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be one of constant, .*, got 'cosin' \(did you mean 'cosine'\?\)"):
        learning_rate("cosin", 0.1, 0, 10)


def test_onecycle_has_no_warmup() -> None:
    config = Training(steps=40, lr=0.5, schedule="onecycle")
    assert [config.rate(step) for step in range(40)] == [one_cycle(0.5, step, 40) for step in range(40)]
    with pytest.raises(ValueError, match="warmup must be 0 with schedule 'onecycle', got 8"):
        config.replace(warmup=8)
