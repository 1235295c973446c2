"""The distance of layers' outputs (exml_fast/training/features.py) against its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.training import FeatureDistance, shared_layers

SPEC = InputSpec(3, (8, 8), (0.5,) * 3, (0.25,) * 3)


def network(width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def test_layers_of_equal_name_and_width_are_shared() -> None:
    assert shared_layers(network(), network()) == ["1", "4"]
    assert shared_layers(network(), network(5)) == ["4"]
    assert shared_layers(network(), nn.Sequential(nn.Flatten(), nn.Linear(3, 5))) == []


def test_formula() -> None:
    torch.manual_seed(0)
    teacher, student, x = network().eval(), network(5).train(), torch.randn(7, 3, 8, 8)
    distance = FeatureDistance(teacher, student, "float32")
    logits = distance.answers(x)
    torch.testing.assert_close(logits, teacher(x))
    student(x)
    found = distance()
    wanted, ours = teacher[:5](x).detach(), copy.deepcopy(student).train()[:5](x)
    torch.testing.assert_close(found, (ours - wanted).square().mean() / (wanted - wanted.mean()).square().mean())
    found.backward()
    assert student[0].weight.grad is not None and student[8].weight.grad is None


def test_no_hooks_stay_and_the_teacher_has_none() -> None:
    teacher, student = network().eval(), network()
    with FeatureDistance(teacher, student, "float32"):
        assert student[1]._forward_hooks and not teacher[1]._forward_hooks
    assert not any(module._forward_hooks for module in student.modules())


class WithAuxiliaryHead(nn.Module):
    """As GoogLeNet: a second head that only runs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = network()[:6], nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_layers_that_one_network_leaves_out_do_not_count() -> None:
    torch.manual_seed(0)
    teacher, x = WithAuxiliaryHead().eval(), torch.randn(7, 3, 8, 8)
    student = copy.deepcopy(teacher).train()
    whole, body = FeatureDistance(teacher, student, "float32"), FeatureDistance(teacher.body, student.body, "float32")
    assert "aux.0" in whole.layers
    whole.answers(x), body.answers(x), student(x)
    torch.testing.assert_close(whole(), body())
    taught = xf.distill(teacher, student, x, spec=SPEC, steps=2, batch_size=4, lambda_features=1.0)
    assert taught.history["features"][0] > 0


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_student_comes_nearer_to_its_teachers_layers(images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = create("cifar_resnet", depth=8, num_classes=5).train()
    for _ in range(30):
        teacher(images)  # running statistics
    teacher.eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * parameter.abs().mean() * torch.randn_like(parameter))
    last = {}
    for weight in (0.0, 10.0):
        config = xf.Distillation().replace(steps=30, batch_size=32, lr=0.02, lambda_features=weight)
        taught = xf.distill(teacher, student, images, spec=SPEC, config=config)
        assert not any(module._forward_hooks for module in taught.model.modules())
        assert ("features" in taught.history) == (weight > 0)
        distance = FeatureDistance(teacher, taught.model, "float32")
        with torch.no_grad():
            distance.answers(images), taught.model(images)
            last[weight] = float(distance())
    assert last[10.0] < 0.7 * last[0.0]


def test_networks_that_share_no_layer(images: Tensor) -> None:
    teacher, student = network(), create("lenet5", num_classes=5, in_channels=3)
    with pytest.raises(ValueError, match=r"lambda_features must be 0 here: no BatchNorm of the student"):
        xf.distill(teacher, student, torch.randn(8, 3, 32, 32), spec=InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3),
                   steps=1, lambda_features=1.0)  # fmt: skip
