"""Callbacks that pass progress and images on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import SPEC
from small_networks import network as small_network
from torch import Tensor

import exml_fast as xf
from exml_fast.progress import Renamed, TensorBoard, show_images


class Seen:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.pixels: list[Tensor] = []

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        self.calls.append((stage, step, total, terms))

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        self.calls.append((stage, step, total))
        self.pixels.append(make())


def test_stages_get_other_names() -> None:
    seen = Seen()
    renamed = Renamed(seen, lambda stage: f"expert 1: {stage}")
    renamed("invert", 1, 2, {"loss": 0.5})
    renamed.images("invert", 1, 2, lambda: torch.ones(1))
    assert seen.calls == [("expert 1: invert", 1, 2, {"loss": 0.5}), ("expert 1: invert", 1, 2)]


def test_images_are_made_only_for_callbacks_that_show_them() -> None:
    def never() -> Tensor:
        raise AssertionError

    show_images(None, "invert", 1, 2, never)
    show_images(lambda *_: None, "invert", 1, 2, never)
    Renamed(lambda *_: None, str).images("invert", 1, 2, never)


def test_images_are_shown_as_they_form() -> None:
    seen = Seen()
    network = small_network()
    options: dict[str, Any] = {"steps": 120, "per_class": 2, "batch_size": 5, "spec": SPEC, "recipe": "deep_inversion"}
    result = xf.invert(network, progress=seen, **options)
    assert torch.equal(result.images, xf.invert(network, **options).images)
    shown = [call[1:] for call in seen.calls if len(call) == 3]
    assert shown == [(step, 120) for step in (0, 50, 100, 120)] * 2
    assert all(float(p.min()) >= 0 and float(p.max()) <= 1 for p in seen.pixels)
    finished = torch.cat([seen.pixels[3], seen.pixels[7]])
    assert torch.equal(finished.flatten(1).sum(1).sort().values, result.pixels().flatten(1).sum(1).sort().values)
    assert not torch.equal(seen.pixels[0], seen.pixels[1])


def test_tensorboard_gets_terms_and_images(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options: dict[str, Any] = {"steps": 120, "per_class": 2, "batch_size": 5, "spec": SPEC, "recipe": "deep_inversion"}
    with TensorBoard(tmp_path, images=4, every=1e9) as board:
        xf.invert(small_network(), progress=board, **options)
    found = events.EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert {"invert/ce", "invert/bn", "invert/loss"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("invert/loss")] == [50, 100, 120, 170, 220, 240]
    assert [event.step for event in found.Images("invert/images")] == [0, 120, 240], "the first, and each last"
    with TensorBoard(tmp_path / "none", images=0) as board:
        xf.invert(small_network(), progress=board, **options)
    assert not events.EventAccumulator(str(tmp_path / "none")).Reload().Tags()["images"]
