from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import CE, SPEC, network
from torch.utils.data import DataLoader

from exml_fast.data import LabelledImages
from exml_fast.inversion import Result, invert


@pytest.fixture
def result() -> Iterator[Result]:
    soft = CE.replace(steps=3, targets="dirichlet", betas=(1.0,))
    yield invert(network(), recipe=soft, spec=SPEC, per_class=2)


def test_result_survives_its_folder(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "run")
    again = Result.load(tmp_path / "run")
    assert torch.equal(again.images, result.images) and torch.equal(again.labels, result.labels)
    assert result.targets is not None and again.targets is not None and torch.equal(again.targets, result.targets)
    assert result.logits is not None and again.logits is not None and torch.equal(again.logits, result.logits)
    assert torch.allclose(again.soft_labels(2.0), (result.logits / 2).softmax(1))
    assert again.spec == SPEC and again.summary == result.summary and again.seconds == result.seconds
    assert {k: v.tolist() for k, v in again.history.items()} == {k: v.tolist() for k, v in result.history.items()}
    result.targets = result.logits = None
    result.save(tmp_path / "run")
    assert Result.load(tmp_path / "run").targets is None
    with pytest.raises(ValueError, match="logits were not kept"):
        Result.load(tmp_path / "run").soft_labels()


def test_damaged_results_are_named(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path)
    (tmp_path / "result.json").write_text('{"terms": ["nothing"]}')
    with pytest.raises(ValueError, match=r"history\.nothing.*missing"):
        Result.load(tmp_path)
    result.labels = result.labels[:3]
    result.save(tmp_path)
    with pytest.raises(ValueError, match="do not fit"):
        Result.load(tmp_path)


def test_grid(tmp_path: Path, result: Result) -> None:
    from torchvision.io import decode_image

    result.save_grid(tmp_path / "grid.png", columns=5)
    assert decode_image(str(tmp_path / "grid.png")).shape == (3, 2 * 14 + 2, 5 * 14 + 2)
    result.save_grid(tmp_path / "square.png")


def test_a_result_is_a_picture_and_two_lines(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = repr(result).splitlines()
    accuracy = f"{100 * result.summary['teacher_accuracy']:.1f} % recognised by the teacher"
    assert first == f"Result: 10 images 1×12×12 of 5 classes, {accuracy}"
    assert second.startswith("recipe ce, seed 0, ")
    png = result._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        # Ten images of 12 pixels, eight times as large, four a row, with two pixels between.
        assert image.size == (4 * 98 + 2, 3 * 98 + 2)
        drawn = np.asarray(image)[2:98:8, 2:98:8, 0]
    assert abs(drawn - (255 * result.pixels()[0, 0]).numpy()).max() <= 1
    shown = list[tuple[int, int]]()
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    result.show(2, columns=2)
    assert shown == [(2 * 98 + 2, 100)]
    with pytest.raises(ValueError, match="count must be at least 1 of 10 images, got 0"):
        result.show(0)
    none = torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.int64)
    assert Result(*none, None, SPEC, {}, 0.0)._repr_png_() is None


def test_a_result_is_a_data_set(result: Result) -> None:
    images, labels = next(iter(DataLoader(result.as_dataset(), batch_size=10)))
    assert torch.equal(images, result.images) and torch.equal(labels, result.labels)
    image, label = result.as_dataset(pixels=True, transform=lambda pixels: pixels.flip(-1))[3]
    assert torch.equal(image, result.pixels()[3].flip(-1)) and type(label) is int and label == result.labels[3]
    assert torch.equal(result.as_dataset(temperature=2.0)[4][1], result.soft_labels(2.0)[4])
    with pytest.raises(ValueError, match="labels must be one for each of 2 images, got 1"):
        LabelledImages(torch.zeros(2, 1, 3, 3), torch.zeros(1))
