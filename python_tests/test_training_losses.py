"""Losses against torch's own, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from exml_fast.training import mixed_cross_entropy, softened_kl


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, *shape, dtype=torch.float64, requires_grad=True).unbind())  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_softened_kl_is_torch_s_scaled(temperature: float) -> None:
    t, s = pair(5, 4)
    found = softened_kl(t, s, temperature)
    expected = F.kl_div((s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found, temperature**2 * expected, rtol=1e-12, atol=1e-12)
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    torch.testing.assert_close(found, temperature**2 * (p * (p / q).log()).sum(1).mean())


def test_the_gradient_of_softened_kl() -> None:
    teacher, student = (x.detach().requires_grad_() for x in pair(6, 5))
    (gradient,) = torch.autograd.grad(softened_kl(teacher, student, 20.0), student)
    p, q = (teacher / 20).softmax(1), (student / 20).softmax(1)
    torch.testing.assert_close(gradient, 20 * (q - p) / 6)
    assert softened_kl(teacher, teacher).item() == pytest.approx(0, abs=1e-10)
    mask = torch.tensor([True, False, True, True, False])
    for chosen in (None, mask, torch.rand(6, 5) < 0.7):
        if chosen is not None and chosen.dim() == 2:
            chosen[:, 0] = True
        assert torch.autograd.gradcheck(lambda t, s, m=chosen: softened_kl(t, s, 2.0, m), (teacher, student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_logits_in_the_mask_take_part(dtype: torch.dtype) -> None:
    t, s = (x.detach().to(dtype).requires_grad_() for x in pair(6, 5))
    kept = [0, 2, 3]
    mask = torch.zeros(5, dtype=torch.bool)
    mask[kept] = True
    found = softened_kl(t, s, 2.0, mask)
    torch.testing.assert_close(found, softened_kl(t[:, kept], s[:, kept], 2.0))
    (gradient,) = torch.autograd.grad(found, s)
    assert gradient.isfinite().all() and (gradient[:, ~mask] == 0).all()
    rows = torch.zeros(6, 5, dtype=torch.bool)
    for row in range(6):
        rows[row, [row % 5, (row + 2) % 5]] = True
    each = [softened_kl(t[n : n + 1, rows[n]], s[n : n + 1, rows[n]], 2.0) for n in range(6)]
    torch.testing.assert_close(softened_kl(t, s, 2.0, rows), torch.stack(each).mean())
    whole = softened_kl(t, s, 2.0, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(whole, softened_kl(t, s, 2.0))


def test_mixed_cross_entropy_is_its_definition() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    labels, share = torch.tensor([3, 0, 0, 1, 2, 1]), torch.rand(6)
    assert mixed_cross_entropy(logits, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item())
    for others in (None, torch.tensor([1, 1, 2, 2, 0, 3])):
        rest = torch.tensor([1, 3, 0, 0, 1, 2]) if others is None else others  # by default that of the row before
        soft = share[:, None] * F.one_hot(labels, 4) + (1 - share)[:, None] * F.one_hot(rest, 4)
        found = mixed_cross_entropy(logits, labels, share, others)
        torch.testing.assert_close(found, F.cross_entropy(logits, soft))
        mine, theirs = (torch.autograd.grad(x, logits)[0] for x in (found, F.cross_entropy(logits, soft)))
        torch.testing.assert_close(mine, theirs)
    assert mixed_cross_entropy(logits, labels, torch.ones(6)).item() == pytest.approx(
        F.cross_entropy(logits, labels).item()
    )
