"""Herding, collages and the memory of exemplars."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exml_fast.continual.class_incremental import ExemplarMemory, collages, herded
from exml_fast.continual.class_incremental.exemplars import COLLAGES


def features_of(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(features: Tensor, count: int) -> list[int]:
    """Rebuffi 2017, Alg. 4, without an image twice."""
    phi = [x / x.norm() for x in features]
    mu, chosen = torch.stack(phi).mean(0), list[int]()
    for k in range(1, min(count, len(phi)) + 1):
        total = sum((phi[n] for n in chosen), torch.zeros_like(mu))
        distances = {n: float((mu - (phi[n] + total) / k).norm()) for n in range(len(phi)) if n not in chosen}
        chosen.append(min(distances, key=lambda n: distances[n]))
    return chosen


SIZES = (st.integers(1, 12), st.integers(1, 5), st.integers(1, 14), st.integers(0, 999))


@given(*SIZES)
def test_herding_is_that_by_hand(images: int, width: int, count: int, seed: int) -> None:
    features = features_of(images, width + 1, seed)
    assert herded(features, count).tolist() == by_hand(features, count)


@given(*SIZES)
def test_herding_orders_all_images_and_fewer_are_its_beginning(images: int, width: int, count: int, seed: int) -> None:
    features = features_of(images, width, seed)
    whole = herded(features, images)
    assert sorted(whole.tolist()) == list(range(images))
    assert torch.equal(herded(features, count), whole[:count])
    assert torch.equal(herded(features * 7, count), whole[:count]), "features are scaled to norm 1"


def test_the_mean_of_herded_images_is_nearer_than_that_of_random_ones() -> None:
    features = F.normalize(features_of(200, 8, 0), dim=1)
    mean = features.mean(0)
    random = [float((features[torch.randperm(200)[:10]].mean(0) - mean).norm()) for _ in range(50)]
    assert float((features[herded(features, 10)].mean(0) - mean).norm()) < min(random)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4, 8]), st.sampled_from([2, 6]), st.integers(0, 99))
def test_collages_have_the_quarters_of_four_images(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4 * count, channels, height, width), dtype=torch.uint8, generator=generator)
    h, w = height // 2, width // 2
    for kind in COLLAGES:
        made = collages(images, kind, generator)
        assert made.shape == (count, channels, height, width) and made.dtype == torch.uint8
        for n, image in enumerate(images):
            row, column = divmod(n % 4, 2)
            quarter = made[n // 4, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
            patches = [image[:, y : y + h, x : x + w] for y in range(h + 1) for x in range(w + 1)]
            if kind == "random-crop":
                assert any(torch.equal(quarter, patch) for patch in patches)
            elif kind == "center-crop":
                assert torch.equal(quarter, image[:, h // 2 : h // 2 + h, w // 2 : w // 2 + w])
            else:
                blocks = image.double().unflatten(2, (w, 2)).unflatten(1, (h, 2)).mean((2, 4))
                assert (quarter.double() - blocks).abs().max() <= 0.5


def test_random_crops_are_of_different_places_and_drawn_from_the_generator() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(40, -1, -1, -1)
    first, again = (collages(image, "random-crop", torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and len(first[:, 0, 0, 0].unique()) > 3


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [((4, 1, 5, 4), "resized", "even H and W"), ((3, 1, 4, 4), "resized", r"\(4 M, C, H, W\)"),
     ((4, 4, 4), "resized", r"\(4 M, C, H, W\)"), ((4, 1, 4, 4), "crop", "kind must be one of resized, ")],
)  # fmt: skip
def test_bad_collages_are_named(shape: tuple[int, ...], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collages(torch.zeros(shape, dtype=torch.uint8), kind, torch.Generator())


def test_the_memory_keeps_the_most_important_images_of_each_class() -> None:
    memory = ExemplarMemory(10)
    assert memory.split() is None and len(memory) == 0 and memory.nbytes == 0
    images = torch.randint(0, 256, (3, 5, 1, 4, 4), dtype=torch.uint8)
    for unit in range(3):
        quota = memory.quota(unit + 1)
        memory.reduce(quota)
        memory.add(images[unit, :quota])
    assert memory.classes == 3 and len(memory) == 9 and memory.nbytes == 9 * 16
    split = memory.split()
    assert split is not None and split.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(split.images, images[:, :3].flatten(0, 1)) and torch.equal(memory.of_class(1), images[1, :3])
    images[0] = 0
    assert memory.of_class(0).any(), "the memory holds copies"
    other = ExemplarMemory(10)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.split().images, memory.split().images)  # type: ignore[union-attr]


def test_bad_exemplars_are_named() -> None:
    memory = ExemplarMemory(3)
    with pytest.raises(ValueError, match="total must be at least the number of classes, 4, got 3"):
        memory.quota(4)
    for images in (torch.zeros(2, 1, 4, 4), torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(4).byte()):
        with pytest.raises(ValueError, match="images must be uint8"):
            memory.add(images)
    with pytest.raises(ValueError, match="total must be a positive integer, got 0"):
        ExemplarMemory(0)
