"""Times of networks side by side."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from exml_fast.transfer import speed


def test_times_are_medians_of_interleaved_rounds() -> None:
    order = list[str]()

    def slow(images: Tensor) -> Tensor:
        order.append("slow")
        time.sleep(0.01)
        return images

    def fast(images: Tensor) -> Tensor:
        order.append("fast")
        return images

    found = speed({"slow": slow, "fast": fast}, torch.zeros(1), rounds=4)
    assert order[6:] == ["slow", "fast", "fast", "slow"] * 2  # after three calls of each
    assert found["slow"]["low"] <= found["slow"]["median"] <= found["slow"]["high"]
    assert found["slow"]["median"] >= 10 > found["fast"]["median"]


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_round_is_not_enough(rounds: int) -> None:
    with pytest.raises(ValueError, match="rounds"):
        speed({"one": torch.relu}, torch.zeros(1), rounds=rounds)
