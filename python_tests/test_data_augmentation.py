"""The effect of each random change of images, and the fields that are rejected."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exml_fast.continual import DistillationConfig
from exml_fast.data import Augmentation
from exml_fast.training import Training

UNIT = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disk(height: int, width: int, radius: float) -> Tensor:
    y, x = torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2
    return (radius + 0.5 - torch.hypot(y[:, None], x[None])).clamp(0, 1)[None, None]


def extent(images: Tensor, axis: int) -> Tensor:
    """Standard deviation of the ink along an axis, pixels, (N,)."""
    mass = images.sum((1, 2 if axis == 3 else 3))
    mass = mass / mass.sum(1, keepdim=True)
    at = torch.arange(images.shape[axis]) + 0.5
    centre = (mass * at).sum(1, keepdim=True)
    return (mass * (at - centre).square()).sum(1).sqrt()


@given(st.integers(0, 4), st.integers(0, 999))
def test_shift_moves_each_image_and_fills_with_the_background(shift: int, seed: int) -> None:
    low = torch.tensor([-2.0, 5.0])[:, None, None]
    images = torch.arange(6 * 2 * 5 * 7, dtype=torch.float32).view(6, 2, 5, 7) + 100
    moved = Augmentation(shift)(images, (low, low + 1000), torch.Generator().manual_seed(seed))
    assert moved.shape == images.shape
    draws = torch.randint(-shift, shift + 1, (2, 6), generator=torch.Generator().manual_seed(seed))
    for n, (dx, dy) in enumerate(draws.t().tolist()):
        for y in range(5):
            for x in range(7):
                inside = 0 <= y + dy < 5 and 0 <= x + dx < 7
                expected = images[n, :, y + dy, x + dx] if inside else low[:, 0, 0]
                torch.testing.assert_close(moved[n, :, y, x], expected)


def test_rotation_and_flip() -> None:
    bounds = torch.full((1, 1, 1), -1.0), torch.ones(1, 1, 1)
    images = torch.rand(4, 1, 9, 9)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(Augmentation(0)(images, bounds, generator), images)
    assert torch.equal(Augmentation(0, flip=1.0)(images, bounds, generator), images.flip(-1))
    torch.testing.assert_close(Augmentation(0, rotation=1e-6)(images, bounds, generator), images, atol=1e-4, rtol=0)
    turned = Augmentation(0, rotation=45)(images, bounds, generator)
    assert turned.shape == images.shape and float(turned.min()) >= -1 and not torch.equal(turned, images)
    shifted = Augmentation(2, rotation=1e-6)(images, bounds, torch.Generator().manual_seed(3))
    exact = Augmentation(2)(images, bounds, torch.Generator().manual_seed(3))
    torch.testing.assert_close(shifted, exact, atol=1e-4, rtol=0)


def test_scale_enlarges_and_shrinks() -> None:
    square = torch.zeros(200, 1, 32, 32)
    square[:, :, 8:24, 8:24] = 1
    scaled = Augmentation(shift=0, scale=0.5)(square, UNIT, seeded())
    side = scaled.sum((1, 2, 3)).sqrt()
    assert 7 < side.min() < 9.5 and 22.5 < side.max() < 25


def test_stretch_changes_width_and_height_independently() -> None:
    images = disk(40, 60, 9).expand(400, 1, 40, 60)
    wide, high = (
        extent(Augmentation(0, stretch=0.3)(images, UNIT, seeded()), axis) / extent(images, axis) for axis in (3, 2)
    )
    for factor in (wide, high):
        assert 0.69 < factor.min() < 0.75 and 1.25 < factor.max() < 1.31
    assert abs(float(torch.corrcoef(torch.stack([wide, high]))[0, 1])) < 0.15
    wide, high = (
        extent(Augmentation(0, scale=0.3)(images, UNIT, seeded()), axis) / extent(images, axis) for axis in (3, 2)
    )
    torch.testing.assert_close(wide, high, atol=0.02, rtol=0)


def test_shear_moves_rows_and_leaves_heights() -> None:
    """A vertical bar leans by at most the tangent, here on images that are not square."""
    bar = torch.zeros(1, 1, 40, 60)
    bar[..., 10:30, 29:31] = 1
    sheared = Augmentation(0, shear=0.5)(bar.expand(300, 1, 40, 60), UNIT, seeded())
    columns = torch.arange(60) + 0.5
    centre = (sheared[:, 0] * columns).sum(2) / sheared[:, 0].sum(2).clamp(min=1e-6)
    lean = (centre[:, 26] - centre[:, 13]) / 13
    assert 0.45 < lean.abs().max() < 0.52 and lean.min() < -0.4
    torch.testing.assert_close(extent(sheared, 2), extent(bar, 2).expand(300), atol=0.05, rtol=0)


def test_elastic_displaces_smoothly_by_the_given_deviation() -> None:
    """The pixels of a ramp encode their position, so the displacement of each can be read."""
    ramp = (torch.arange(32) + 0.5).expand(500, 1, 32, 32) / 64 + 0.25
    moved = 64 * (Augmentation(0, elastic=1.5)(ramp, UNIT, seeded()) - ramp)[:, 0, 8:24, 8:24]
    assert 1.0 < moved.square().mean().sqrt() < 1.6
    assert (moved[:, 1:] - moved[:, :-1]).abs().mean() < 0.3


def test_contrast_keeps_black_white_and_order() -> None:
    low, high = torch.tensor([-2.0, 1.0])[:, None, None], torch.tensor([3.0, 5.0])[:, None, None]
    ramp = torch.linspace(0, 1, 11).expand(200, 2, 1, 11)
    curved = (Augmentation(0, contrast=(4, 20))(low + (high - low) * ramp, (low, high), seeded()) - low) / (high - low)
    torch.testing.assert_close(curved[..., [0, 10]], ramp[..., [0, 10]], atol=1e-5, rtol=0)
    assert (curved[..., 1:] - curved[..., :-1]).min() >= -1e-6
    torch.testing.assert_close(curved[:, 0], curved[:, 1])
    fixed = Augmentation(0, contrast=(8, 8), midpoint=(0.3, 0.3))(ramp[:1, :1], UNIT)[0, 0, 0]
    sigmoid = [1 / (1 + math.exp(-8 * (p / 10 - 0.3))) for p in range(11)]
    expected = [(s - sigmoid[0]) / (sigmoid[10] - sigmoid[0]) for s in sigmoid]
    assert fixed.tolist() == pytest.approx(expected, abs=1e-5)
    nothing = Augmentation(0, contrast=(0.0, 1e-6))(ramp, UNIT, seeded())
    torch.testing.assert_close(nothing, ramp, atol=2e-3, rtol=0)


@given(
    st.integers(0, 3), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 1.0]), st.sampled_from([(0.0, 0.0), (2, 9)]),
    st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(4, 12), st.integers(4, 12)),
)  # fmt: skip
def test_valid_images_stay_valid(
    shift: int, rotation: float, scale: float, stretch: float, shear: float, elastic: float,
    contrast: tuple[float, float], shape: tuple[int, int, int, int],
) -> None:  # fmt: skip
    augmentation = Augmentation(shift, rotation, 0.5, scale, stretch, shear, elastic, contrast)
    low = torch.linspace(-1, 0.5, shape[1])[:, None, None]
    high = low + 2
    images = low + 2 * torch.rand(shape, generator=seeded())
    first, again = (augmentation(images, (low, high), seeded(1)) for _ in range(2))
    assert first.shape == images.shape and torch.equal(first, again)
    assert (first >= low - 1e-5).all() and (first <= high + 1e-5).all()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("shift", -1, "shift must be at least 0, got -1"),
        ("shift", 1.0, "shift must be an integer, got 1.0"),
        ("rotation", 181, "rotation must be at most 180, got 181"),
        ("flip", 1.1, "flip must be at most 1, got 1.1"),
        ("scale", 1.0, "scale must be less than 1, got 1.0"),
        ("stretch", -0.1, "stretch must be at least 0, got -0.1"),
        ("shear", math.inf, "shear must be a finite number, got inf"),
        ("shear", math.nan, "shear must be a finite number, got nan"),
        ("elastic", -1, "elastic must be at least 0, got -1"),
        ("elastic", True, "elastic must be a number, got True"),
        ("contrast", (2, 1), "contrast must be two ascending numbers, got (2.0, 1.0)"),
        ("contrast", 3.0, "contrast must be a list, got 3.0"),
        ("contrast", (0, math.inf), "contrast[1] must be a finite number, got inf"),
        ("contrast", (0, 1, 2), "contrast must be a list of at most 2, got (0, 1, 2)"),
        ("midpoint", (0, 1.5), "midpoint[1] must be at most 1, got 1.5"),
        ("midpoint", (0.5, 0.2), "midpoint must be two ascending numbers, got (0.5, 0.2)"),
        ("midpoint", ("a", "b"), "midpoint[0] must be a number, got 'a'"),
        ("rotate", 3, "unknown field 'rotate' (did you mean 'rotation'?); expected one of shift, rotation"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Augmentation(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_lists_stand_for_tuples() -> None:
    """As JSON and TOML have them."""
    assert Augmentation(contrast=[1, 2], midpoint=[0, 1]) == Augmentation(contrast=(1.0, 2.0), midpoint=(0.0, 1.0))  # type: ignore[arg-type]


def test_the_default_changes_nothing() -> None:
    """Nor do fields that are not given, where a table stands for the augmentation."""
    images = torch.rand(3, 1, 5, 5)
    assert not Augmentation().active and torch.equal(Augmentation()(images, UNIT, seeded()), images)
    config = Training(augmentation={"flip": 0.5})  # type: ignore[arg-type]
    assert config.augmentation == Augmentation(0, flip=0.5)
    assert config.replace(augmentation={"shift": 2}).augmentation == Augmentation(2)  # a table replaces the whole
    assert DistillationConfig().training.augmentation == Augmentation(4)  # Carta 2022's code
