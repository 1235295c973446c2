"""Lower bounds for the time of one step of inversion on this machine, next to the measured time.

    python benches/roofline.py                    # compares with benches/results/inversion-cpu.json, if it exists
    python benches/roofline.py --device cuda

*convolutions*, *bare* and *engine* are of that file. *ideal* is computed:

The time of a layer is the larger of two times: to compute (its FLOPs at the rate of a large matrix product) and to move
data (its bytes at the bandwidth of a large copy). The bound is the sum over the layers:
- convolution and linear layer: forward and input gradient, with 2 FLOPs for a multiply-add. Forward reads x and the
  weights and writes y; backward reads the gradient of y and the weights and writes the gradient of x.
- BatchNorm, fused with its activation and statistics: forward reads x and writes y; backward reads x and the gradient
  of y and writes the gradient of x. Activations of a network with BatchNorm count as fused. Additions are omitted.
- other modules (pooling): read and write once in each direction.
- images: shift and flip with their adjoint, the prior forward and backward, Adam and the clip, in float32.

The engine may be faster than *ideal* in two cases: activations that stay in the cache move faster, and on a CPU
Winograd's algorithm needs only a quarter of the multiplications of a 3x3 convolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inversion_contenders import DTYPES
from inversion_teachers import TEACHERS, calibrate
from measure import RESULTS, milliseconds, write_results
from torch import Tensor, nn

from exml_fast.engine.statistics import bn_layers
from exml_fast.storage import load_json

BYTES = {"float32": 4, "bfloat16": 2}
IMAGE_PASSES = 4 + 3 + 7
"""Passes over the images: augmentation 4, prior 3 (x; x and its gradient), Adam 7 (x, g, m, v; x, m, v)."""
FREE = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.GELU, nn.Tanh)


@dataclass(frozen=True)
class Cost:
    """Cost of one layer, forward and backward."""

    name: str
    flops: int
    elements: int
    """Count of numbers read and written."""


def costs(model: nn.Module, images: Tensor) -> list[Cost]:
    """The cost of every layer that runs, in order."""
    found: list[Cost] = []
    norms = {layer for _, layer in bn_layers(model)}

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            x, flops = args[0].numel(), 0
            elements = 2 * (x + y.numel())
            if isinstance(layer, nn.Conv2d | nn.Linear):
                elements += 2 * layer.weight.numel()
                # Each output is a dot product as long as the weights of one output channel.
                flops = 4 * y.numel() * layer.weight[0].numel()
            elif layer in norms:
                elements += x
            found.append(Cost(name, flops, elements))

        return hook

    inside_norm = {m for layer in norms for m in layer.modules() if m is not layer}
    skipped = (*FREE, *ACTIVATIONS) if norms else FREE
    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if module in norms or isinstance(module, nn.Conv2d) or not (list(module.children()) or module in inside_norm)
        if not isinstance(module, skipped)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Machine:
    """Rates measured on this machine."""

    bytes_per_s: float
    flops_per_s: dict[str, float]


def best(call: Callable[[], Any], device: str, rounds: int) -> float:
    """Seconds of the fastest call, which other load on the machine disturbs least."""
    for _ in range(2):
        call()
    return min(milliseconds(call, device) for _ in range(rounds)) / 1e3


def measured(device: str) -> Machine:
    size = 2**28 if device == "cuda" else 2**26
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / best(lambda: target.copy_(source), device, 10)
    n = 8192 if device == "cuda" else 2048
    flops = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        flops[name] = 2 * n**3 / best(lambda a=a, b=b: a @ b, device, 5)
    return Machine(bandwidth, flops)


def ideal(layers: list[Cost], images: int, machine: Machine, dtype: str) -> dict[str, float]:
    """GFLOP and MB of a step; milliseconds to compute, to move data, and the sum of the larger one of each layer."""
    moved = [layer.elements * BYTES[dtype] for layer in layers]
    around = images * IMAGE_PASSES * BYTES["float32"]
    compute = [layer.flops / machine.flops_per_s[dtype] for layer in layers]
    memory = [count / machine.bytes_per_s for count in moved]
    bound = sum(map(max, compute, memory)) + around / machine.bytes_per_s
    return {
        "gflop": sum(layer.flops for layer in layers) / 1e9,
        "mb": (sum(moved) + around) / 1e6,
        "compute_ms": sum(compute) * 1e3,
        "memory_ms": (sum(memory) + around / machine.bytes_per_s) * 1e3,
        "ideal_ms": bound * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="default: the number that PyTorch chooses")
    parser.add_argument("--measured", type=Path, help="default: benches/results/inversion-DEVICE.json")
    parser.add_argument("--json", type=Path, help="file for the rows; default: none")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    path = args.measured or RESULTS / f"inversion-{args.device}.json"
    results = load_json(path)["rows"] if path.exists() else []
    steps = {(row["teacher"], row["dtype"], row["batch"]): row for row in results if "engine_ms" in row}

    machine = measured(args.device)
    rates = ", ".join(f"{value / 1e9:.0f} GFLOP/s {name}" for name, value in machine.flops_per_s.items())
    print(f"copy {machine.bytes_per_s / 1e9:.1f} GB/s, matrix product {rates}")
    rows: list[dict[str, Any]] = []
    for name in args.teachers:
        teacher = TEACHERS[name]
        batch = teacher.cuda_batch if args.device == "cuda" else teacher.batch
        torch.manual_seed(0)
        model, weights = teacher.build()
        if weights.startswith("random"):
            calibrate(model, teacher)
        model.eval().to(args.device)
        images = torch.randn(batch, *teacher.spec.shape, device=args.device)
        layers = costs(model, images)
        for dtype in DTYPES:
            row: dict[str, Any] = {"teacher": name, "batch": batch, "device": args.device, "dtype": dtype}
            row |= {key: round(value, 3) for key, value in ideal(layers, images.numel(), machine, dtype).items()}
            step = steps.get((name, dtype, batch), {})
            row |= {key: step.get(key) for key in ("convolutions_ms", "bare_ms", "engine_ms")}
            rows.append(row)
    header = ["teacher", "dtype", "GFLOP", "MB", "compute ms", "memory ms", "ideal ms", "convolutions ms", "bare ms"]
    header += ["engine ms", "ideal/engine"]
    lines = [header]
    for row in rows:
        engine = row["engine_ms"]
        keys = ("gflop", "mb", "compute_ms", "memory_ms", "ideal_ms", "convolutions_ms", "bare_ms", "engine_ms")
        numbers = [row[key] for key in keys]
        share = "–" if engine is None else f"{row['ideal_ms'] / engine:.0%}"
        cells = ["–" if value is None else f"{value:.1f}" for value in numbers]
        lines.append([f"{row['teacher']} b{row['batch']}", row["dtype"], *cells, share])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print("\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines))
    if args.json is not None:
        write_results(args.json, rows, args.device)


if __name__ == "__main__":
    main()
