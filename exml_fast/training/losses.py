"""What a student is asked to do."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast import ops

__all__ = ["mixed_cross_entropy", "softened_kl"]


def softened_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """τ² · KL(p ‖ q) of p = softmax(teacher / τ) and q = softmax(student / τ), mean over the rows.

    (Yin 2020, Eq. 1; Nayak 2021, Eq. 4.) The factor keeps the size of the gradient independent of τ (Hinton 2015,
    sec. 2).

    Args:
        teacher_logits, student_logits: (N, K); a gradient flows where they require one.
        mask: bool (N, K) or (K,): the logits that take part; all when None.
    """
    teacher_logits, student_logits = teacher_logits / temperature, student_logits / temperature
    if mask is not None:
        lowest = torch.finfo(student_logits.dtype).min
        teacher_logits = torch.where(mask, teacher_logits, lowest)
        student_logits = torch.where(mask, student_logits, lowest)
    log_p, log_q = teacher_logits.log_softmax(1), student_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, share: Tensor | None = None, others: Tensor | None = None
) -> Tensor:
    """Cross-entropy with labels (N,), mean over the rows; of mixed images with both labels by their shares.

    ``share`` (N,) weighs a row's own label, 1 − ``share`` the label in ``others`` (N,), by default the label of the
    row before (:func:`exml_fast.training.mixup.blended`).
    """
    if share is None:
        return ops.soft_cross_entropy(logits, labels)
    own = ops.soft_cross_entropy(logits, labels, reduction="none")
    other = ops.soft_cross_entropy(logits, labels.roll(1) if others is None else others, reduction="none")
    return (share * own + (1 - share) * other).mean()
