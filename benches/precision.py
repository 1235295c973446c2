"""Whether images made in bfloat16 are as good as those made in float32: DeepInversion of a CIFAR-10 ResNet-20.

    python benches/precision.py --weights FOLDER        # benches/results/precision-cpu.json

FOLDER holds the published weights resnet20-*.th and resnet56-*.th of github.com/akamaster/pytorch_resnet_cifar10.
For each seed and precision: how many images the ResNet-20 that they are made from, and a ResNet-56 that played no part,
classify as asked, and the objective at the last step.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import nn

from exml_fast import InputSpec, Synthesizer, recipes
from exml_fast.cli.provenance import provenance
from exml_fast.models import CifarResNet
from exml_fast.storage import save_json

SPEC = InputSpec(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published(folder: Path, depth: int) -> nn.Module:
    """The network of ``depth`` with its weights."""
    (path,) = folder.glob(f"resnet{depth}-*.th")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    teacher, judge = published(args.weights, 20), published(args.weights, 56).to(args.device)
    recipe = recipes.get("deep_inversion/cifar10").replace(steps=args.steps, flip=True, clip="valid", tv_l2=1e-4)
    labels = torch.arange(10).repeat(args.per_class)
    rows = []
    for precision in ("float32", "bfloat16"):
        found: dict[str, list[float]] = {"teacher": [], "judge": [], "objective": [], "seconds": []}
        for seed in range(args.seeds):
            result = Synthesizer(teacher, SPEC, recipe, device=args.device, precision=precision).run(labels, seed=seed)
            with torch.no_grad():
                agrees = judge(result.images.to(args.device)).argmax(1).cpu() == labels
            found["teacher"].append(100 * result.summary["teacher_accuracy"])
            found["judge"].append(100 * float(agrees.double().mean()))
            found["objective"].append(float(result.history["loss"][-1]))
            found["seconds"].append(result.seconds)
        row = {"precision": precision, "steps": args.steps, "images": len(labels), "seeds": args.seeds}
        for name, values in found.items():
            row[name] = round(statistics.mean(values), 4)
            row[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        rows.append(row)
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    path = args.json or Path(__file__).parent / "results" / f"precision-{torch.device(args.device).type}.json"
    command = f"python benches/precision.py --weights FOLDER --steps {args.steps} --per-class {args.per_class}"
    origin = provenance(args.device, f"{command} --seeds {args.seeds} --device {args.device}")
    save_json(path, {**origin, "recipe": recipe.to_dict(), "rows": rows})
    print(path)


if __name__ == "__main__":
    main()
