"""Rounding, memory formats and what "auto" means."""

from __future__ import annotations

import pytest
import torch
from small_training import SMALL, network, same
from torch import nn

from exml_fast.data import Split
from exml_fast.training import Rounded, Training, arranged, forward, placed, train_classifier
from exml_fast.training.precision import resolved


def test_forward_keeps_double_and_rounds_only_when_asked() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(64, 3), torch.randn(5, 64)
    assert torch.equal(forward(model, x, "float32"), model(x))
    assert forward(model.double(), x.double(), "float32").dtype == torch.float64
    rounded = forward(model.float(), x, "bfloat16")
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, model(x))
    assert torch.allclose(rounded, model(x), atol=0.05)
    assert torch.equal(Rounded(model, "bfloat16")(x), rounded)


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


def test_placed_is_in_channels_last_on_a_cpu() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    assert placed(model, torch.device("cpu")) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and model[1].weight.is_contiguous()


@pytest.mark.parametrize("fast", [False, True])
def test_auto_is_bfloat16_where_the_device_computes_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or fast)
    expected = "bfloat16" if fast else "float32"
    for device in ("cpu", "cuda"):
        assert resolved("auto", torch.device(device)) == expected
        assert [resolved(kind, torch.device(device)) for kind in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    split = Split(torch.rand(16, *SMALL.shape), torch.arange(16) % 4)
    runs = {
        kind: train_classifier(network(), split, SMALL, config=Training(steps=3, batch_size=8, precision=kind)).model
        for kind in ("auto", "float32", "bfloat16")
    }  # type: ignore[arg-type]
    assert same(runs["auto"].state_dict(), runs[expected].state_dict())
    assert not same(runs["float32"].state_dict(), runs["bfloat16"].state_dict())


def test_bfloat16_keeps_weights_and_updates_in_float32() -> None:
    split = Split(torch.rand(16, *SMALL.shape), torch.arange(16) % 4)
    made = train_classifier(network(), split, SMALL, config=Training(steps=3, batch_size=8, precision="bfloat16")).model
    assert all(t.dtype in (torch.float32, torch.int64) and t.is_contiguous() for t in made.state_dict().values())


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match=r"precision must be one of .*, got 'float16'"):
        Training(precision="float16")  # type: ignore[arg-type]
