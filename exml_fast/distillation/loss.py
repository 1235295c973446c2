"""What a student is asked to do."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["divergence"]


def divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² KL(p ‖ q) of p = softmax(teacher / τ) and q = softmax(student / τ), mean over the rows (Yin 2020, Eq. 1).

    Both (N, K); a scalar. The factor keeps the size of the gradient independent of τ (Hinton 2015, sec. 2).
    """
    p = F.log_softmax(teacher_logits / temperature, 1)
    q = F.log_softmax(student_logits / temperature, 1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
