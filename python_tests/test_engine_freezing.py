from __future__ import annotations

import pytest
import torch
from small_networks import network

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import chosen_device, probe
from exml_fast.inversion import invert


def test_the_device_is_that_of_the_model_unless_given() -> None:
    assert chosen_device(None) == chosen_device("cpu") == chosen_device(None, network()) == torch.device("cpu")
    assert chosen_device("meta") == chosen_device(None, network().to("meta")) == torch.device("meta")
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or 'cuda:<n>', got 'gpu'"):
        chosen_device("gpu")


def test_a_missing_gpu_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device 'cuda': no CUDA GPU is found here .*; give 'cpu'"):
        invert(network(), spec=InputSpec(1, (12, 12), (0.5,), (0.25,)), device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device 'cuda:2': only 2 CUDA GPUs are here, 'cuda:0' to 'cuda:1'"):
        chosen_device("cuda:2")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"device 'cuda': PyTorch .* here has no CUDA; give 'cpu'"):
        chosen_device("cuda")


def test_images_that_are_too_small_are_named_with_a_size_that_fits() -> None:
    deep = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 9), torch.nn.MaxPool2d(4), torch.nn.Conv2d(2, 2, 3), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip
    small = InputSpec(1, (8, 12), (0.5,), (0.25,))
    with pytest.raises(ValueError, match="images 8×12 are too small for Sequential, which takes them from about 32×48"):
        invert(deep, spec=small)
    with pytest.raises(ValueError, match=r"Sequential rejects images of shape \(1, 3, 32, 32\).*1 channels"):
        probe(deep, torch.zeros(1, 3, 32, 32), small)
