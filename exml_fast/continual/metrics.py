"""Figures of a stream from its matrix of accuracies: entry (i, j) is the accuracy on experience j after expert i.

Entries that were not measured are NaN and left out. With one test set for all experiences the matrix has one column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["average_accuracy", "forgetting"]


def average_accuracy(matrix: Tensor | Sequence[Sequence[float]]) -> float:
    """Mean over the experiences of the accuracy after the last expert; NaN for an empty row."""
    last = _checked(matrix)[-1]
    return float(last[last.isfinite()].mean())


def forgetting(matrix: Tensor | Sequence[Sequence[float]]) -> float:
    """Mean over the experiences of the best accuracy after an earlier expert minus that after the last.

    Chaudhry 2018, Eq. 3, over the experiences before the last expert's own; negative where accuracy increased. For a
    single column (one test set for all) the best accuracy minus the last. NaN after one expert.
    """
    values = _checked(matrix)
    rows, columns = values.shape
    drops = []
    for j in range(columns if columns == 1 else min(columns, rows - 1)):
        # Accuracy on an experience before its own expert is chance, and does not count.
        earlier = values[min(j, rows - 1) : rows - 1, j]
        if bool(values[-1, j].isfinite()) and bool(earlier.isfinite().any()):
            drops.append(earlier[earlier.isfinite()].max() - values[-1, j])
    return float(torch.stack(drops).mean()) if drops else float("nan")


def _checked(matrix: Tensor | Sequence[Sequence[float]]) -> Tensor:
    values = torch.as_tensor(matrix, dtype=torch.float64)
    if values.dim() != 2 or values.numel() == 0:
        raise ValueError(f"matrix must be (experts, experiences), got shape {tuple(values.shape)}")
    return values
