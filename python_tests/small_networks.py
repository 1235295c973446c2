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
