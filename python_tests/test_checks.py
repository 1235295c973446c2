"""Numbers and counts."""

from __future__ import annotations

import math

from exml_fast.checks import is_count, is_number


def test_numbers_are_finite_and_no_truth_values() -> None:
    assert all(map(is_number, (0, -3, 1.5, 1e-300)))
    assert not any(map(is_number, (True, math.nan, math.inf, "1", None, 1j)))


def test_counts_are_integers_from_the_least_on() -> None:
    assert is_count(1) and is_count(0, 0) and is_count(5, 5)
    assert not any(map(is_count, (0, -1, True, 1.0, "1", None))) and not is_count(4, 5) and not is_count(False, 0)
