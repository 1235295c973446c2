from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from exml_fast.continual import average_accuracy, forgetting
from exml_fast.continual.ex_model.result import ExModelResult, Learned

NAN = math.nan


def test_average_accuracy_and_forgetting_by_hand() -> None:
    matrix = [[0.9, 0.0, 0.0], [0.5, 0.8, 0.0], [0.6, 0.4, 1.0]]
    assert average_accuracy(matrix) == pytest.approx((0.6 + 0.4 + 1.0) / 3)
    assert forgetting(matrix) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert forgetting([[0.5, 0.9], [0.7, 0.2]]) == pytest.approx(-0.2), (
        "it got better; 0.9 was a guess before its expert"
    )


def test_one_test_set_for_all_experiences() -> None:
    assert forgetting([[0.5], [0.8], [0.6]]) == pytest.approx(0.2)
    assert average_accuracy([[0.5], [0.8], [0.6]]) == pytest.approx(0.6)


def test_what_was_not_measured_counts_for_nothing() -> None:
    matrix = torch.tensor([[0.9, NAN, 0.0], [0.5, NAN, 0.0], [0.6, NAN, 1.0]])
    assert average_accuracy(matrix) == pytest.approx(0.8)
    assert forgetting(matrix) == pytest.approx(0.3)
    assert math.isnan(forgetting([[0.5, 0.3]])) and math.isnan(average_accuracy([[NAN, NAN]]))
    for bad in ([], [[]], [0.5]):
        with pytest.raises(ValueError, match="experts, experiences"):
            forgetting(bad)  # type: ignore[arg-type]  # wrong on purpose


def test_a_result_has_the_matrix_of_its_evaluations() -> None:
    def result_of(evaluations: list[Any]) -> ExModelResult:
        learned = [Learned(evaluation=each) for each in evaluations]
        return ExModelResult(None, {}, {}, 0.0, None, None, learned)  # type: ignore[arg-type]  # no expert is asked

    result = result_of([[0.9, 0.1], [0.4, 0.8]])
    assert result.matrix.shape == (2, 2)
    assert (result.average_accuracy, result.forgetting) == (pytest.approx(0.6), pytest.approx(0.5))
    for wrong in ([], [0.5, 0.6]):
        with pytest.raises(ValueError, match="a list of accuracies"):
            _ = result_of(wrong).matrix
