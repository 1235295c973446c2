"""Random images: range, repeatability, and the statistics of each source."""

import math

import pytest
import torch

from exml_fast.data import SOURCES, DeadLeaves, InputSpec, NaturalFields, Noise, PenStrokes

GRAY = InputSpec(1, (32, 32), (0.1307,), (0.3081,))
COLOUR = InputSpec(3, (20, 28), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def draw(source, count, spec=GRAY, seed=0):
    return source.draw(count, spec, torch.Generator().manual_seed(seed))


def test_noise_is_normal():
    images = draw(Noise(), 50)
    assert images.shape == (50, *GRAY.shape) and torch.equal(images, draw(Noise(), 50))
    assert float(images.mean()) == pytest.approx(0, abs=0.02) and float(images.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("spec", [GRAY, COLOUR], ids=["gray", "colour"])
def test_images_are_valid_pixels_repeatable_and_different(name, spec):
    source = SOURCES[name]()
    images = draw(source, 7, spec)
    pixels = spec.denormalize(images)
    assert images.shape == (7, *spec.shape)
    assert images.dtype == torch.float32
    assert float(pixels.min()) >= -1e-5
    assert float(pixels.max()) <= 1 + 1e-5
    assert torch.equal(images, draw(source, 7, spec))
    assert not torch.equal(images, draw(source, 7, spec, seed=1))
    assert (images[1:] - images[:-1]).abs().amax((1, 2, 3)).min() > 0.1
    assert draw(source, 0, spec).shape == (0, *spec.shape)
    assert source.describe()["source"] == type(source).__name__
    with pytest.raises(ValueError, match="count must not be negative"):
        draw(source, -1)


@pytest.mark.parametrize("name", SOURCES)
def test_more_images_than_one_block(name, monkeypatch):
    monkeypatch.setattr("exml_fast.data.procedural.BLOCK_IMAGES", 4)
    images = draw(SOURCES[name](), 9)
    assert len(images) == 9
    assert not torch.equal(images[0], images[4])


def test_fields_have_the_mean_and_deviation_of_the_normalisation():
    for spec in (GRAY, COLOUR):
        images = draw(NaturalFields(), 600, spec)
        assert images.mean((0, 2, 3)).abs().max() < 0.06
        assert (images.std((0, 2, 3)) - 1).abs().max() < 0.06


def test_fields_for_an_input_without_normalisation_have_default_statistics():
    pixels = draw(NaturalFields(), 300, InputSpec(1, (16, 16), (0.0,), (1.0,)))
    assert float(pixels.mean()) == pytest.approx(0.45, abs=0.03)
    assert float(pixels.std()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_spectrum_of_the_fields(exponent):
    """Log power falls with log frequency at twice the exponent, for fields that are hardly clipped."""
    spec = InputSpec(1, (64, 64), (0.5,), (0.1,))
    fields = draw(NaturalFields((exponent, exponent), detrended=0.0), 400, spec)[:, 0]
    window = torch.hann_window(64, periodic=False)  # the image is a cut-out: its edges do not meet
    power = torch.fft.rfft2(fields * window[:, None] * window).abs().square().mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None])
    chosen = (frequency > 0.08) & (frequency < 0.35)
    x, y = frequency[chosen].log(), power[chosen].log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert slope == pytest.approx(-2 * exponent, abs=0.25)


def test_detrended_fields_have_no_wave_longer_than_the_image():
    halves = []
    for detrended in (0.0, 1.0):
        fields = draw(NaturalFields((2.5, 2.5), detrended=detrended), 200, InputSpec(1, (32, 32), (0.5,), (0.1,)))
        halves.append(float((fields[..., :16].mean((1, 2, 3)) - fields[..., 16:].mean((1, 2, 3))).abs().mean()))
    assert halves[1] < 0.7 * halves[0]


def test_channels_of_a_field_share_the_correlation():
    for correlation in (0.0, 0.9):
        spec = InputSpec(3, (32, 32), (0.5,) * 3, (0.1,) * 3)
        fields = draw(NaturalFields((0.0, 0.0), correlation, detrended=0.0), 100, spec)
        a, b = fields[:, 0].flatten(), fields[:, 1].flatten()
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(correlation, abs=0.03)


def test_leaves_are_flat_and_their_edges_sharp():
    pixels = GRAY.denormalize(draw(DeadLeaves(), 50))
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs()
    assert float((steps < 1e-6).float().mean()) > 0.5
    assert float((steps > 0.1).float().mean()) > 0.05
    bare = GRAY.denormalize(draw(DeadLeaves(disks=1, radii=(0.04, 0.05)), 20))
    assert all(len(image.mul(1e4).round().unique()) <= 2 for image in bare)


def test_strokes_fill_the_box_in_the_middle():
    source = PenStrokes(box=0.5, pen=(0.02, 0.03))
    ink = GRAY.denormalize(draw(source, 200))[:, 0] > 0.3
    for image in ink:
        rows, columns = torch.nonzero(image.any(1))[:, 0], torch.nonzero(image.any(0))[:, 0]
        sides = [int(at.max() - at.min()) + 1 for at in (rows, columns)]
        assert 13 <= max(sides) <= 20  # half of 32, and the pen's width
        assert abs(int(rows.max() + rows.min()) - 31) <= 3
        assert abs(int(columns.max() + columns.min()) - 31) <= 3


def test_a_stroke_of_two_points_is_a_straight_line():
    """All ink lies within the pen's radius of the line between the ends."""
    images = GRAY.denormalize(draw(PenStrokes(points=2, second=0.0), 40))[:, 0]
    for image in images:
        y, x = torch.nonzero(image > 0.2, as_tuple=True)
        at = torch.stack([x, y], 1).float()
        spread = torch.linalg.svdvals(at - at.mean(0)) / math.sqrt(len(at))
        assert spread[1] < 2 < 4 < spread[0]


def test_inverted_strokes_are_the_negative():
    bright, dark = (GRAY.denormalize(draw(PenStrokes(invert=flag), 5)) for flag in (False, True))
    assert torch.allclose(bright, 1 - dark, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NaturalFields(exponents=(2, 1)), "exponents must be two ascending"),
        (lambda: NaturalFields(correlation=1.5), "correlation must be between 0 and 1"),
        (lambda: NaturalFields(detrended=-1), "detrended must be between 0 and 1"),
        (lambda: DeadLeaves(disks=0), "disks must be at least 1"),
        (lambda: DeadLeaves(radii=(0.5, 0.1)), "radii must be two ascending"),
        (lambda: PenStrokes(points=1), "points must be at least 2"),
        (lambda: PenStrokes(second=2), "second must be a probability"),
        (lambda: PenStrokes(box=0), "box must be"),
        (lambda: PenStrokes(pen=(0.1, 0.05)), "pen must be two ascending"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
