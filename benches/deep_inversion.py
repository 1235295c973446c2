"""DeepInversion on CIFAR-10: what an independent network says of the images, and what students learn from them alone.

    python benches/deep_inversion.py --cifar10 cifar10.npz --weights FOLDER
    python benches/deep_inversion.py --cifar10 cifar10.npz --weights FOLDER --quick --only agreement

The teacher is the published ResNet-20 (91.7 %), the judge the published ResNet-56, both from the files of
github.com/akamaster/pytorch_resnet_cifar10 in --weights. Real images only measure: no method sees any. The defaults are
far shorter than the paper's (2000 steps a batch, 48,750 steps of the student), as every row says; its figures are for
other networks (VGG-11-BN and ResNet-34 teachers) and stand in no row as ours to compare with.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write_results
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.evaluation import evaluate
from exml_fast.inversion import recipes
from exml_fast.models import CifarResNet
from exml_fast.storage import load_checkpoint

FILES_OF = {"agreement": "yin2020-cifar10-agreement.json", "students": "yin2020-cifar10-students.json"}
SPEC = xf.InputSpec(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
# From the recipe whose images other networks recognise, each method leaves out or adds its terms.
TERMS: dict[str, dict[str, Any]] = {
    "Noise (L)": {"bn": 0.0, "tv_l2": 0.0, "l2": 0.0},
    "DeepDream": {"bn": 0.0},
    "DeepInversion": {},
    "Adaptive DeepInversion": {"compete": 10.0},
}


def network(depth: int, weights: Path) -> nn.Module:
    """The published CIFAR-10 ResNet."""
    state = load_checkpoint(weights / FILES[depth])["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent right of uint8 images."""
    with torch.no_grad():
        right = [
            int((model(SPEC.normalize(x)).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return 100 * sum(right) / len(labels)


def recognised(args: argparse.Namespace, teacher: nn.Module, judge: nn.Module) -> list[dict[str, Any]]:
    """Table 2's question for CIFAR-10: does a network that was not asked agree?"""
    rows = []
    for name, recipe in (
        ("DeepDream", "deep_dream/cifar10"),
        ("DeepInversion, the paper's terms", "deep_inversion/cifar10"),
        ("DeepInversion, ours", "deep_inversion/cifar10-transferable"),
    ):
        chosen = recipes.get(recipe).replace(steps=args.steps, batch_size=min(256, 10 * args.per_class))
        result = xf.invert(teacher, None, args.per_class, chosen, SPEC, args.seed, args.device)
        found = evaluate(result, {"ResNet-56": judge, "ResNet-20 (teacher)": teacher})
        rows.append(
            {
                "cell": f"agreement/{name}", "ours": 100 * found.judges["ResNet-56"]["top1"],
                "teacher": 100 * result.summary["teacher_accuracy"], "paper": None, "images": len(result),
                "inception_score": found.judges["ResNet-56"]["inception_score"],
                "diversity": sum(found.diversity.values()) / len(found.diversity),
                "recipe": recipe, "steps": args.steps, "seconds": result.seconds,
                "images_per_second": result.summary["images_per_second"],
                "reduced": args.steps < 2000, "note": f"{args.steps} steps; the paper takes 2000",
            }
        )  # fmt: skip
        print(f"{name}: ResNet-56 recognises {rows[-1]['ours']:.1f} %, {result.seconds:.0f} s", flush=True)
        if args.grids is not None:
            result.save_grid(args.grids / f"{recipe.replace('/', '-')}.png", columns=10)
    return rows


def taught(args: argparse.Namespace, teacher: nn.Module, test: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Table 1's question: a fresh student, images alone."""
    rows = []
    config = xf.TransferConfig(
        steps=args.student_steps, batch_size=64, lr=0.1, schedule="cosine", rounds=args.rounds,
        generate_every=max(1, args.student_steps // args.rounds), per_round=args.per_round,
    )  # fmt: skip
    for name, terms in TERMS.items():
        if name not in args.methods:
            continue
        torch.manual_seed(args.seed)
        chosen = recipes.get("deep_inversion/cifar10-transferable").replace(steps=args.student_image_steps, **terms)
        started = time.perf_counter()
        result = xf.distill(
            teacher, CifarResNet(20), recipe=chosen, config=config, spec=SPEC, seed=args.seed, device=args.device,
            evaluate=lambda student: accuracy(student, *test),
        )  # fmt: skip
        rows.append(
            {
                "cell": f"student/{name}", "ours": result.evaluations[-1][1], "paper": None,
                "images": len(result.images),
                "agreement_on_images": 100 * result.history["agreement"][-1], "rounds": result.rounds,
                "seconds": time.perf_counter() - started, "reduced": True,
                "note": f"{args.student_steps} steps of the student, {len(result.images)} images of "
                f"{args.student_image_steps} steps; the paper takes 48750, 250,000 and 2000",
            }
        )  # fmt: skip
        print(f"student of {name}: {rows[-1]['ours']:.2f} %, {rows[-1]['seconds']:.0f} s", flush=True)
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz with x_test and y_test")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the published ResNets' files")
    parser.add_argument("--steps", type=int, default=400, help="of the images that the judge sees")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--student-steps", type=int, default=1200)
    parser.add_argument("--student-image-steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--per-round", type=int, default=128)
    parser.add_argument("--methods", nargs="*", default=list(TERMS), choices=list(TERMS), help="students to teach")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="some ten minutes on one core")
    parser.add_argument("--grids", type=Path, help="folder for pictures of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=list(FILES_OF), help="one of the two questions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.per_class, args.test_images = min(args.steps, 200), min(args.per_class, 10), 2000
        args.student_steps, args.student_image_steps, args.rounds, args.per_round = 200, 80, 4, 64
    for path in (args.cifar10, *(args.weights / name for name in FILES.values())):
        if not path.is_file():
            parser.error(f"{path} is missing")
    data = xf.data.load(str(args.cifar10)).test
    chosen = torch.linspace(0, len(data) - 1, min(args.test_images, len(data))).long()
    test = data.images[chosen], data.labels[chosen]
    teacher, judge = network(20, args.weights), network(56, args.weights)
    networks: list[dict[str, Any]] = [
        {"cell": f"network/{name}", "ours": accuracy(model, *test), "paper": None, "reduced": False,
         "note": f"on {len(chosen)} real test images"}
        for name, model in (("ResNet-20 (teacher)", teacher), ("ResNet-56 (judge)", judge))
    ]  # fmt: skip
    print(", ".join(f"{row['cell']}: {row['ours']:.2f} %" for row in networks), flush=True)
    if args.only != "students":
        write_results(args.results / FILES_OF["agreement"], networks + recognised(args, teacher, judge), args.device)
    if args.only != "agreement":
        write_results(args.results / FILES_OF["students"], networks + taught(args, teacher, test), args.device)


if __name__ == "__main__":
    main()
