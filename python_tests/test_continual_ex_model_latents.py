"""Projected latent distillation against its formula, resumption, and errors."""

from __future__ import annotations

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


def test_the_gradient_of_a_step_is_that_of_the_weighted_sum() -> None:
    """A step of gradient descent from known weights, with the first expert alone."""
    expert = trained()[0]
    torch.manual_seed(7)
    student = create("lenet5", num_classes=4)
    config = QUICK.replace(
        lambda_latent=2.0, lambda_ce=0.0, steps=1, batch_size=60, optimizer="sgd", lr=0.1, momentum=0.0,
        augmentation={"shift": 0}, schedule="constant",
    )  # fmt: skip
    method = ExModelDistillation(real_images(), config, model=student, units=[0, 1, 2, 3], seed=2)
    made = method.run([expert])
    latents = LatentTeachers([("a", expert.model.eval(), SPEC)], student, SPEC, CPU, seed=2)
    assert made.history["latent"][0] > 0
    assert made.history["loss"][0] == pytest.approx(made.history["mse"][0] + 2 * made.history["latent"][0], rel=1e-5)
    assert latents.widths == [84] and not torch.equal(
        made.model.state_dict()["features.0.weight"], student.features[0].weight
    )


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
