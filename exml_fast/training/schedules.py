"""Learning rates as functions of the step."""

from __future__ import annotations

import math

from exml_fast.validation import nearest

__all__ = ["SCHEDULES", "learning_rate", "one_cycle"]

SCHEDULES = ("constant", "step", "cosine", "onecycle")


def learning_rate(
    schedule: str,
    peak: float,
    step: int,
    steps: int,
    *,
    warmup: int = 0,
    decay: float = 0.1,
    decay_every: int = 19500,
) -> float:
    """Rate of step 0 … ``steps`` − 1.

    Args:
        schedule: "constant"; "step" (times ``decay`` every ``decay_every`` steps); "cosine" (to zero); "onecycle"
            (:func:`one_cycle`).
        warmup: steps over which the rate first rises linearly; not of "onecycle", which has a rise of its own.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}{nearest(schedule, SCHEDULES)}"
        )
    if schedule == "onecycle":
        return one_cycle(peak, step, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "step":
        return peak * decay ** (step // decay_every)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return peak


def one_cycle(peak: float, step: int, steps: int) -> float:
    """Cosine from ``peak`` / 25 up in the first 30 % of ``steps``, cosine down to ``peak`` / 10,000 (Smith 2018)."""
    rise = max(1, round(0.3 * steps))
    low, at = peak / 25, step / rise
    if step >= rise:
        low, at = peak / 1e4, 1 - (step - rise) / max(1, steps - 1 - rise)
    return low + (peak - low) * 0.5 * (1 - math.cos(math.pi * at))
