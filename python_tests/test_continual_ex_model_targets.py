"""Eq. 6 to 8."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exml_fast.continual.ex_model.targets import combined_targets, normalize

# normalize


@given(
    st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 999),
    st.floats(0.01, 100), st.floats(-50, 50),
)  # fmt: skip
def test_normalize_removes_shift_and_scale(rows: int, known: list[bool], seed: int, scale: float, shift: float) -> None:
    logits = torch.randn(rows, len(known), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.tensor(known)
    for how in ("none", "mean", "standardize"):
        assert float(normalize(logits, mask, how)[:, ~mask].abs().sum()) == 0
    assert torch.equal(normalize(logits, mask, "none")[:, mask], logits[:, mask])
    mean, standard = normalize(logits, mask, "mean"), normalize(logits, mask, "standardize")
    torch.testing.assert_close(mean.sum(1), torch.zeros(rows, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(normalize(logits * scale + shift, mask, "mean"), mean * scale, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(normalize(logits * scale + shift, mask, "standardize"), standard, atol=1e-6, rtol=1e-6)
    if mask.sum() > 1:
        torch.testing.assert_close(standard[:, mask].std(1, correction=0), torch.ones(rows, dtype=torch.float64))


def test_normalize_of_equal_logits_is_zero_and_unknown_names_raise() -> None:
    logits = torch.full((2, 3), 7.0)
    assert float(normalize(logits, torch.tensor([True, True, False]), "standardize").abs().sum()) == 0
    rows = torch.tensor([[True, False, False], [True, True, True]])
    assert normalize(torch.tensor([[1.0, 2, 3], [1, 2, 3]]), rows).tolist() == [[0, 0, 0], [-1, 0, 1]]
    with pytest.raises(ValueError, match="how must be one of"):
        normalize(logits, rows, "softmax")


# Eq. 8

PREVIOUS, CURRENT = torch.full((3, 4), 1.0), torch.full((3, 4), 3.0)


def test_targets_of_disjoint_experts() -> None:
    before, now = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, False])
    labels = torch.tensor([0, 1, 2])
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_sample")
    assert target.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 3, 0]]
    assert mask.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, False]]
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_unit")
    assert target.tolist() == [[1, 1, 3, 0]] * 3 and mask.tolist() == [[True, True, True, False]] * 3


def test_targets_of_overlapping_experts() -> None:
    before, now = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    labels = torch.tensor([0, 1, 2])
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_sample")
    assert target.tolist() == [[1, 1, 0, 0], [1, 2, 3, 0], [0, 3, 3, 0]]
    assert mask.sum(1).tolist() == [2, 3, 2]
    assert combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_unit")[0].tolist() == [[1, 2, 3, 0]] * 3
    for combine in ("per_sample", "per_unit"):  # a mask for each sample, equal in every row
        one = combined_targets(PREVIOUS, CURRENT, before, now, labels, combine)
        each = combined_targets(PREVIOUS, CURRENT, before.expand(3, 4), now.expand(3, 4), labels, combine)
        assert all(map(torch.equal, one, each))
    with pytest.raises(ValueError, match="combine must be"):
        combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_class")
