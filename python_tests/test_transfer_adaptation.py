"""Source-free adaptation: each term against its definition, bad inputs, and small runs on the quadrants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_training import (
    SMALL,
    SPEC,
    assert_resumes,
    assert_seed_decides,
    everything,
    network,
    same,
    state,
    unchanged,
)
from torch import Tensor, nn

from exml_fast import invert
from exml_fast.data import Augmentation, ImageData
from exml_fast.evaluation import logits
from exml_fast.inversion import recipes
from exml_fast.training import Loop, Training
from exml_fast.transfer import (
    DomainDiscriminator,
    adapt,
    adapt_by_rehearsal,
    mutual_information,
    tsne,
    universal_perturbations,
)


def test_a_result_brings_its_own_input(data: ImageData, teacher: nn.Module) -> None:
    recipe = recipes.get("data_impressions/nayak").replace(steps=2, batch_size=4)
    found, x = invert(teacher, per_class=2, recipe=recipe, spec=SPEC), data.train.normalized(SPEC)
    config = Training(steps=2, batch_size=4)
    for method in (adapt, adapt_by_rehearsal):
        by_result = method(teacher, found, x, config=config).model
        by_tensor = method(teacher, found.images, x, spec=SPEC, config=config).model
        assert same(state(by_result), state(by_tensor))
        with pytest.raises(ValueError, match="spec must be given where impressions are a tensor"):
            method(teacher, found.images, x, config=config)
    assert universal_perturbations(teacher, found, config=config).history["step"] == [2]
    with pytest.raises(ValueError, match="discriminator_lr must be a positive number, got 0"):
        adapt(teacher, found, x, discriminator_lr=0)


def test_discriminator_is_the_papers() -> None:
    layers = list(DomainDiscriminator(10).layers)
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(500, 10), (500, 500), (2, 500)]
    assert sum(isinstance(layer, nn.LeakyReLU) for layer in layers) == 2


def test_adaptation_to_less_contrast(data: ImageData, teacher: nn.Module) -> None:
    """The target domain is the source's with less contrast, and brighter: what a network adapts to without labels."""
    before = everything(teacher)
    x = data.train.normalized(SPEC)
    moved = 0.5 * x + 0.5
    test = 0.5 * data.test.normalized(SPEC) + 0.5
    unadapted = float((logits(teacher, test).argmax(1) == data.test.labels).double().mean())
    done = adapt(
        teacher, x, moved, spec=SPEC, config=Training(steps=150, batch_size=32, lr=3e-4), discriminator_lr=1e-3
    )
    adapted = float((logits(done.model, test).argmax(1) == data.test.labels).double().mean())
    assert unchanged(before, teacher) and done.model is not teacher
    assert unadapted < 0.8 and adapted > unadapted + 0.2
    with pytest.raises(ValueError, match=r"target must be \(N, 1, 32, 32\)"):
        adapt(teacher, x, moved[:, :, :16], spec=SPEC)


def test_rehearsal_reaches_smaller_and_fainter_images(data: ImageData, teacher: nn.Module) -> None:
    """Sizes that no source image had are met in the augmented impressions, whose answers are known."""
    before = everything(teacher)

    def smaller(x: torch.Tensor) -> torch.Tensor:
        x = SPEC.denormalize(x)
        return SPEC.normalize(0.7 * F.pad(F.interpolate(x, scale_factor=0.5, mode="area"), (8, 8, 8, 8)))

    x = data.train.normalized(SPEC)
    test = smaller(data.test.normalized(SPEC))
    config = Training(steps=150, batch_size=32, lr=1e-3, augmentation=Augmentation(shift=2, scale=0.5))
    told: list[Any] = []
    done = adapt_by_rehearsal(teacher, x, smaller(x), spec=SPEC, config=config, progress=lambda *a: told.append(a[:3]))
    unadapted, adapted = (
        float((logits(model, test).argmax(1) == data.test.labels).double().mean()) for model in (teacher, done.model)
    )
    assert unchanged(before, teacher) and not done.model.training and told[-1] == ("adapt_by_rehearsal", 150, 150)
    assert unadapted < 0.8 and adapted > unadapted + 0.15, (unadapted, adapted)
    again = adapt_by_rehearsal(teacher, x, smaller(x), spec=SPEC, config=config)
    assert done.history == again.history and same(state(done.model), state(again.model))


