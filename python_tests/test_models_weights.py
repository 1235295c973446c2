"""New weights for a network."""

from __future__ import annotations

import pytest
import torch
from small_training import network, same, state
from torch import nn

from exml_fast.models import create, redraw


def test_new_weights_are_those_of_a_new_network() -> None:
    torch.manual_seed(7)
    expected = create("cifar_resnet", depth=20, num_classes=10)
    given = create("cifar_resnet", depth=20, num_classes=10)
    with torch.no_grad():
        for tensor in given.state_dict().values():
            tensor.fill_(3)
    found = redraw(given)
    assert found is given, "in place"
    for name, value in found.state_dict().items():
        assert value.shape == expected.state_dict()[name].shape and not bool((value == 3).all()), name
    norms = [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all()) for norm in norms)


def test_torchs_global_generator_decides() -> None:
    models = []
    for seed in (1, 1, 2):
        model = network()
        torch.manual_seed(seed)
        models.append(state(redraw(model)))
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_a_layer_that_cannot_draw_its_weights_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    message = r"^student: layer '1' \(Own\) has no reset_parameters, so new weights cannot be drawn"
    with pytest.raises(ValueError, match=message):
        redraw(nn.Sequential(nn.Linear(2, 3), Own()), "student: ")
