"""Images that are optimised as natural ones vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from exml_fast import InputSpec, Synthesizer, invert, recipes
from exml_fast.inversion.spectrum import NaturalSpectrum
from exml_fast.inversion.stepper import Stepper
from exml_fast.ops import reference

SPEC = InputSpec(3, (12, 10), (0.5,) * 3, (0.25,) * 3)


@given(
    exponent=st.floats(0, 2.5), correlation=st.floats(0, 0.99), channels=st.integers(1, 4), height=st.integers(1, 13),
    width=st.integers(1, 13),
)  # fmt: skip
def test_the_map_is_linear_symmetric_and_keeps_the_variance_of_noise(
    exponent: float, correlation: float, channels: int, height: int, width: int
) -> None:
    shape = (channels, height, width)
    spectrum = NaturalSpectrum(exponent, correlation, shape)
    count = channels * height * width
    matrix = spectrum(torch.eye(count).view(count, *shape)).view(count, count)
    assert torch.allclose(matrix, matrix.T, atol=1e-5)
    assert torch.linalg.eigvalsh(matrix.double()).min() > -1e-5
    variance = (matrix @ matrix.T).diagonal()  # of P z, z white
    assert torch.allclose(variance, torch.ones(count), atol=1e-4)
    x, y = torch.randn(2, 2, *shape)
    assert torch.allclose(spectrum(x - 2 * y), spectrum(x) - 2 * spectrum(y), atol=1e-4)


def test_amplitudes_and_correlations_are_those_asked_for() -> None:
    torch.manual_seed(0)
    noise = NaturalSpectrum(1.5, 0.8, (3, 64, 64))(torch.randn(200, 3, 64, 64))
    assert torch.allclose(torch.corrcoef(noise.transpose(0, 1).flatten(1)), 0.8 + 0.2 * torch.eye(3), atol=0.02)
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    for u, v in ((1, 0), (4, 0), (0, 8), (6, 8), (32, 0)):
        assert float((power[u, v] / power[0, 2]).sqrt()) == pytest.approx(((u * u + v * v) ** 0.5 / 2) ** -1.5, rel=0.1)
    plain = torch.randn(2, 3, 8, 8)
    assert torch.allclose(NaturalSpectrum(0.0, 0.0, (3, 8, 8))(plain), plain, atol=1e-6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(480, 4)).eval()


RECIPE = recipes.new(
    "natural", steps=6, batch_size=5, lr=0.1, bn=0.5, tv_l2=0.01, decay="cosine", spectrum=1.0, correlation=0.5,
    init_scale=0.5,
)  # fmt: skip


def test_it_is_adam_on_the_coordinates_that_the_map_makes_images_of(device: str) -> None:
    """Plain Adam on z, through x = P z, with the objective written out; on CUDA the last steps are a graph's."""
    model = network()
    map_ = NaturalSpectrum(1.0, 0.5, SPEC.shape)
    z = torch.randn(5, *SPEC.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    start = map_(z.detach())
    labels = torch.tensor([0, 1, 2, 3, 0])
    optimizer = torch.optim.Adam([z], lr=0.1)
    for rate in RECIPE.optimisation.learning_rates():
        x = map_(z)
        features = model[0](x)
        bn = reference.bn_match(features, model[1].running_mean, model[1].running_var)
        ce = nn.functional.cross_entropy(model(x), labels, reduction="sum")
        loss = ce + 5 * 0.5 * bn + 0.01 * reference.image_prior(x, per_image=True)[1].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    found = Synthesizer(model, SPEC, RECIPE, device=device, precision="float32").run(labels, start=start)
    order = torch.argsort(labels, stable=True)
    assert torch.allclose(found.images[order], map_(z).detach()[order], atol=2e-4)


def test_it_starts_as_noise_of_that_spectrum_and_is_clipped() -> None:
    still = RECIPE.replace(steps=1, lr=1e-12)
    started = invert(network(), None, per_class=50, recipe=still, spec=SPEC).images
    pixels = invert(
        network(), None, per_class=50, recipe=still.replace(spectrum=0.0, correlation=0.0, init_scale=1.0), spec=SPEC
    ).images
    assert torch.allclose(started, 0.5 * NaturalSpectrum(1.0, 0.5, SPEC.shape)(pixels), atol=1e-5)
    far = RECIPE.replace(steps=5, lr=2.0, clip="valid")
    low, high = SPEC.bounds("cpu")
    images: Tensor = invert(network(), None, per_class=2, recipe=far, spec=SPEC).images
    assert bool((images >= low).all() and (images <= high).all() and (images == high).any())


def test_stopped_images_stay() -> None:
    x, moments = torch.randn(2, *SPEC.shape), (torch.rand(2, *SPEC.shape), torch.rand(2, *SPEC.shape))
    before = x.clone(), moments[0].clone(), moments[1].clone()
    active, spectrum = torch.tensor([True, False]), NaturalSpectrum(1.0, 0.5, SPEC.shape)

    def gradient(x: Tensor, _index: Tensor) -> tuple[Tensor, Tensor]:
        return x.clone(), torch.zeros(1)

    Stepper(gradient, x, moments, active, RECIPE.optimisation, (None, None), 0, 3, spectrum).run(3)
    for old, new in zip(before, (x, *moments), strict=True):
        assert torch.equal(new[1], old[1]) and not torch.equal(new[0], old[0])


def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path) -> None:
    recipe = RECIPE.replace(steps=10, coarse_steps=(10,), jitter=2, border="black", crop=(0.8, 1.0), clip="valid")
    spec = InputSpec(3, (24, 20), (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    ).eval()
    expected = Synthesizer(pooled, spec, recipe, block=5).run([0, 1, 2])
    for at in (1, 3):  # of the small images, of the large ones
        calls = 0

        def interrupt(*_: object, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Synthesizer(pooled, spec, recipe, block=5).run([0, 1, 2], checkpoint_dir=tmp_path, progress=interrupt)
        assert list(tmp_path.iterdir())
        again = Synthesizer(pooled, spec, recipe, block=5).run([0, 1, 2], checkpoint_dir=tmp_path)
        assert torch.equal(again.images, expected.images)


@pytest.mark.parametrize(
    "change", [{"spectrum": -1.0}, {"spectrum": 4.5}, {"correlation": 1.0}, {"init_scale": float("nan")}]
)
def test_errors_name_the_field(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        RECIPE.replace(**change)
