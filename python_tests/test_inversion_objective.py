"""Every term against its formula, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exml_fast.engine.statistics import LayerStatistics
from exml_fast.inversion import recipes
from exml_fast.inversion.objective import (
    L2,
    Blur,
    Competition,
    CrossEntropy,
    Objective,
    Prior,
    StatisticsDistance,
    Step,
    TotalVariation,
)
from exml_fast.inversion.recipes import Recipe

N, K = 5, 4


def objective_of(recipe: Recipe, bn: bool) -> Objective:
    matching = recipe.matching if bn else None
    return Objective.of(recipe.classification, recipe.priors, matching, recipe.competition)


@pytest.fixture
def step() -> Step:
    images = torch.randn(N, 3, 8, 7, dtype=torch.float64, requires_grad=True)
    layers = [
        LayerStatistics(name, x.mean(dims), x.var(dims, correction=0), torch.randn(3).double(), torch.rand(3).double())
        for name, x, dims in (("a", images * 2 + 1, (0, 2, 3)), ("b", images.mean((2, 3)), (0,)))
    ]
    weight = torch.randn(3 * 8 * 7, K, dtype=torch.float64)
    return Step(images, images.roll(1, 3), images.flatten(1) @ weight / 10, torch.tensor([0, 1, 2, 3, 0]), layers)


def test_cross_entropy_of_classes(step: Step) -> None:
    z = step.logits / 2.0
    expected = torch.stack([z[n].exp().sum().log() - z[n, step.targets[n]] for n in range(N)])
    assert torch.allclose(CrossEntropy(1.0, 2.0)(step), expected)


def test_cross_entropy_of_soft_targets(step: Step) -> None:
    step.targets = torch.rand(N, K, dtype=torch.float64).softmax(1)
    z = step.logits / 20.0
    p = z.exp() / z.exp().sum(1, keepdim=True)
    assert torch.allclose(CrossEntropy(1.0, 20.0)(step), -(step.targets * p.log()).sum(1))


@pytest.mark.parametrize("distance", ["l2", "squared", "gaussian_kl"])
@pytest.mark.parametrize("moment", ["var", "std"])
def test_bn_statistics(step: Step, distance: str, moment: str) -> None:
    expected = []
    for _, m, v, mean, var in step.layers:
        if distance == "gaussian_kl":
            v, var = v + 1e-5, var + 1e-5
            expected.append(((v / var + (m - mean) ** 2 / var - 1 - (v / var).log()) / 2).sum())
            continue
        a, b = (v, var) if moment == "var" else (v**0.5, var**0.5)
        power = 1.0 if distance == "squared" else 0.5
        expected.append(((m - mean) ** 2).sum() ** power + ((a - b) ** 2).sum() ** power)
    assert torch.allclose(StatisticsDistance(1.0, distance, moment)(step), expected[0] + expected[1])
    assert torch.allclose(StatisticsDistance(1.0, distance, moment, 10.0)(step), 10 * expected[0] + expected[1])
    channels = sum(len(layer.mean) for layer in step.layers)
    averaged = StatisticsDistance(1.0, distance, moment, 10.0, average=True)(step)
    assert torch.allclose(averaged * channels, 10 * expected[0] + expected[1])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_competition_is_one_minus_jensen_shannon(step: Step, temperature: float) -> None:
    student = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    step.student_logits = student * 2
    p, q = (step.logits / temperature).softmax(1), (step.student_logits / temperature).softmax(1)
    m = (p + q) / 2
    expected = 1 - ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    value = Competition(1.0, temperature)(step)
    assert torch.allclose(value, expected)
    # Both networks' logits have a gradient: the images reach it through both.
    grads = torch.autograd.grad(value.sum(), (step.images, student), retain_graph=True)
    wanted = torch.autograd.grad(expected.sum(), (step.images, student))
    assert all(torch.allclose(a, b) and a.any() for a, b in zip(grads, wanted, strict=True))
    with pytest.raises(ValueError, match="needs a student"):
        Competition(1.0)(Step(step.images, step.inputs, step.logits, step.targets))


def differences(x: Tensor) -> list[Tensor]:
    return [
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    ]


def test_dead_channels_are_matched_too(step: Step) -> None:
    name, mean, var, _, _ = step.layers[0]
    dead = torch.tensor([0.0, 1, 1], dtype=torch.float64)
    step.layers = [LayerStatistics(name, mean * dead, var * dead, torch.ones(3).double() * dead, dead)]
    value = StatisticsDistance(1.0, "gaussian_kl")(step)
    (gradient,) = torch.autograd.grad(value, step.images)
    assert value.isfinite() and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_total_variation(step: Step, per_image: bool, augmented: bool) -> None:
    x = step.inputs if augmented else step.images
    parts = x.split(1) if per_image else [x]
    l1 = torch.stack([sum(d.abs().mean() for d in differences(p)) for p in parts])  # type: ignore[misc]
    l2 = torch.stack([sum((d**2).sum().sqrt() for d in differences(p)) for p in parts])  # type: ignore[misc]
    prior = Prior(per_image, augmented)
    shape = (N,) if per_image else ()
    assert torch.allclose(TotalVariation(1.0, prior, "l1")(step), l1.reshape(shape))
    assert torch.allclose(TotalVariation(1.0, prior, "l2")(step), l2.reshape(shape))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_blur_and_l2(step: Step, per_image: bool, squared: bool) -> None:
    from torchvision.transforms.v2.functional import gaussian_blur

    x = step.images
    residual = x - gaussian_blur(x, [3, 3], [1.0, 1.0])
    prior = Prior(per_image)
    for term, value in ((Blur(1.0, prior, squared), residual), (L2(1.0, prior, squared), x)):
        squares = (value**2).sum((1, 2, 3)) if per_image else (value**2).sum()
        assert torch.allclose(term(step), squares if squared else squares.sqrt())


def test_total_is_sum_over_images_plus_n_times_batch_terms(step: Step) -> None:
    ce, l2, bn = CrossEntropy(0.5), L2(0.1, Prior(True), True), StatisticsDistance(2.0)
    total, values = Objective([ce, l2, bn])(step)
    assert torch.allclose(total, 0.5 * ce(step).sum() + 0.1 * l2(step).sum() + N * 2.0 * bn(step))
    means = torch.stack([ce(step).mean(), l2(step).mean(), bn(step), total / N])
    assert torch.allclose(values, means) and not values.requires_grad


def test_gradient_of_an_image_does_not_depend_on_the_batch() -> None:
    recipe = recipes.new("t", ce=1.0, tv_l2=0.1, blur=0.2, l2=0.3, norm_squared=True)
    objective = objective_of(recipe, bn=False)
    x, weight = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.randn(36, K, dtype=torch.float64)

    def gradient(images: Tensor) -> Tensor:
        leaf = images.clone().requires_grad_()
        total, _ = objective(Step(leaf, leaf, leaf.flatten(1) @ weight, torch.arange(len(leaf)) % K))
        return torch.autograd.grad(total, leaf)[0]

    assert not objective.couples
    assert torch.allclose(gradient(x)[:1], gradient(x[:1]))


def test_a_recipe_gives_the_terms_it_weighs() -> None:
    recipe = recipes.new("t", tv_l1=1.0, tv_l2=1.0, blur=1.0, l2=1.0, bn=1.0, compete=1.0)
    assert objective_of(recipe, bn=True).names == ("ce", "tv_l1", "tv_l2", "blur", "l2", "bn", "compete", "loss")
    assert objective_of(recipe, bn=True).couples
    assert not objective_of(recipe, bn=False).couples
    assert objective_of(recipe.replace(tv_scope="batch"), bn=False).couples
    assert objective_of(recipes.new("t", ce=1.0), bn=True).names == ("ce", "loss")
    with pytest.raises(ValueError, match="distinct"):
        Objective([CrossEntropy(), CrossEntropy()])


def test_terms_share_one_pass_of_the_prior(step: Step) -> None:
    recipe = recipes.new("t", tv_l2=1.0, blur=1.0, l2=1.0)
    objective_of(recipe, bn=False)(step)
    assert len(step._priors) == 1
