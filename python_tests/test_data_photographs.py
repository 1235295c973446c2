"""Crops of photographs: geometry, colours, aliasing, determinism and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.utils import save_image

from exml_fast import distill
from exml_fast.data import Crops, ImageSource, InputSpec, Photographs
from exml_fast.models import create

SPEC = InputSpec(3, (16, 16), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
STILL: dict[str, Any] = {"rotation": 0, "shear": 0, "flip": 0, "jitter": 0, "ratio": (1, 1)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(seed: int = 0, height: int = 60, width: int = 80) -> Tensor:
    return torch.rand(3, height, width, generator=seeded(seed))


def ramp(height: int = 64, width: int = 96) -> Tensor:
    """Red grows to the right, green downwards: a pixel's colour is its place."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width), torch.zeros(height, width)])


def pixels(source: Photographs, count: int, seed: int = 0, spec: InputSpec = SPEC) -> Tensor:
    return spec.denormalize(source.draw(count, spec, seeded(seed)))


def test_crops_are_images_of_the_input_and_a_seed_decides_them() -> None:
    source = Photographs([photograph(0), photograph(1)])
    assert isinstance(source, ImageSource) and source.domain == "2 photographs"
    assert Photographs(photograph()).domain == "one photograph"
    x = source.draw(20, SPEC, seeded(3))
    assert x.shape == (20, 3, 16, 16) and x.dtype == torch.float32
    assert torch.equal(x, source.draw(20, SPEC, seeded(3))) and not torch.equal(x, source.draw(20, SPEC, seeded(4)))
    shown = SPEC.denormalize(x)
    assert shown.min() > -1e-5 and shown.max() < 1 + 1e-5
    assert source.draw(0, SPEC, seeded()).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("scale", [0.04, 0.25, 1.0])
def test_a_plain_crop_is_a_square_of_the_photograph(scale: float) -> None:
    shown = pixels(Photographs(ramp(), scale=(scale, scale), **STILL), 50)
    x, y = 96 * shown[:, 0], 64 * shown[:, 1]
    side = 64 * math.sqrt(scale)
    step = side / 16
    torch.testing.assert_close(x[:, :, 1:] - x[:, :, :-1], torch.full((50, 16, 15), step), atol=0.1, rtol=0)
    torch.testing.assert_close(y[:, 1:] - y[:, :-1], torch.full((50, 15, 16), step), atol=0.1, rtol=0)
    left, right = x.flatten(1).amin(1) - step / 2, x.flatten(1).amax(1) + step / 2
    assert left.min() > -0.6 and right.max() < 96.6
    if scale < 1:
        assert left.min() < 8 and right.max() > 88 and left.std() > 5  # everywhere in the photograph


def test_rotation_shear_flip_and_ratio() -> None:
    def directions(**changes: Any) -> tuple[Tensor, Tensor]:
        """Of each crop: what one pixel to the right, and one down, are in the photograph."""
        # Interior crops: at the edges of the pyramid's pixels the ramp bends.
        shown = pixels(Photographs(ramp(), scale=(0.1, 0.1), **{**STILL, **changes}), 200)[:, :2]
        shown = shown * torch.tensor([96.0, 64.0])[:, None, None]
        return shown[:, :, 8, 9] - shown[:, :, 8, 8], shown[:, :, 9, 8] - shown[:, :, 8, 8]

    def angles(vectors: Tensor) -> Tensor:
        return torch.atan2(vectors[:, 1], vectors[:, 0]).rad2deg()

    right, down = directions(rotation=30)
    assert 28 < angles(right).abs().max() < 31 and angles(right).std() > 10
    torch.testing.assert_close(angles(down) - angles(right), torch.full((200,), 90.0), atol=3, rtol=0)
    right, down = directions(shear=30)
    assert angles(right).abs().max() < 1 and 28 < (angles(down) - 90).abs().max() < 31
    right, _ = directions(flip=0.25)
    assert 25 < int((right[:, 0] < 0).sum()) < 75
    right, down = directions(ratio=(0.5, 2))
    ratio = right.norm(dim=1) / down.norm(dim=1)
    assert 0.48 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.1
    step = 64 * math.sqrt(0.1) / 16
    torch.testing.assert_close(right.norm(dim=1) * down.norm(dim=1), torch.full((200,), step**2), rtol=0.05, atol=0)


