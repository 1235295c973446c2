"""Projected latent distillation against its formula, resumption, and errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_experts import QUICK, quadrants, real_images, stream, trained
from torch import nn

from exml_fast.continual import Card, ExModelDistillation, ExModelResult, Expert
from exml_fast.continual.ex_model.latents import LatentTeachers
from exml_fast.continual.scenarios import stream_accuracy
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.training import Loop

SPEC = InputSpec(1, (32, 32), (0.2,), (0.5,))
CPU = torch.device("cpu")


def lenets(*seeds: int) -> list[nn.Module]:
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        made.append(create("lenet5", num_classes=4).eval())
    return made


def test_the_loss_is_the_error_of_the_projected_features() -> None:
    first, second, student = lenets(1, 2, 3)
    wide = InputSpec(1, (32, 32), (0.5,), (0.25,))
    teachers = LatentTeachers([("a", first, SPEC), ("b", second, wide)], student, SPEC, CPU, seed=0)
    images = torch.randn(6, 1, 32, 32)
    wanted = teachers(images)

    def features(model: Any, x: torch.Tensor) -> torch.Tensor:
        """The input of LeNet-5's last linear layer, ``classifier.4``."""
        return model.classifier[:4](model.features(x).flatten(1))

    expected = [features(first, images), features(second, wide.prepare(SPEC.denormalize(images).clamp(0, 1)))]
    torch.testing.assert_close(wanted, torch.cat(expected, 1))
    own = features(student, images)
    maps: Any = teachers.projections
    by_hand = sum(
        (own @ each.weight.T + each.bias - part).square().sum() / part.numel()
        for each, part in zip(maps, expected, strict=True)
    )
    torch.testing.assert_close(teachers.loss(own, wanted), by_hand)
    again = LatentTeachers([("a", first, SPEC)], student, SPEC, CPU, seed=0)
    assert torch.equal(again.projections[0].weight, maps[0].weight)


def run(lambda_latent: float = 0.5, **options: Any) -> ExModelResult:
    given = {name: options.pop(name) for name in list(options) if name in ("targets", "augmentation", "precision")}
    config = QUICK.replace(lambda_latent=lambda_latent, **given)
    return ExModelDistillation(real_images(), config, seed=2).run(stream(), **options)


@pytest.mark.parametrize("targets", ["live", "stored"])
def test_the_ex_model_learns_features_and_classes(targets: str) -> None:
    data = quadrants()
    result = run(targets=targets, evaluate=lambda expert: stream_accuracy(expert, data))
    assert result.evaluations[-1] >= 0.9
    for each in result.learned:
        assert each.history["latent"][-1] < each.history["latent"][0]
        parts = (each.history["mse"], each.history["ce"], each.history["latent"])
        for loss, term, ce, latent in zip(each.history["loss"], *parts, strict=True):
            assert loss == pytest.approx(term + ce + 0.5 * latent, rel=1e-4)
    assert "latent" not in run(0.0).learned[0].history


def test_a_step_descends_the_weighted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the maps; against the sum of the terms, written out."""
    steps: list[Any] = []
    take = Loop._take_step

    def spy(loop: Any, batch: Any) -> Any:
        before = copy.deepcopy(loop.model), copy.deepcopy(loop.beside)
        terms = take(loop, batch)
        steps.append((batch, *before, copy.deepcopy(loop.model), copy.deepcopy(loop.beside)))
        return terms

    monkeypatch.setattr(Loop, "_take_step", spy)
    config = QUICK.replace(lambda_latent=2.0, lambda_ce=0.0, steps=1, batch_size=8, lr=0.1, momentum=0.0)
    ExModelDistillation(real_images(), config, seed=2).run(stream())
    (_, _, _, _, first), (batch, model, maps, learned, learned_maps) = steps
    assert len(first) == 1 and len(maps) == 2  # the expert; the expert and the previous ex-model
    hidden = model.classifier[:4](model.features(batch.images).flatten(1))
    squares = ((model.classifier[4](hidden) - batch.target) * batch.mask).square().sum(1) / batch.mask.sum(1)
    loss = squares.mean()
    for project, wanted in zip(maps, batch.latents.split(84, 1), strict=True):
        loss = loss + 2.0 * F.mse_loss(project(hidden), wanted)
    loss.backward()
    for before, after in ((model, learned), (maps, learned_maps)):
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            if old.grad is not None:
                torch.testing.assert_close(new, old - 0.1 * old.grad, rtol=1e-3, atol=1e-5)
    expert = trained()[1].model.eval()
    own = expert.classifier[:4](expert.features(batch.images).flatten(1))
    torch.testing.assert_close(batch.latents[:, :84], own.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", ["live", "stored"])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, targets: str) -> None:
    expected = run(targets=targets)

    def interrupt(stage: str, step: int, *_: object) -> None:
        if stage.startswith("expert 2") and "distil" in stage and step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(targets=targets, checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match=r"another run.*lambda_latent"):
        run(0.25, targets=targets, checkpoint_dir=tmp_path)
    torch.rand(3)
    found = run(targets=targets, checkpoint_dir=tmp_path)
    assert found.history == expected.history
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name


def test_networks_without_a_final_linear_layer_are_named() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 4, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.layer(x)).flatten(1)

    config = QUICK.replace(lambda_latent=1.0, steps=2)
    with pytest.raises(ValueError, match=r"lambda_latent needs a final linear layer, .* of the ex-model"):
        ExModelDistillation(real_images(), config, model=Convolutional(), units=[0, 1, 2, 3]).run(stream())
    own = Expert(Convolutional().eval(), Card("mine", {}, (0, 1, 2, 3), (0, 1), ("a", "b", "c", "d"), SPEC))
    method = ExModelDistillation(real_images(), config, model=lenets(0)[0], units=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"lambda_latent needs a final linear layer, .* of expert 1"):
        method.run([own])
    with pytest.raises(ValueError, match="lambda_latent must be at least 0"):
        QUICK.replace(lambda_latent=-1.0)
