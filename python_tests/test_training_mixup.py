"""Mixtures of images against their formula, and the shares against their distribution."""

from __future__ import annotations

import pytest
import torch
from small_training import SMALL, network

from exml_fast.data import Split
from exml_fast.training import ImageBatches, Training, blended, mixed, mixup, train_classifier
from exml_fast.training.mixup import boxes, mixup_shares


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixup_is_its_formula() -> None:
    x, order = torch.randn(3, 1, 2, 2), torch.tensor([2, 0, 1])
    assert torch.allclose(mixup(x, torch.tensor(0.3), order), 0.3 * x + 0.7 * x[order])
    share = torch.rand(3)
    mixed = mixup(x, share[:, None, None, None], order)
    for n in range(3):
        torch.testing.assert_close(mixed[n], share[n] * x[n] + (1 - share[n]) * x[order[n]])


@pytest.mark.parametrize("a", [0.2, 1.0, 4.0])
def test_shares_are_from_beta(a: float) -> None:
    shares = mixup_shares(20000, a, seeded())
    assert shares.shape == (20000,) and shares.min() >= 0 and shares.max() <= 1
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.05)  # of Beta(a, a)


def test_each_image_is_mixed_with_the_one_before() -> None:
    images = torch.randn(5, 1, 3, 3)
    mixed, share = blended(images, 1.0, seeded(3))
    again, same = blended(images, 1.0, seeded(3))
    assert torch.equal(mixed, again) and torch.equal(share, same) and len(share.unique()) == 5
    for n in range(5):
        torch.testing.assert_close(mixed[n], share[n] * images[n] + (1 - share[n]) * images[n - 1])


def test_batches_say_how_their_images_are_mixed() -> None:
    images, labels = torch.randn(12, *SMALL.shape), torch.arange(12) % 4
    config = Training(batch_size=5, mixup=0.5)
    batches = ImageBatches(images, labels, config, SMALL, seeded(), torch.device("cpu"))
    for batch in batches.block(0, 6):
        assert batch.share is not None and batch.rows is not None and batch.others is not None
        before = batch.rows.roll(1)
        share = batch.share[:, None, None, None]
        torch.testing.assert_close(batch.images, share * images[batch.rows] + (1 - share) * images[before])
        assert torch.equal(batch.labels, labels[batch.rows]) and torch.equal(batch.others, labels[before])
    plain = next(
        ImageBatches(images, labels, config.replace(mixup=0), SMALL, seeded(), torch.device("cpu")).block(0, 1)
    )
    assert plain.share is None and plain.others is None and torch.equal(plain.images, images[plain.rows])


def test_a_classifier_learns_the_shares_of_both_labels() -> None:
    split = Split(torch.rand(8, *SMALL.shape), torch.arange(8) % 4)
    model = network().eval()
    model[4].p = 0.0
    config = Training(steps=1, batch_size=8, lr=1e-12, mixup=1.0)
    found = train_classifier(model, split, SMALL, config=config, seed=4).history["loss"]
    batches = ImageBatches(SMALL.prepare(split.images), split.labels, config, SMALL, seeded(4), torch.device("cpu"))
    batch = next(batches.block(0, 1))
    assert batch.labels is not None and batch.share is not None
    one_hot = torch.eye(4)[batch.labels]
    target = batch.share[:, None] * one_hot + (1 - batch.share)[:, None] * one_hot.roll(1, 0)
    expected = torch.nn.functional.cross_entropy(model.train()(batch.images), target)
    assert found == pytest.approx([expected.item()], rel=1e-5)


def test_boxes_are_rectangles_of_the_wanted_area() -> None:
    shares = mixup_shares(400, 1.0, seeded())
    masks = boxes(shares, (24, 36), seeded(1))
    assert masks.shape == (400, 1, 24, 36) and set(masks.unique().tolist()) == {0.0, 1.0}
    inside = 0
    for share, mask in zip(shares, masks[:, 0], strict=True):
        rows, columns = torch.where(mask == 0)
        if not len(rows):
            continue
        height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
        assert int((mask == 0).sum()) == height * width  # one full rectangle
        wanted = [length * float(1 - share) ** 0.5 for length in (24, 36)]
        assert height <= wanted[0] + 1 and width <= wanted[1] + 1
        if rows.min() > 0 and rows.max() < 23 and columns.min() > 0 and columns.max() < 35:  # not cut off
            inside += 1
            assert height >= wanted[0] - 1 and width >= wanted[1] - 1
    assert inside > 30


def test_cutmix_takes_each_pixel_from_one_of_two_images() -> None:
    images = torch.randn(64, 2, 8, 8)
    cut, share = mixed(images, 0.0, 1.0, seeded(3))
    own, other = cut == images, cut == images.roll(1, 0)
    assert (own | other).all()
    torch.testing.assert_close(share, own.float().mean((1, 2, 3)))
    assert torch.equal(cut, mixed(images, 0.0, 1.0, seeded(3))[0])


def test_mixup_alone_is_blended_and_both_share_the_images() -> None:
    images = torch.randn(200, 1, 8, 8)
    for found, expected in zip(mixed(images, 0.4, 0.0, seeded(3)), blended(images, 0.4, seeded(3)), strict=True):
        assert torch.equal(found, expected)
    both, share = mixed(images, 1.0, 1.0, seeded(3))
    own, other = both == images, both == images.roll(1, 0)
    cut = (own | other).flatten(1).all(1)
    assert 70 < int(cut.sum()) < 130
    smooth = share[:, None, None, None] * images + (1 - share[:, None, None, None]) * images.roll(1, 0)
    torch.testing.assert_close(both[~cut], smooth[~cut])


def test_batches_of_cutmix_have_the_labels_of_their_pixels() -> None:
    labels = torch.arange(12) % 4
    images = labels[:, None, None, None].expand(12, *SMALL.shape).float()
    batches = ImageBatches(images, labels, Training(batch_size=6, cutmix=1.0), SMALL, seeded(), torch.device("cpu"))
    for batch in batches.block(0, 6):
        assert batch.share is not None and batch.labels is not None and batch.others is not None
        expected = batch.share * batch.labels + (1 - batch.share) * batch.others
        torch.testing.assert_close(batch.images.mean((1, 2, 3)), expected)