def test_the_terms_of_rehearsal(data: ImageData, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one step, without augmentation, and all images in the batch: each term as its definition says."""
    x, target = data.train.normalized(SPEC)[:8], data.test.normalized(SPEC)[:8]
    monkeypatch.setitem(Loop.run.__kwdefaults__, "block_steps", 1)
    config = Training(steps=1, batch_size=8)
    chosen = torch.randint(8, (8,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source, answers = teacher(x[chosen]), teacher(target)
    rehearsed = F.cross_entropy(source, source.softmax(1))
    probability, label = answers.softmax(1).max(1)
    for weights, expected in (
        ({"information": 0.0, "consistency": 0.0}, rehearsed),
        ({"information": 2.0, "consistency": 0.0}, rehearsed - 2 * mutual_information(answers)),
        # One step has no second half, in which alone this term counts.
        ({"information": 0.0, "consistency": 3.0}, rehearsed),
    ):
        found = adapt_by_rehearsal(teacher, x, target, spec=SPEC, config=config, **weights).history["loss"]
        assert found[0] == pytest.approx(float(expected), rel=1e-4)
    still = Training(steps=2, batch_size=8, lr=1e-12)
    second = [
        adapt_by_rehearsal(teacher, x, target, spec=SPEC, config=still, information=0.0, consistency=c, confidence=0.9)
        for c in (0.0, 3.0)
    ]
    pseudo = F.cross_entropy(answers, label, reduction="none") * (probability >= 0.9)
    difference = [b - a for a, b in zip(second[0].history["loss"], second[1].history["loss"], strict=True)]
    assert difference == pytest.approx([0.0, 3 * float(pseudo.mean())], abs=1e-5)


def test_mutual_information() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    joint = p / 6  # of image and answer; its mutual information by definition
    expected = (joint * (joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log()).sum()
    torch.testing.assert_close(mutual_information(logits), expected)
    assert torch.autograd.gradcheck(mutual_information, logits)
    certain = 1e4 * torch.eye(4)
    assert float(mutual_information(certain)) == pytest.approx(torch.tensor(4.0).log().item())
    nobody = certain[:2].clone().requires_grad_()
    mutual_information(nobody).backward()
    assert nobody.grad is not None and nobody.grad.isfinite().all()


def test_bad_rehearsals_are_named(data: ImageData, teacher: nn.Module) -> None:
    x = data.train.normalized(SPEC)[:8]
    for name, value in (("information", -1.0), ("consistency", float("nan")), ("confidence", 1.5)):
        with pytest.raises(ValueError, match=name):
            adapt_by_rehearsal(teacher, x, x, spec=SPEC, **{name: value})
    with pytest.raises(ValueError, match=r"impressions must be \(N, 1, 32, 32\)"):
        adapt_by_rehearsal(teacher, x[:, :, :16], x, spec=SPEC)


def test_tsne_separates_what_is_apart() -> None:
    pytest.importorskip("sklearn", reason="needs the extra eval")
    a, b = torch.randn(20, 5), torch.randn(15, 5) + 50
    flat = tsne([a, b])
    assert [f.shape for f in flat] == [(20, 2), (15, 2)]
    assert torch.cdist(flat[0], flat[1]).min() > 0.2 * torch.cdist(flat[0], flat[0]).mean()


@pytest.mark.parametrize("method", [adapt, adapt_by_rehearsal])
def test_an_interrupted_adaptation_continues_bit_for_bit(method: Any, images: Tensor, tmp_path: Path) -> None:
    """Rehearsal in its second half, where the moving average teaches."""
    config = Training(steps=150, batch_size=8, augmentation=Augmentation(1, flip=0.5))
    target = 0.5 * images + 0.5

    def run(given: Tensor = target, **options: Any) -> Any:
        return method(network(), images, given, spec=SMALL, config=config, **options)

    assert_resumes(run, tmp_path / "early", 50)
    assert_resumes(run, tmp_path / "late", 150)
    (tmp_path / "another").mkdir()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path / "another", progress=stop)
    own = {"discriminator_lr": 0.5} if method is adapt else {"confidence": 0.5}
    for given, other in ((images, {}), (target, own)):
        with pytest.raises(ValueError, match="belongs to another run"):
            run(given, checkpoint_dir=tmp_path / "another", **other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", [adapt, adapt_by_rehearsal])
def test_a_seed_decides_adaptation_and_the_network_given_stays(method: Any, training: bool, images: Tensor) -> None:
    source = network().train(training)
    config = Training(steps=4, batch_size=8, augmentation=Augmentation(1))
    assert_seed_decides(lambda **o: method(source, images, 0.5 * images, spec=SMALL, config=config, **o), source)
