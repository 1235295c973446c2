"""Eq. 9 and 10."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exml_fast.continual import Divergence, SquaredError
from exml_fast.continual.ex_model.losses import Loss, distillation_loss


@pytest.mark.parametrize("loss", [SquaredError(), SquaredError(reduction="sum"), Divergence()])
def test_masked_units_get_no_gradient_from_the_distillation_term(loss: Loss) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64)
    mask = torch.tensor([True, True, False, False]).expand(5, 4)
    seen, labels = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1, 1])
    term, ce = distillation_loss(logits, target, mask, labels, seen, loss)
    assert term.item() >= 0 and ce.item() > 0
    (term + ce).backward()
    assert logits.grad is not None and float(logits.grad[:, 2:].abs().max()) < 1e-12
    assert float(logits.grad[:, :2].abs().max()) > 0


def test_loss_values() -> None:
    logits, target = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    mask, labels, seen = torch.tensor([[True, True, False]]), torch.tensor([1]), torch.tensor([0, 1])
    term, ce = distillation_loss(logits, target, mask, labels, seen, SquaredError())
    assert float(term) == pytest.approx(2.5)
    assert float(ce) == pytest.approx(nn.functional.cross_entropy(logits[:, :2], labels).item())
    assert float(distillation_loss(logits, target, mask, labels, seen, SquaredError(reduction="sum"))[0]) == 5
    kl = Divergence(temperature=2.0)
    p, q = torch.softmax(target[:, :2] / 2, 1), torch.log_softmax(logits[:, :2] / 2, 1)
    expected = 4 * nn.functional.kl_div(q, p, reduction="batchmean").item()
    assert float(distillation_loss(logits, target, mask, labels, seen, kl)[0]) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(logits, logits, mask, labels, seen, kl)[0]) == pytest.approx(0, abs=1e-6)
