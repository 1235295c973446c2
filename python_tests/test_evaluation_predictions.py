"""Accuracies against predictions counted one by one."""

from __future__ import annotations

import pytest
import torch
from small_experts import quadrants
from small_training import SPEC, everything, trained_lenet, unchanged

from exml_fast.evaluation import accuracy, class_accuracies, features, logits
from exml_fast.models import create
from exml_fast.transfer import Attack, attack_accuracies


def test_accuracies() -> None:
    data, teacher = quadrants(), trained_lenet()
    x = data.test.normalized(SPEC)
    try:
        teacher.train()
        before = everything(teacher)
        said = logits(teacher, x, 7)
        assert teacher.training and unchanged(before, teacher)
    finally:
        teacher.eval()
    predicted = said.argmax(1)
    torch.testing.assert_close(said, teacher(x).detach())
    right = predicted == data.test.labels
    assert accuracy(teacher, data.test, SPEC) == pytest.approx(float(right.double().mean()))
    by_class = class_accuracies(teacher, data.test, SPEC, 5)
    for c in range(4):
        assert by_class[c] == pytest.approx(float(right[data.test.labels == c].double().mean()))
    assert by_class[4].isnan() and by_class.dtype == torch.float64


def test_no_prediction_is_made_of_nan() -> None:
    data, model = quadrants(), create("lenet5", num_classes=4)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    for count in (lambda: accuracy(model, data.test, SPEC), lambda: class_accuracies(model, data.test, SPEC, 4)):
        with pytest.raises(ValueError, match=r"LeNet5 must return finite logits"):
            count()
    pytest.importorskip("art", reason="needs the extra attacks")
    with pytest.raises(ValueError, match="logits are NaN"):
        attack_accuracies(model, data.test, SPEC, Attack(steps=1))


def test_features_enter_the_final_layer() -> None:
    data, teacher = quadrants(), trained_lenet()
    x = data.test.normalized(SPEC, slice(0, 5))
    found = features(teacher, x, batch_size=2)
    head = teacher.classifier[-1]
    torch.testing.assert_close(found @ head.weight.T + head.bias, teacher(x))
