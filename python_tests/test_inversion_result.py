from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_networks import CE, SPEC, network

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
