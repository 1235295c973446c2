"""24,000 Data Impressions of LeNet-5, 1500 updates each (Nayak 2021, Table 1): the engine against the published style.

The benchmark times one update of a batch, in interleaved rounds, and computes the time of the whole from it. The
published style has batches of 100, the network in evaluation mode, weight gradients that are computed and discarded,
and Adam of torch. Times are CPU time of one thread, because other load on the machine changes it less than wall-clock
time.

python benches/impressions.py --json impressions-cpu.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import RESULTS, as_row, rotating, write_results
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.data import InputSpec
from exml_fast.engine import FrozenTeacher
from exml_fast.inversion.targets import class_similarity, dirichlet_mixture
from exml_fast.models import create

IMAGES, UPDATES, PUBLISHED_BATCH, TEMPERATURE = 24_000, 1500, 100, 20.0
SPEC = InputSpec(1, (32, 32), (0.0,), (1.0,))


def targets_of(model: nn.Module, batch: int) -> Tensor:
    return dirichlet_mixture(class_similarity(model), torch.arange(batch) % 10, (1.0, 0.1))


def published(model: nn.Module, batch: int) -> Callable[[], None]:
    target = targets_of(model, batch)
    x = torch.rand(batch, *SPEC.shape, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.001)

    def update() -> None:
        adam.zero_grad()
        loss = -(target * (model(x) / TEMPERATURE).log_softmax(1)).sum(1).mean()
        loss.backward()
        adam.step()

    return update


def engine(model: nn.Module, batch: int, precision: str) -> Callable[[], None]:
    target = targets_of(model, batch)
    teacher = FrozenTeacher(model, SPEC, precision=precision, batch_size=batch)
    x = torch.rand(batch, *SPEC.shape)
    first, second = torch.zeros_like(x), torch.zeros_like(x)

    def update() -> None:
        leaf = x.detach().requires_grad_()
        loss = ops.soft_cross_entropy(teacher(leaf)[0], target, TEMPERATURE, "sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        ops.adam_clip_(x, gradient, first, second, 1, 0.001)

    return update


def cpu_milliseconds(update: Callable[[], None]) -> float:
    start = time.process_time()
    update()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "impressions-cpu.json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for activation in ("tanh", "relu"):
        model = create("lenet5", activation=activation).eval()
        made: dict[str, tuple[int, Callable[[], None]]] = {
            "published": (PUBLISHED_BATCH, published(model, PUBLISHED_BATCH))
        }
        for batch in arguments.batches:
            for precision in ("float32", "bfloat16"):
                made[f"engine, {precision}, batch {batch}"] = (batch, engine(model, batch, precision))
        for _, update in made.values():
            update()
        clocks = {name: partial(cpu_milliseconds, update) for name, (_, update) in made.items()}
        timings = as_row(rotating(clocks, arguments.rounds))
        base = timings["published"]["median"] / PUBLISHED_BATCH
        for name, (batch, _) in made.items():
            each = timings[name]["median"] / batch
            rows.append(
                {
                    "activation": activation, "loop": name, "batch": batch, "update_cpu_ms": timings[name],
                    "cpu_minutes": round(each * IMAGES * UPDATES / 60e3, 2), "times_faster": round(base / each, 3),
                }
            )  # fmt: skip
            print(f"{activation} {name}: {rows[-1]['cpu_minutes']} min, {rows[-1]['times_faster']} x published")
    write_results(arguments.json, rows)


if __name__ == "__main__":
    main()
