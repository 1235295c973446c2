"""Inversion over parameters of images: pen strokes in place of pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec, PenStrokes
from exml_fast.inversion import Recipe, Synthesizer, invert, recipes
from exml_fast.models import create

SPEC = InputSpec(1, (32, 32), (0.1307,), (0.3081,))
WIDE = InputSpec(3, (16, 24), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
STROKES = PenStrokes()
CE = recipes.get("deep_inversion").replace(
    steps=12, lr=0.02, bn=0.0, tv_l2=0.0, l2=0.0, jitter=0, batch_size=50, clip=None
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return create("lenet5", num_classes=10, in_channels=1, batch_norm=batch_norm).eval()


def restated(parameters: Tensor, spec: InputSpec, strokes: PenStrokes) -> Tensor:
    """One drawing, by loops, from the definition of a uniform cubic B-spline and of ink as a sum of Gaussians."""
    height, width = spec.size
    count, side, dots = strokes.points, min(spec.size), max(32, *spec.size)
    control = parameters[: 4 * count].view(2, count, 2)
    drawn, radius = parameters[4 * count : 4 * count + 2], side * parameters[-1].exp()
    ink = parameters.new_zeros(height, width)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    for stroke in range(2):
        knots = [*[control[stroke, 0]] * 2, *control[stroke], *[control[stroke, -1]] * 2]
        points = []
        for at in torch.linspace(0, (len(knots) - 3) * (1 - 1e-6), dots).tolist():
            i, u = int(at), at - int(at)
            a, b, c, d = knots[i : i + 4]
            cubic = (1 - u) ** 3 * a + (3 * u**3 - 6 * u**2 + 4) * b + (1 + 3 * u + 3 * u**2 - 3 * u**3) * c + u**3 * d
            points.append((cubic / 6 + 1) / 2 * torch.tensor([width, height]))
        ways = [(points[k + 1] - points[k]).norm() for k in range(dots - 1)]
        for point, way in zip(points, [*ways, ways[-1]], strict=True):
            distance = (x - point[0]).square() + (y - point[1]).square()
            ink = ink + drawn[stroke] * way / radius * torch.exp(-0.5 * distance / radius**2)
    return spec.normalize(torch.tanh(1.3 * ink).expand(1, spec.channels, height, width))[0]


@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["gray", "wide"])
def test_a_drawing_is_ink_along_b_splines(spec: InputSpec) -> None:
    parameters = STROKES.parameters(4, spec, seeded())
    images = STROKES.render(parameters, spec)
    torch.testing.assert_close(images, STROKES.draw(4, spec, seeded()))
    for row, image in zip(parameters, images, strict=True):
        torch.testing.assert_close(image, restated(row, spec, STROKES), atol=2e-3, rtol=1e-3)
    dark = PenStrokes(invert=True).render(parameters, spec)
    torch.testing.assert_close(spec.denormalize(dark), 1 - spec.denormalize(images), atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_but_which_strokes_are_drawn() -> None:
    strokes = PenStrokes(points=3, second=1.0)
    parameters = strokes.parameters(2, WIDE, seeded(1)).double().requires_grad_()
    free, held = torch.ones(15, dtype=torch.bool), parameters.detach().clone()
    free[12:14] = False

    def drawing(moved: Tensor) -> Tensor:
        return strokes.render(torch.where(free, moved, held), WIDE)

    assert torch.autograd.gradcheck(drawing, parameters)
    (gradient,) = torch.autograd.grad(strokes.render(parameters, WIDE).square().sum(), parameters)
    assert (gradient[:, 12:14] == 0).all() and (gradient[:, free] != 0).all()


def test_steps_are_those_of_adam_on_the_parameters_within_their_limits() -> None:
    model, labels = network(), torch.arange(6)
    synthesizer = Synthesizer(model, SPEC, CE, parametrisation=STROKES, precision="float32")
    start = STROKES.parameters(6, SPEC, seeded(3))
    result = synthesizer.run(labels, start=start)
    z = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=CE.optimisation.lr)
    low, high = STROKES.limits(SPEC)
    assert low.shape == z[0].shape and (low <= high).all()
    for _ in range(CE.optimisation.steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(STROKES.render(z, SPEC)), labels, reduction="sum").backward()
        optimiser.step()
        with torch.no_grad():
            z.clamp_(low, high)
    torch.testing.assert_close(result.images, STROKES.render(z, SPEC).detach(), atol=2e-2, rtol=1e-2)
    assert result.summary["parametrisation"] == STROKES.describe()
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_statistics_augmentation_and_an_early_stop_work_on_drawings() -> None:
    recipe = CE.replace(bn=1.0, jitter=2, border="black", stop_confidence=0.2, steps=60, tv_l2=1e-4)
    result = invert(network(True), [1, 4], per_class=5, recipe=recipe, spec=SPEC, parametrisation=STROKES)
    assert len(result) == 10 and result.history["bn"][-1] < result.history["bn"][0]
    pixels = result.pixels()
    assert pixels.min() >= 0 and pixels.max() <= 1 and (pixels.amax((1, 2, 3)) > 0.5).all()


def test_random_drawings_depend_on_the_seed_alone() -> None:
    still = CE.replace(steps=1, lr=1e-30)
    runs = [
        Synthesizer(network(), SPEC, still.replace(batch_size=size), parametrisation=STROKES).run([0, 1, 2], seed=seed)
        for size, seed in ((50, 0), (2, 0), (50, 1))
    ]
    torch.testing.assert_close(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)


def test_an_interrupted_run_over_parameters_continues_bit_for_bit(tmp_path: Path) -> None:
    recipe, labels = CE.replace(batch_size=4, steps=10), torch.arange(6)

    def synthesizer(strokes: PenStrokes = STROKES) -> Synthesizer:
        return Synthesizer(network(), SPEC, recipe, parametrisation=strokes, block=5)

    expected, calls = synthesizer().run(labels, seed=2), 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesizer().run(labels, seed=2, checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="another run"):
        synthesizer(PenStrokes(second=0.5)).run(labels, seed=2, checkpoint_dir=tmp_path)
    assert torch.equal(synthesizer().run(labels, seed=2, checkpoint_dir=tmp_path).images, expected.images)


def test_the_usual_recipe_is_that_of_drawings() -> None:
    large = InputSpec(1, (128, 128), (0.1307,), (0.3081,))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10)).eval()
    result = invert(model, [3], per_class=2, spec=large, parametrisation=STROKES, steps=2)
    assert result.summary["recipe"]["name"] == "drawn_inversion"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_drawings_in_a_cuda_graph() -> None:
    labels, start = torch.arange(6), STROKES.parameters(6, SPEC, seeded(3))
    found = [
        Synthesizer(network(), SPEC, CE, parametrisation=STROKES, precision="float32", device=device).run(
            labels, start=start
        )
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(found[0].images, found[1].images, atol=2e-2, rtol=1e-2)


def test_what_does_not_go_together_is_said() -> None:
    def make(recipe: Recipe) -> Synthesizer:
        return Synthesizer(network(), SPEC, recipe, parametrisation=STROKES)

    with pytest.raises(ValueError, match="coarse_steps=\\(\\) with a parametrisation"):
        make(CE.replace(coarse_steps=(3,)))
    with pytest.raises(ValueError, match=r"parameters \(2, 27\), got torch.float32 \(2, 1, 32, 32\)"):
        make(CE).run([0, 1], start=torch.zeros(2, 1, 32, 32))
