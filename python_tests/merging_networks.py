"""Small networks of every kind, and copies with permuted features, for tests of merging."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from exml_fast.continual.expert import Expert
from exml_fast.continual.merging.graph import FeatureGraph
from exml_fast.data import InputSpec, NaturalFields
from exml_fast.models import create

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "lenet": ("lenet5", {}, 1),
    "lenet-bn": ("lenet5", {"batch_norm": True}, 1),
    "resnet20": ("cifar_resnet", {"depth": 20}, 3),
    "resnet18": ("slim_resnet18", {"width": 4}, 3),
    "vgg-bn": ("vgg11_bn_cifar", {"width": 8}, 3),
}
"""Architecture, arguments, and channels of the images (32×32)."""


def expert(name: str, seed: int = 0, units: tuple[int, ...] = (0, 1, 2, 3), classes: Any = None) -> Expert:
    """An untrained network whose BatchNorms are all different."""
    architecture, arguments, channels = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create(architecture, num_classes=len(units), **arguments).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight.data, module.running_var):
                    value.uniform_(0.5, 1.5)
                for value in (module.bias.data, module.running_mean):
                    value.normal_(0, 0.2)
    spec = InputSpec(channels, (32, 32), (0.5,) * channels, (0.25,) * channels)
    return Expert.wrap(model, spec, classes or units, units=units, architecture=architecture, arguments=arguments)


def permuted(given: Expert, seed: int = 1) -> Expert:
    """The same function with its hidden features in random places."""
    generator, state = torch.Generator().manual_seed(seed), dict(given.model.state_dict())
    for group in FeatureGraph.of(given.model, images(given, 2)).groups:
        group.permute(state, torch.randperm(group.size, generator=generator))
    model = copy.deepcopy(given.model)
    model.load_state_dict(state)
    return Expert(model, given.card)


def images(given: Expert, count: int = 48) -> Tensor:
    """Natural fields for an expert."""
    return NaturalFields().draw(count, given.input_spec, torch.Generator().manual_seed(0))


def largest_difference(one: Expert, other: Expert, seen: Tensor) -> float:
    """Of the logits, relative to the largest logit."""
    first, second = one.logits(seen), other.logits(seen)
    return float((first - second).abs().max() / second.abs().max())
