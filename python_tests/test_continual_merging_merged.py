"""All merges on digits, and what they share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from exml_fast.continual import (
    ExpertStream,
    ModelInversion,
    MultiHead,
    ReBasin,
    RegMean,
    ZipIt,
    new_classes,
    stream_accuracy,
    train_stream,
)
from exml_fast.continual.expert import Expert
from exml_fast.data import ImageData, NaturalFields, load

MERGES: dict[str, Any] = {
    "weights": lambda stream, images: ReBasin(stream, images),
    "activations": lambda stream, images: ReBasin(stream, images, matching="activations"),
    "regmean": lambda stream, images: RegMean(stream, images, count=60),
    "zipit": lambda stream, images: ZipIt(stream, images, count=60),
    "trunk": lambda stream, images: ZipIt(stream, images, count=60, depth=2),
}


@cache
def digits() -> tuple[ImageData, list[list[int]]]:
    data = load("digits")
    return data, new_classes(data, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("digits")
    train_stream(*digits(), found, epochs=6, arguments={"batch_norm": True})
    return found


@pytest.mark.parametrize("name", MERGES)
def test_digits(name: str, folder: Path, tmp_path: Path) -> None:
    data, experiences = digits()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    merged = MERGES[name](ExpertStream(folder), NaturalFields())
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left alone"
    assert stream_accuracy(MultiHead(merged.expert, experiences), data, experiences) > 0.4, "0.2 by chance"
    assert stream_accuracy(merged, data) > 0.15, "0.1 by chance"
    again = MERGES[name](ExpertStream(folder), NaturalFields()).expert
    assert again.fingerprint() == merged.expert.fingerprint()
    if name == "trunk":
        with pytest.raises(ValueError, match="cannot be saved"):
            merged.expert.save(tmp_path)
        return
    merged.expert.save(tmp_path)
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(Expert.load(tmp_path).logits(images), merged.expert.logits(images))


def test_images_inverted_from_each_expert(folder: Path) -> None:
    images = ModelInversion("model_inversion/mnist", steps=3, stop_confidence=None)
    merged = RegMean(ExpertStream(folder), images, count=10).expert
    assert merged.card.training == {"method": "regmean", "alpha": 0.1, "experts": 2, "images": "model inversion"}
