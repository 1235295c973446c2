"""A small convolutional classifier, its input, and two short recipes for the tests of inversion."""

from __future__ import annotations

import torch
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.inversion import recipes

SPEC = InputSpec(1, (12, 12), (0.5,), (0.25,))
CE = recipes.new("ce", steps=20, batch_size=8, l2=1e-3, norm_squared=True, jitter=1, border="zero")
BN = CE.replace(name="bn", bn=1.0)


def network(seed: int = 0, batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm2d(6)] if batch_norm else []
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), *norm, nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 5)
    )
    nn.init.normal_(model[-1].weight)
    return model


class Tiny(nn.Module):
    """A network as a user would write one, for images of one channel."""

    def __init__(self, num_classes: int, width: int = 6) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(1, width, 5, stride=2), nn.BatchNorm2d(width)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(torch.relu(self.norm(self.body(x)))).flatten(1))
