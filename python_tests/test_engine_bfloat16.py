"""Gradients of the pixels in bfloat16 against those in float32: direction and length, by type of layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine import FrozenTeacher

SPEC = InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
C = 32


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3×3": lambda: nn.Conv2d(C, C, 3, padding=1),
    "3×3, stride 2": lambda: nn.Conv2d(C, C, 3, stride=2, padding=1),
    "1×1": lambda: nn.Conv2d(C, C, 1),
    "1×1, stride 2": lambda: nn.Conv2d(C, C, 1, stride=2),
    "5×5": lambda: nn.Conv2d(C, C, 5, padding=2),
    "depthwise": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C),
    "depthwise, stride 2": lambda: nn.Conv2d(C, C, 3, stride=2, padding=1, groups=C),
    "grouped": lambda: nn.Conv2d(C, C, 3, padding=1, groups=4),
    "average pooling": lambda: nn.AvgPool2d(2),
    "max pooling": lambda: nn.MaxPool2d(2),
    "residual": Residual,
    "SiLU": nn.SiLU,
    "tanh": nn.Tanh,
}
STEMS: dict[str, Callable[[], nn.Module]] = {
    "stem 3×3": lambda: nn.Conv2d(3, C, 3, padding=1),
    "stem 7×7, stride 2": lambda: nn.Conv2d(3, C, 7, stride=2, padding=3),
}


def network(stem: Callable[[], nn.Module], layer: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        stem(), nn.BatchNorm2d(C), nn.ReLU(), layer(), nn.BatchNorm2d(C), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 10),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(32, *SPEC.shape))
    return model.eval()


def gradients(model: nn.Module, precision: str) -> dict[str, Tensor]:
    """Of the cross-entropy, and of the distance of the statistics."""
    teacher = FrozenTeacher(model, SPEC, precision=precision, batch_size=8)
    assert teacher.precision == precision
    images = torch.randn(8, *SPEC.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits, layers = teacher(images)
    losses = {
        "cross-entropy": F.cross_entropy(logits, torch.arange(8)),
        "statistics": sum(
            torch.norm(layer.mean - layer.target_mean) + torch.norm(layer.var - layer.target_var) for layer in layers
        ),
    }
    return {name: torch.autograd.grad(loss, images, retain_graph=True)[0] for name, loss in losses.items()}


@pytest.mark.parametrize("name", [*STEMS, *LAYERS])
def test_direction_and_length(name: str) -> None:
    stem = STEMS.get(name, STEMS["stem 3×3"])
    model = network(stem, LAYERS.get(name, LAYERS["1×1"]))
    exact, rounded = gradients(model, "float32"), gradients(model, "bfloat16")
    for loss, wanted in exact.items():
        cosine = F.cosine_similarity(rounded[loss].flatten(), wanted.flatten(), 0).item()
        ratio = (rounded[loss].norm() / wanted.norm()).item()
        assert cosine > 0.99, f"{loss}: cosine {cosine:.4f}"
        assert ratio == pytest.approx(1, abs=0.03), f"{loss}: ratio of the norms {ratio:.3f}"
