"""Classifier rows of one norm; renormalise and debias are tested with the background."""

from __future__ import annotations

import copy

import pytest
import torch
from small_experts import QUICK, quadrants, real_images, stream
from torch import Tensor, nn

from exml_fast.continual import ExModelDistillation, stream_accuracy
from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.postprocessing import Align, Situation


def test_aligned_rows_have_one_norm() -> None:
    """Zhao 2020, by class: the centred logits of each class change by one factor, in a copy."""
    plain, aligned = (
        ExModelDistillation(real_images(), QUICK.replace(align=flag)).run(stream()) for flag in (False, True)
    )
    assert aligned.history == plain.history  # it goes on learning as it was
    old, new = plain.model.state_dict(), aligned.model.state_dict()
    weight, bias = "classifier.4.weight", "classifier.4.bias"
    assert [name for name, value in old.items() if not torch.equal(value, new[name])] == [weight, bias]
    centred = {name: old[name] - old[name].mean(0) for name in (weight, bias)}
    norms = centred[weight].norm(dim=1)
    assert norms.max() / norms.min() > 1.01  # something to align
    torch.testing.assert_close(new[weight], centred[weight] * (norms.mean() / norms)[:, None])
    torch.testing.assert_close(new[bias], centred[bias] * (norms.mean() / norms))
    assert stream_accuracy(aligned.expert, quadrants()) >= 0.9


def test_only_the_classes_seen_are_aligned() -> None:
    plain, given = [], []
    for align, states in ((False, plain), (True, given)):
        ExModelDistillation(real_images(), QUICK.replace(align=align, steps=20)).run(
            stream(), evaluate=lambda e, states=states: states.append(copy.deepcopy(e.model.state_dict()))
        )
    weight = "classifier.4.weight"
    first, before = given[0][weight], plain[0][weight]
    assert torch.equal(first[2:], before[2:]) and not torch.equal(first[:2], before[:2])
    torch.testing.assert_close(first[:2].norm(dim=1), before[:2].sub(before[:2].mean(0)).norm(dim=1))
    norms = given[1][weight].norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(4))


@pytest.mark.parametrize(("seen", "rows"), [([2], [0.0, 0.0, 1.0]), ([0, 1], [1.0, 1.0, 2.0])])
def test_aligning_a_single_class_or_equal_rows_changes_no_logit(seen: list[int], rows: list[float]) -> None:
    layer = nn.Linear(2, 3)
    model, memory = nn.Sequential(layer), Memory(1, quadrants().spec, device=torch.device("cpu"))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows)[:, None])
        layer.bias.zero_()
        before = model(torch.ones(1, 2)).softmax(1)[:, seen]
        Align()(model, Situation(memory, seen, "0"))
    after = model(torch.ones(1, 2)).softmax(1)[:, seen]
    assert layer.weight.isfinite().all() and layer.bias.isfinite().all()
    torch.testing.assert_close(after / after.sum(), before / before.sum())


class Gated(nn.Module):
    """Whose last linear layer does not give the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(1024, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.flatten(1))
        return z * self.gate(z).sigmoid()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Gated(), "that gives the logits, got one before others"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten()),
            "need a final linear layer: .* executes no nn.Linear",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(1024, 4))),
            "with its own weight, got a parametrised one",
        ),
    ],
)
def test_aligning_needs_a_linear_layer_that_gives_the_logits(model: nn.Module, message: str) -> None:
    method = ExModelDistillation(real_images(), QUICK.replace(align=True), model=model, units=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=message):
        method.run(stream())
