"""Heads that grow, and the features that enter them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_training import SMALL, everything, network, unchanged
from torch import Tensor, nn

from exml_fast.data import Split
from exml_fast.training import Training, final_features, grow_head, train_classifier


class Swapped(nn.Module):
    """Registers its head before a layer that runs earlier."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3, bias=bias)
        self.first = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)).relu())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_grown_head_keeps_the_old_logits(bias: bool, training: bool) -> None:
    x = torch.randn(5, *SMALL.shape)
    model = Swapped(bias).train(training)
    before = everything(model)
    grown: Any = grow_head(model, 7, x)
    assert unchanged(before, model) and all(m.training is training for m in grown.modules())
    assert grown.head.out_features == 7 and (grown.head.bias is not None) is bias
    torch.testing.assert_close(grown(x)[:, :3], model(x))
    new = grown.head.weight[3:]
    assert new.abs().max() <= 6**-0.5 and len(new.unique()) == new.numel()  # as nn.Linear's
    same: Any = grow_head(model, 3, x)
    assert torch.equal(same(x), model(x)) and same.head is not model.head


def test_a_grown_network_learns_the_new_classes() -> None:
    labels = torch.arange(48) % 6
    images = torch.full((48, *SMALL.shape), 20, dtype=torch.uint8)
    for n, c in enumerate(labels.tolist()):
        images[n, :, c : c + 3] = 200
    old = train_classifier(
        network(outputs=4), Split(images, labels).of_classes(range(4)), SMALL,
        config=Training(steps=100, batch_size=16, lr=0.01),
    ).model  # fmt: skip
    grown = grow_head(old, 6)
    torch.testing.assert_close(grown(SMALL.prepare(images))[:, :4], old(SMALL.prepare(images)))
    done = train_classifier(
        grown, Split(images, labels), SMALL, config=Training(steps=200, batch_size=16, lr=0.01)
    ).model
    assert float((done(SMALL.prepare(images)).argmax(1) == labels).double().mean()) > 0.95
    assert not torch.equal(done[5].weight[4:], grown[5].weight[4:])  # type: ignore[index]


def test_a_linear_layer_alone_grows() -> None:
    model = nn.Linear(5, 2)
    grown, x = grow_head(model, 4), torch.randn(3, 5)
    assert isinstance(grown, nn.Linear) and grown.out_features == 4
    torch.testing.assert_close(grown(x)[:, :2], model(x))


def test_a_head_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="outputs must be at least the 4 that the head has, got 3"):
        grow_head(network(), 3)
    with pytest.raises(ValueError, match=r"executes no nn\.Linear"):
        grow_head(nn.Sequential(nn.Conv2d(1, 2, 3)), 3)


def test_features_have_gradients_and_hooks_are_removed() -> None:
    model, x = network().eval(), torch.randn(3, *SMALL.shape, requires_grad=True)
    with final_features(model, x[:1].detach()) as seen:
        first = model(x)
        second = model(2 * x)
        assert len(seen) == 2 and seen[0].shape == (3, 45)
        for features, logits in zip(seen, (first, second), strict=True):
            torch.testing.assert_close(F.linear(features, model[5].weight, model[5].bias), logits)
        seen[0].sum().backward()
    assert x.grad is not None and bool(x.grad.any()) and model[0].weight.grad is not None
    model(x)
    assert len(seen) == 2 and not model[5]._forward_pre_hooks
    with pytest.raises(RuntimeError, match="mine"), final_features(model):
        raise RuntimeError("mine")
    assert not model[5]._forward_pre_hooks
