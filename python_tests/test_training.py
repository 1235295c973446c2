from __future__ import annotations

import pytest
import torch
from torch import nn

from exml_fast.training import arranged, forward, one_cycle


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


def test_forward_keeps_double_and_rounds_only_when_asked() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 3), torch.randn(5, 64)
    assert torch.equal(forward(model, x, "float32"), model(x))
    assert forward(model.double(), x.double(), "float32").dtype == torch.float64
    rounded = forward(model.float(), x, "bfloat16")
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, model(x))
    assert torch.allclose(rounded, model(x), atol=0.05)


def test_arranged_chooses_the_memory_format_for_bfloat16_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(2, 2))
    assert arranged(model, "float32") is model and model[0].weight.is_contiguous()
    arranged(model, "bfloat16")
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and model[1].weight.is_contiguous()
    arranged(model, "float32")
    assert not model[0].weight.is_contiguous()
    arranged(model, "bfloat16", torch.contiguous_format)
    assert model[0].weight.is_contiguous()


def test_forward_leaves_the_caller_s_autocast_alone() -> None:
    model, x = nn.Linear(64, 3), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forward(model, x, "float32"), forward(model, x, "bfloat16"))
