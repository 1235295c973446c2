"""Sources of batches: every image once an epoch; images drawn anew; mixtures; states that resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_training import SMALL, assert_resumes, network
from torch import Tensor, nn

from exml_fast.data import Augmentation, Noise
from exml_fast.training import (
    Batch,
    DrawnImages,
    ImageBatches,
    Mixture,
    Training,
    mixed_cross_entropy,
    network_input,
    train,
    unlabelled_batches,
)

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_without_labels_are_given_or_drawn_anew() -> None:
    images, config = torch.randn(6, *SMALL.shape), Training(steps=4, batch_size=3)
    given = unlabelled_batches(images, config, SMALL, seeded(), CPU)
    epoch = [batch for step in range(2) for batch in given.block(step, 1)]
    assert all(batch.labels is None for batch in epoch)
    seen = torch.cat([batch.images for batch in epoch])
    assert {tuple(image.flatten().tolist()) for image in seen} == {tuple(i.flatten().tolist()) for i in images}
    first, second = unlabelled_batches(Noise(), config, SMALL, seeded(), CPU).block(0, 2)
    assert first.labels is None and first.images.shape == (3, *SMALL.shape)
    assert not torch.equal(first.images, second.images)


def patterns(count: int, seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Network input in which class c lights quadrant c."""
    labels = torch.arange(count) % 4
    images = noise * torch.randn(count, *SMALL.shape, generator=seeded(seed)) - 1
    for n, c in enumerate(labels.tolist()):
        images[n, :, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] += 2
    return images, labels


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A generator: patterns of random classes."""
    images, labels = patterns(4, 7)
    chosen = torch.randint(4, (count,), generator=generator)
    return images[chosen] + 0.3 * torch.randn(count, *SMALL.shape, generator=generator), labels[chosen]


def test_every_image_is_seen_once_an_epoch() -> None:
    images = torch.arange(11.0)[:, None, None, None].expand(11, *SMALL.shape)
    source = ImageBatches(images, torch.arange(11), Training(batch_size=4), SMALL, seeded(), CPU)
    found = [batch for at in (0, 3) for batch in source.block(at, 3)]
    for batch in found:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.rows) and torch.equal(batch.labels, batch.rows)
    epochs = [torch.cat([batch.rows for batch in found[k : k + 2]]) for k in (0, 2, 4)]
    assert all(len(epoch.unique()) == 8 for epoch in epochs) and not torch.equal(epochs[0], epochs[1])
    small = ImageBatches(images[:3], None, Training(batch_size=4), SMALL, seeded(), CPU)
    assert all(sorted(b.rows.tolist()) == [0, 1, 2] and b.labels is None for b in small.block(0, 5))


def test_images_are_prepared_batch_by_batch() -> None:
    pixels = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    source = ImageBatches(pixels, None, Training(batch_size=4), SMALL, seeded(), CPU, prepare=SMALL.prepare)
    batch = next(source.block(0, 1))
    torch.testing.assert_close(batch.images, SMALL.prepare(pixels[batch.rows]))


def sources(config: Training) -> dict[str, Any]:
    real, synthetic = patterns(24, 0), patterns(16, 1)
    half = config.replace(batch_size=config.batch_size // 2)
    return {
        "real": lambda: ImageBatches(*real, config, SMALL, seeded(1), CPU),
        "drawn": lambda: DrawnImages(draw, config, SMALL, seeded(2), CPU),
        "mixture": lambda: Mixture(
            [
                ImageBatches(*real, config, SMALL, seeded(1), CPU),
                ImageBatches(*synthetic, half.replace(mixup=0.5), SMALL, seeded(3), CPU),
                DrawnImages(draw, half.replace(augmentation=Augmentation(1)), SMALL, seeded(2), CPU),
            ]
        ),
    }


@pytest.mark.parametrize("kind", ["real", "drawn", "mixture"])
def test_a_state_continues_with_the_same_batches(kind: str) -> None:
    make = sources(Training(batch_size=6, augmentation=Augmentation(2, rotation=20), mixup=0.3))[kind]
    whole = list(make().block(0, 9))
    first, second = make(), make()
    list(first.block(0, 5))
    kept = first.state_dict()
    list(first.block(5, 3))  # what is kept does not change
    second.load_state_dict(kept)
    for expected, found in zip(whole[5:], second.block(5, 4), strict=True):
        for a, b in zip(expected, found, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("kind", ["real", "drawn", "mixture"])
def test_a_network_learns_from_every_source_and_resumes(kind: str, tmp_path: Path) -> None:
    """From real images, from a generator, and from real, synthetic and generated images together."""
    config = Training(steps=120, batch_size=8, lr=0.01)
    make, sizes = sources(config)[kind], set[int]()

    def loss(learner: nn.Module, batch: Batch) -> Tensor:
        assert batch.labels is not None
        sizes.add(len(batch.images))
        return mixed_cross_entropy(learner(batch.images), batch.labels, batch.share, batch.others)

    def run(**options: Any) -> Any:
        return train(network(), make(), loss, config, **options)

    assert_resumes(run, tmp_path / "run", 100)
    done = run()
    assert sizes == {16 if kind == "mixture" else 8} and done.history["loss"][-1] < 0.6 * done.history["loss"][0]
    images, labels = patterns(80, 5)
    assert float((done.model(images).argmax(1) == labels).double().mean()) > 0.8


def test_a_mixture_keeps_each_source_s_own_mixup() -> None:
    """Rows before are those of the same source; unmixed images have a share of 1."""
    a, b = patterns(10, 0), patterns(12, 1)
    parts = [
        ImageBatches(*a, Training(batch_size=4, mixup=1.0), SMALL, seeded(1), CPU),
        ImageBatches(*b, Training(batch_size=6), SMALL, seeded(2), CPU),
        ImageBatches(*b, Training(batch_size=3, mixup=0.5), SMALL, seeded(3), CPU),
    ]
    for batch in Mixture(parts).block(0, 5):
        assert batch.rows is not None and batch.share is not None and batch.labels is not None
        at = 0
        for (images, labels), size, mixed in ((a, 4, True), (b, 6, False), (b, 3, True)):
            here = slice(at, at + size)
            rows, share = batch.rows[here], batch.share[here]
            before = rows.roll(1) if mixed else rows
            weight = share[:, None, None, None]
            torch.testing.assert_close(batch.images[here], weight * images[rows] + (1 - weight) * images[before])
            assert torch.equal(batch.labels[here], labels[rows]) and torch.equal(batch.others[here], labels[before])
            assert bool((share == 1).all()) is not mixed
            at += size
        logits = torch.randn(13, 4)
        soft = batch.share[:, None] * F.one_hot(batch.labels, 4) + (1 - batch.share)[:, None] * F.one_hot(
            batch.others, 4
        )
        found = mixed_cross_entropy(logits, batch.labels, batch.share, batch.others)
        torch.testing.assert_close(found, F.cross_entropy(logits, soft))
    plain = next(Mixture(parts[1:2]).block(0, 1))
    assert plain.share is None and plain.others is None


def test_no_source_of_a_mixture_runs_ahead() -> None:
    """Where one source gives short blocks, the others lose no image."""

    class Short:
        def block(self, step: int, limit: int) -> Iterator[Batch]:
            images, labels = patterns(2, step)
            for _ in range(min(limit, 2)):
                yield Batch(images, labels)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    images, labels = patterns(12, 0)
    seen = list[int]()
    mixture = Mixture([ImageBatches(images, labels, Training(batch_size=2), SMALL, seeded(), CPU), Short()])
    while len(seen) < 12:
        for batch in mixture.block(len(seen) // 2, 5):
            seen += [int((images == image).flatten(1).all(1).nonzero()) for image in batch.images[:2]]
            assert batch.rows is None and batch.labels is not None and len(batch.labels) == 4
            if len(seen) == 12:
                break
    assert sorted(seen) == list(range(12))


def test_labels_are_given_if_all_sources_have_them() -> None:
    images, labels = patterns(8, 0)
    config = Training(batch_size=4, mixup=1.0)
    mixture = Mixture([ImageBatches(images, known, config, SMALL, seeded(), CPU) for known in (labels, None)])
    batch = next(mixture.block(0, 1))
    assert batch.labels is None and batch.others is None and batch.share is not None and len(batch.share) == 8
    with pytest.raises(ValueError, match="sources must hold at least one source"):
        Mixture([])


def test_network_input_names_what_does_not_fit() -> None:
    images = torch.randn(2, *SMALL.shape)
    found, spec = network_input(images.double(), SMALL)
    assert found.dtype == torch.float32 and spec is SMALL and torch.equal(found.double(), images.double())
    for given, spec_given, said in (
        (images, None, "spec must be given where targets are a tensor"),
        ([1], SMALL, "targets must be a tensor, a data set or the result of exml_fast.invert, got list"),
        (images[0], SMALL, r"targets must be \(N, 1, 8, 8\), got \(1, 8, 8\)"),
        (images[:0], SMALL, r"targets must be \(N, 1, 8, 8\), got \(0, 1, 8, 8\)"),
        (images.long(), SMALL, "targets must be floating point, network input and no bytes, got torch.int64"),
        (images / 0, SMALL, "targets hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=said):
            network_input(given, spec_given, "targets")  # type: ignore[arg-type]


def test_each_image_has_one_label() -> None:
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(4, 2), torch.tensor(1)):
        with pytest.raises(ValueError, match=r"labels must be \(4,\), one for each image, got"):
            ImageBatches(torch.zeros(4, *SMALL.shape), labels, Training(), SMALL, seeded(), CPU)


def test_pixels_in_the_place_of_normalised_images_are_noticed() -> None:
    with pytest.warns(UserWarning, match=r"images reach 255, the largest input of spec is"):
        network_input(torch.full((1, *SMALL.shape), 255.0), SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network_input(torch.randn(64, *SMALL.shape), SMALL)