def test_large_crops_are_not_aliased() -> None:
    """A checkerboard of single pixels, reduced four times, is grey."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float().expand(3, 128, 128)
    shown = pixels(Photographs(board, scale=(0.25, 0.25), **STILL), 20)
    torch.testing.assert_close(shown, torch.full_like(shown, 0.5), atol=1e-4, rtol=0)


def test_colours_change_by_their_formulas() -> None:
    still = {**STILL, "scale": (0.2, 0.2), "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    plain = pixels(Photographs(0.25 + photograph() / 4, **still), 40)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]

    def changed(**changes: Any) -> Tensor:
        return pixels(Photographs(0.25 + photograph() / 4, **{**still, **changes, "jitter": 1}), 40)

    torch.testing.assert_close(changed(), plain, atol=1e-5, rtol=0)
    ratio = (changed(brightness=0.3) / plain).flatten(1)
    assert (ratio.std(1) < 1e-4).all() and ratio.min() > 0.7 - 1e-4 and ratio.max() < 1.3 + 1e-4 and ratio.std() > 0.1
    found = changed(contrast=0.3)
    middle = (luma * plain).sum(1).mean((1, 2))[:, None, None, None]
    factor = ((found - middle) / (plain - middle)).flatten(1)
    steady = ((plain - middle).abs() > 0.05).flatten(1)
    for row, known in zip(factor, steady, strict=True):
        assert row[known].std() < 1e-3 and 0.7 - 1e-3 < row[known].mean() < 1.3 + 1e-3
    for changes in ({"saturation": 0.5}, {"hue": 0.2}):
        found = changed(**changes)
        torch.testing.assert_close((luma * found).sum(1), (luma * plain).sum(1), atol=2e-3, rtol=0)
        assert (found - plain).abs().amax() > 0.02
    few = pixels(Photographs(photograph(), **{**still, "jitter": 0.25, "brightness": 0.5}), 400)
    same = (few == pixels(Photographs(photograph(), **{**still, "brightness": 0.5}), 400)).flatten(1).all(1)
    assert 250 < int(same.sum()) < 350


def test_grey_photographs_and_grey_inputs() -> None:
    grey = InputSpec(1, (16, 16), (0.5,), (0.25,))
    colour = Photographs(photograph(), **STILL)
    luma = (pixels(colour, 5) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(pixels(colour, 5, spec=grey), luma, atol=1e-4, rtol=0)
    shown = pixels(Photographs(photograph()[:1], saturation=0.4, hue=0.1, jitter=1.0), 5)
    torch.testing.assert_close(shown[:, :1].expand(5, 3, 16, 16), shown, atol=2e-3, rtol=0)


def test_files_folders_and_tensors(tmp_path: Path) -> None:
    bytes_ = (255 * photograph()).byte()
    save_image(bytes_ / 255, tmp_path / "a.png")
    save_image(photograph(2), tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    of_tensor, of_file = Photographs(bytes_), Photographs(tmp_path / "a.png")
    assert torch.equal(of_tensor.draw(4, SPEC, seeded()), of_file.draw(4, SPEC, seeded()))
    assert of_tensor.describe() == of_file.describe() and of_file.describe()["scale"] == [0.002, 1.0]
    assert Photographs(tmp_path).domain == Photographs([tmp_path / "a.png", str(tmp_path / "b.png")]).domain
    assert Photographs(tmp_path / "b.png").describe()["sha256"] != of_file.describe()["sha256"]
    assert Photographs(bytes_, rotation=3).describe() == {**of_tensor.describe(), "rotation": 3}
    assert Photographs(bytes_, Crops(flip=0), rotation=3).crops == Crops(flip=0, rotation=3)


def test_what_is_no_photograph_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "missing.jpg", "there is no file .*missing.jpg"),
        (tmp_path / "broken.png", "broken.png is no image that can be read"),
        (tmp_path / "empty", "the folder .*empty holds no images"),
        ([], "at least one photograph, got none"),
        ([3], "photographs must be paths or tensors, got 3"),
        (torch.rand(2, 30, 30), r"must be \(C, h, w\) of 1 or 3 channels, got \(2, 30, 30\)"),
        (torch.rand(4, 3, 30, 30), r"must be \(C, h, w\) of 1 or 3 channels, got \(4, 3, 30, 30\)"),
        (torch.ones(3, 30, 30, dtype=torch.int64), "must be uint8, or float in .*, got torch.int64"),
        (2 * torch.ones(3, 30, 30), r"must be in \[0, 1\], got values from 2 to 2"),
        (torch.full((3, 30, 30), math.nan), r"must be in \[0, 1\], got values from nan"),
        (torch.full((3, 30, 30), 0.3), "must be a photograph, got a picture of one colour"),
    ):
        with pytest.raises(ValueError, match=message):
            Photographs(given)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"photographs\[1\] must have at least 16 × 16 pixels, as the input, got 8 × 80"
    ):
        Photographs([photograph(), photograph(0, 8)]).draw(1, SPEC, seeded())
    with pytest.raises(ValueError, match="unknown field 'zoom'"):
        Photographs(photograph(), zoom=2)
    for changes, message in (
        ({"scale": (0.5, 0.1)}, "scale must be two ascending numbers"),
        ({"scale": (0.5, 2.0)}, "scale must be at most 1"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"flip": 2.0}, "flip"),
        ({"hue": 0.7}, "hue"),
    ):
        with pytest.raises(ValueError, match=message):
            Photographs(photograph(), **changes)  # type: ignore[arg-type]


def test_a_student_learns_from_a_photograph() -> None:
    torch.manual_seed(0)
    teacher, student = create("lenet5_half", num_classes=4), create("lenet5_half", num_classes=4)
    spec = InputSpec(1, (32, 32), (0.4,), (0.25,))
    result = distill(teacher, student, Photographs(photograph()), spec=spec, steps=100, batch_size=16, lr=0.02)
    assert result.history["kl"][-1] < 0.5 * result.history["kl"][0]
