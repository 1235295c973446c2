"""What a setting may be; True and False are no numbers."""

from __future__ import annotations

import math

__all__ = ["is_count", "is_number"]


def is_number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, least: int = 1) -> bool:
    """An integer of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
