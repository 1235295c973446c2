from __future__ import annotations

import pytest
import torch

from exml_fast.inversion.augmentation import Augmentation, Draws


def draws(**given: torch.Tensor) -> Draws:
    return Draws(given.get("shift"), given.get("flip"), given.get("affine"))


def test_no_augmentation_is_the_identity() -> None:
    none = Augmentation()
    x = torch.randn(2, 3, 8, 8)
    assert none(x, none.draw(4, (8, 8), torch.Generator()), 3) is x


def test_shifts_are_inclusive_and_flips_are_fair() -> None:
    found = Augmentation(2, flip=True).draw(4000, (8, 8), torch.Generator().manual_seed(0))
    assert found.shift is not None and found.flip is not None and found.affine is None
    assert found.shift.unique().tolist() == [-2, -1, 0, 1, 2]
    assert 0.45 < found.flip.float().mean() < 0.55


def test_wrap_rolls_and_zero_pads() -> None:
    x = torch.randn(2, 1, 6, 5)
    drawn = draws(shift=torch.tensor([[1, -2]]), flip=torch.tensor([True]))
    assert torch.equal(Augmentation(2, "wrap", True)(x, drawn, 0), x.roll((1, -2), (2, 3)).flip(3))
    y = Augmentation(2, "zero")(x, draws(shift=torch.tensor([[1, -2]])), 0)
    expected = torch.zeros_like(x)
    expected[:, :, 1:, :3] = x[:, :, :-1, 2:]
    assert torch.equal(y, expected)


def test_a_black_border_is_the_lowest_pixel() -> None:
    x, low = torch.randn(2, 3, 6, 5), torch.tensor([-2.0, -3.0, -4.0]).view(3, 1, 1)
    augmentation = Augmentation(2, "black", True)
    with pytest.raises(ValueError, match="low must be the lowest valid pixel"):
        augmentation.draw(1, (6, 5), torch.Generator())
    found = augmentation.draw(20, (6, 5), torch.Generator().manual_seed(0), low=low)
    assert found.shift is not None and found.flip is not None
    for step, ((down, right), flipped) in enumerate(zip(found.shift.tolist(), found.flip.tolist(), strict=True)):
        padded = low.expand(2, 3, 10, 9).clone()
        padded[:, :, 2 + down : 8 + down, 2 + right : 7 + right] = x
        expected = padded[:, :, 2:8, 2:7]
        y = augmentation(x, found, step)
        assert torch.allclose(y, expected.flip(3) if flipped else expected, atol=1e-6)


def test_what_a_rotation_leaves_bare_is_black_too() -> None:
    augmentation, low = Augmentation(border="black", rotate=90.0), torch.tensor([-2.0]).view(1, 1, 1)
    eighth = augmentation._affine(torch.tensor([[0.75, 0, 0, 0.5, 0.5]]), (9, 9))
    y = augmentation(torch.ones(1, 1, 9, 9), Draws(None, None, eighth, low), 0)[0, 0]
    assert float(y[0, 0]) == -2 and float(y[4, 4]) == pytest.approx(1)


def test_rotation_by_a_right_angle() -> None:
    x = torch.randn(2, 1, 7, 7)
    augmentation = Augmentation(rotate=90.0)
    theta = augmentation._affine(torch.tensor([[1.0, 0, 0, 0.5, 0.5], [0.5, 0, 0, 0.5, 0.5]]), (7, 7))
    quarter, none = (augmentation(x, draws(affine=theta), i) for i in range(2))
    assert torch.allclose(quarter, x.rot90(1, (2, 3)), atol=1e-5)
    assert torch.allclose(none, x, atol=1e-5)


def test_crop_stays_inside_the_image() -> None:
    augmentation = Augmentation(crop=(0.5, 0.9))
    found = augmentation.draw(500, (16, 24), torch.Generator().manual_seed(0))
    assert found.affine is not None
    reach = found.affine[:, :, :2].abs().sum(2) + found.affine[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5
    constant = torch.ones(1, 1, 16, 24)
    assert all(torch.allclose(augmentation(constant, found, i)[..., 1:-1, 1:-1], torch.tensor(1.0)) for i in range(50))


def test_augmentation_is_differentiable() -> None:
    augmentation = Augmentation(1, "zero", True, 10.0, (0.8, 1.0))
    found = augmentation.draw(3, (6, 6), torch.Generator().manual_seed(0))
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: augmentation(t, found, 1), x)
