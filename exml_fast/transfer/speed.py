"""How fast networks are, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from exml_fast.validation import require_count

__all__ = ["speed"]


def speed(
    networks: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int = 21
) -> dict[str, dict[str, float]]:
    """Milliseconds of a call of each network, by name: "median", and the quartiles "low" and "high".

    All networks run once in each round, in an order that changes from round to round, so that other load on the machine
    meets all alike.

    Args:
        networks: functions of images.
        images: (N, C, H, W), on the networks' device.
        rounds: at least 2.

    Raises:
        ValueError: for fewer rounds, or no network.
    """
    require_count("rounds", rounds)
    if rounds < 2 or not networks:
        raise ValueError(f"speed needs networks and at least 2 rounds, got {len(networks)} networks, {rounds} rounds")
    names, times = list(networks), {name: list[float]() for name in networks}
    with torch.no_grad():
        for run in networks.values():
            for _ in range(3):
                run(images)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(_milliseconds(networks[name], images))
    found = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: {"median": q[1], "low": q[0], "high": q[2]} for name, q in found.items()}


def _milliseconds(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    begun = time.perf_counter()
    run(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return 1e3 * (time.perf_counter() - begun)
