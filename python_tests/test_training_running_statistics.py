from __future__ import annotations

import torch
from torch import nn

from exml_fast.training.running_statistics import reset_batch_norms


def test_statistics_are_the_average_over_the_batches() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(3))
    for norm in (model[1], model[3]):
        norm.running_mean.normal_()
    batches = torch.randn(3, 8, 2, 4, 4)
    reset_batch_norms(model, batches)
    with torch.no_grad():
        inputs = model[0](batches.flatten(0, 1)).view(3, 8, 3, 4, 4)
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 1, 3, 4)))
    want = torch.stack([batch.var((0, 2, 3)) for batch in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_var, want)
    assert model[1].momentum == 0.3 and not model[2].training


def test_a_network_without_batch_norm_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    reset_batch_norms(model, iter([]))
    assert model.training
