"""Merges the weights of five experts of two classes each, by every method and with different images.

The accuracy is that of the merged network on all classes (class-incremental), and among the two classes of each task
(task-incremental). With --held-out, training images that the experts have not seen replace the test images. The
defaults of RegMean and ZipIt were chosen without it, on training images that the experts had seen.

python benches/merging.py --data digits --experts experts --seeds 0,1,2
python benches/merging.py --data mnist --batch-norm --experts experts --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from calibration import held_out
from measure import RESULTS, write_results
from torch import Tensor

from exml_fast.continual import (
    EnsembleAverage,
    ExpertStream,
    MultiHead,
    ParameterAverage,
    ReBasin,
    RegMean,
    ZipIt,
    stream_accuracy,
)
from exml_fast.continual.merging import Merged, MergeImages
from exml_fast.data import ImageData, load
from exml_fast.profiling import Meter
from exml_fast.reproduction.experts import experiences_of, train_experts
from exml_fast.reproduction.methods import merge_images
from exml_fast.reproduction.study_settings import SMALL_DATA, Settings

IMAGES = ("natural-fields", "pen-strokes", "model-inversion")
COUNT = 200
ALPHAS, BETAS = (0.1, 0.5, 0.9), (0.125, 1.0)
Predictor = EnsembleAverage | ParameterAverage | Merged


def methods(sweep: bool) -> Iterator[tuple[str, bool, Callable[[ExpertStream, Any], Predictor]]]:
    """Name, whether it uses images, and the method; with ``sweep`` for different settings."""
    yield "Ensemble Avg.", False, lambda stream, _: EnsembleAverage(stream)
    yield "Param. Avg.", False, lambda stream, _: ParameterAverage(stream)
    yield "Re-Basin, weights", True, lambda stream, images: ReBasin(stream, images)
    yield "Re-Basin, activations", True, lambda stream, images: ReBasin(stream, images, matching="activations")
    yield "RegMean", True, lambda stream, images: RegMean(stream, images)
    yield "ZipIt", True, lambda stream, images: ZipIt(stream, images)
    yield "ZipIt, trunk of two layers", True, lambda stream, images: ZipIt(stream, images, depth=2)
    if sweep:
        for alpha in ALPHAS:
            yield f"RegMean, α = {alpha}", True, lambda stream, images, a=alpha: RegMean(stream, images, alpha=a)
        for beta in BETAS:
            for alpha in (0.3, 1.0):
                yield (
                    f"ZipIt, α = {alpha}, β = {beta}", True,
                    lambda stream, images, a=alpha, b=beta: ZipIt(stream, images, alpha=a, beta=b),
                )  # fmt: skip


def measured(
    stream: ExpertStream, data: ImageData, sources: list[str], sweep: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each method and source of images; all methods have the same images."""
    images: dict[str, Tensor | list[Tensor]] = {}
    seconds = {"": 0.0}
    for source in sources:
        settings = Settings(merging=source, inversion=SMALL_DATA["inversion"])
        with Meter() as meter:
            drawn = MergeImages(merge_images(settings), COUNT, seed)
            of_each = [drawn.of(number, expert) for number, expert in enumerate(stream)]
        images[source] = of_each if drawn.from_experts else of_each[0]
        seconds[source] = meter.seconds
    for name, uses_images, make in methods(sweep):
        for source in sources if uses_images else [""]:
            with Meter() as meter:
                predictor = make(stream, images.get(source))
            row = {"name": name, "images": source, "image_seconds": seconds[source], "seconds": meter.seconds}
            row["peak_mb"] = meter.peak_mb
            row["accuracy"] = 100 * stream_accuracy(predictor, data, stream.experiences)
            if not isinstance(predictor, EnsembleAverage):
                told = MultiHead(predictor.expert, stream.experiences)
                row["task_accuracy"] = 100 * stream_accuracy(told, data, stream.experiences)
            yield row


def summarised(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means and deviations over the seeds."""
    rows = []
    for same in zip(*runs, strict=True):
        row = {"name": same[0]["name"], "images": same[0]["images"], "seeds": len(same)}
        for key in ("accuracy", "task_accuracy"):
            values = [each[key] for each in same if key in each]
            if values:
                deviation = statistics.stdev(values) if len(values) > 1 else None
                row |= {key: round(statistics.mean(values), 2), f"{key}_std": deviation and round(deviation, 2)}
        for key in ("image_seconds", "seconds"):
            row[key] = round(statistics.median(each[key] for each in same), 2)
        row["peak_mb"] = round(max(each["peak_mb"] for each in same), 1)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root")
    parser.add_argument("--experts", type=Path, required=True, help="Folder of experts; missing ones are trained.")
    parser.add_argument("--batch-norm", action="store_true", help="LeNet-5 with BatchNorm.")
    parser.add_argument("--held-out", type=int, default=0, help="Number of training images that replace the test set.")
    parser.add_argument("--images", default=",".join(IMAGES), help="Sources of images, separated by commas.")
    parser.add_argument("--seeds", default="0", help="Seeds, separated by commas.")
    parser.add_argument("--sweep", action="store_true", help="Also other settings of RegMean and ZipIt.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(load(arguments.data, arguments.data_root), arguments.held_out)
    settings = Settings(data=arguments.data)
    experts = settings.resolved_experts()
    if arguments.batch_norm:
        experts = dataclasses.replace(experts, arguments={"batch_norm": True})
    runs = []
    for seed in map(int, arguments.seeds.split(",")):
        kind = "batch-norm" if arguments.batch_norm else "plain"
        folder = arguments.experts / f"{data.name}-{arguments.held_out}-{kind}-{seed}"
        stream = train_experts(experiences_of(data, settings, seed), folder, experts, seed=seed)
        runs.append(list(measured(stream, data, arguments.images.split(","), arguments.sweep, seed)))
        for row in runs[-1]:
            print(f"seed {seed}  {row['name']:28} {row['images']:16} {row['accuracy']:5.1f} %", flush=True)
    suffix = "-batch-norm" if arguments.batch_norm else ""
    write_results(arguments.json or RESULTS / f"merging-{data.name}{suffix}.json", summarised(runs))


if __name__ == "__main__":
    main()
