"""DeepInversion on CIFAR-10: how an independent network classifies the images, and what students learn from them.

    python benches/deep_inversion.py agreement students --cifar10 cifar10.npz --weights FOLDER
    python benches/deep_inversion.py agreement --cifar10 cifar10.npz --weights FOLDER --quick

"agreement" compares recipes, and "ablation" removes the parts of our recipe one by one. The teacher is the published
ResNet-20 (91.7 %) and the judge the published ResNet-56; --weights is a folder with both files of
github.com/akamaster/pytorch_resnet_cifar10. "students" trains students of that teacher. "table1" trains students of the
paper's networks, which this command trains:

    exml-fast train-experts --data cifar10 --scenario joint --architecture vgg11_bn_cifar --epochs 200 --lr 0.1 \\
      --batch-size 128 --schedule onecycle --augment shift=4 --augment flip=0.5 --out vgg11
    python benches/deep_inversion.py table1 --cifar10 cifar10.npz --teacher vgg11/expert_01

Real images are used only to measure accuracy. The defaults take far fewer steps than the paper (2000 for a batch of
images, 48,750 for a student), and every row says so; --paper-length takes as many and needs a GPU. Students learn from
our recipes, with mixup and a cosine schedule. With --published they learn from the paper's recipes, without mixup, and
the learning rate falls to a tenth after every 100 of 250 epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write_results
from torch import Tensor, nn
from torchvision.utils import save_image

import exml_fast as xf
from exml_fast.engine import PRECISIONS
from exml_fast.evaluation import evaluate
from exml_fast.inversion import recipes
from exml_fast.models import CifarResNet, create
from exml_fast.storage import load_checkpoint

FILES_OF = {
    "agreement": "yin2020-cifar10-agreement.json",
    "ablation": "yin2020-cifar10-ablation.json",
    "students": "yin2020-cifar10-students.json",
    "table1": "yin2020-table1-{teacher}-{student}.json",
}
SPEC = xf.InputSpec(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
OURS = "deep_inversion/cifar10-transferable"
# The images that the judge classifies: a recipe, and changes of its terms.
RECIPES_OF: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "agreement": {
        "DeepDream": ("deep_dream/cifar10", {}),
        "DeepInversion, the paper's terms": ("deep_inversion/cifar10", {}),
        "DeepInversion, ours": (OURS, {}),
    },
    "ablation": {
        "ours": (OURS, {}),
        "steps on pixels, not on a spectrum": (OURS, {"spectrum": 0.0, "correlation": 0.0, "init_scale": 1.0}),
        "the paper's distance": (OURS, {"bn_distance": "l2", "bn_average": False, "bn": 0.3}),
        "no statistics": (OURS, {"bn": 0.0}),
        "no crop": (OURS, {"crop": (1.0, 1.0)}),
        "no black border": (OURS, {"border": "wrap"}),
        "priors over the batch, of the augmented images": (
            OURS,
            # The norm over a batch of 250 images is √250 times that of one image, so the weights are divided by it.
            {"tv_scope": "batch", "tv_l2": 0.03 / 250**0.5, "norm_scope": "batch", "l2": 5e-5 / 250,
             "prior_augmented": True},
        ),
    },
}  # fmt: skip
# The methods of Table 1: cross-entropy alone, our recipe without statistics, with statistics, and with competition.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Noise (L)": ("noise/cifar10", {}),
    "DeepDream": (OURS, {"bn": 0.0}),
    "DeepInversion": (OURS, {}),
    "Adaptive DeepInversion": (f"adaptive_{OURS}", {}),
}
PUBLISHED = {
    "Noise (L)": "noise/cifar10",
    "DeepDream": "deep_dream/cifar10",
    "DeepInversion": "deep_inversion/cifar10",
    "Adaptive DeepInversion": "adaptive_deep_inversion/cifar10",
}
# Table 1: teacher and student, accuracy in %.
PAPER: dict[tuple[str, str], dict[str, float]] = {
    (teacher, student): dict(zip(METHODS, figures, strict=True))
    for teacher, student, figures in (
        ("vgg11_bn_cifar", "vgg11_bn_cifar", (13.55, 36.59, 84.16, 90.78)),
        ("vgg11_bn_cifar", "resnet18_cifar", (13.45, 39.67, 83.82, 90.36)),
        ("resnet34_cifar", "resnet18_cifar", (13.61, 29.98, 91.43, 93.26)),
    )
}
# App. A.1: 250 epochs of 195 steps, with a round of images every 50 steps; for ResNet-34 two rounds an epoch.
PAPER_ROUNDS = {"resnet34_cifar": 500}
PAPER_LENGTH = {"student_steps": 48750, "student_image_steps": 2000, "per_round": 256, "student_batch": 256}


def network(depth: int, weights: Path) -> nn.Module:
    """The published CIFAR-10 ResNet of this depth."""
    state = load_checkpoint(weights / FILES[depth])["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, spec: xf.InputSpec = SPEC) -> float:
    """Accuracy on uint8 images, in percent."""
    device = next(model.parameters()).device
    with torch.no_grad():
        right = [
            int((model(spec.normalize(x).to(device)).argmax(1).cpu() == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return 100 * sum(right) / len(labels)


def recognised(args: argparse.Namespace, question: str, teacher: nn.Module, judge: nn.Module) -> list[dict[str, Any]]:
    """As Table 2, for CIFAR-10: does a network recognise images that were made from another network?"""
    rows = []
    for name, (recipe, changes) in RECIPES_OF[question].items():
        chosen = recipes.get(recipe)
        steps = min(args.steps, chosen.optimisation.steps)
        chosen = chosen.replace(steps=steps, batch_size=min(256, 10 * args.per_class), **changes)
        result = xf.invert(
            teacher, None, per_class=args.per_class, recipe=chosen, spec=SPEC, seed=args.seed, device=args.device
        )
        found = evaluate(result, {"ResNet-56": judge, "ResNet-20 (teacher)": teacher})
        rows.append(
            {
                "cell": f"{question}/{name}", "ours": 100 * found.judges["ResNet-56"]["top1"],
                "teacher": 100 * result.summary["teacher_accuracy"], "paper": None, "images": len(result),
                "inception_score": found.judges["ResNet-56"]["inception_score"],
                "diversity": sum(found.diversity.values()) / len(found.diversity),
                "recipe": recipe, "changes": changes, "steps": steps, "seconds": result.seconds,
                "images_per_second": result.summary["images_per_second"],
                "reduced": steps < 2000, "note": f"{steps} steps; the paper takes 2000",
            }
        )  # fmt: skip
        print(f"{name}: ResNet-56 recognises {rows[-1]['ours']:.1f} %, {result.seconds:.0f} s", flush=True)
        if args.grids is not None:
            # The classes alternate, so the first 50 images are five rows of ten classes. Shown at twice the size.
            shown = nn.functional.interpolate(result.pixels()[:50], scale_factor=2)
            save_image(shown, args.grids / f"{question}-{len(rows)}.png", nrow=10, pad_value=1.0)
    return rows


def taught(
    args: argparse.Namespace,
    teacher: nn.Module,
    spec: xf.InputSpec,
    architectures: tuple[str, str],
    test: tuple[Tensor, Tensor],
    done: Callable[[list[dict[str, Any]]], None],
) -> None:
    """As Table 1: an untrained student learns from images alone. ``done`` is called with all rows after each method."""
    rows: list[dict[str, Any]] = []
    paper_rounds = PAPER_ROUNDS.get(architectures[0], 975)
    paper_images, rounds = 256 * paper_rounds, args.rounds or paper_rounds
    steps = args.student_steps
    config = xf.Distillation().replace(
        steps=steps, batch_size=args.student_batch, lr=args.lr, rounds=rounds, generate_every=max(1, steps // rounds),
        per_round=args.per_round, precision=args.precision,
    )  # fmt: skip
    if args.published:
        config = config.replace(schedule="step", decay_every=max(1, steps * 100 // 250))
    else:
        config = config.replace(schedule="cosine", warmup=steps // 20, mixup=1.0, temperature=8.0)
    for name in args.methods:
        recipe, changes = (PUBLISHED[name], {}) if args.published else METHODS[name]
        torch.manual_seed(args.seed)
        student = create(architectures[1], num_classes=10)
        chosen = recipes.get(recipe).replace(steps=args.student_image_steps, batch_size=256, **changes)
        started = time.perf_counter()
        result = xf.distill(
            teacher, student, recipe=chosen, config=config, spec=spec, seed=args.seed, device=args.device,
            evaluate=lambda student: accuracy(student, *test, spec),
        )  # fmt: skip
        rows.append(
            {
                "cell": f"student/{name}", "teacher": architectures[0], "student": architectures[1],
                "ours": result.evaluations[-1][1], "paper": PAPER.get(architectures, {}).get(name),
                "images": len(result.images), "agreement_on_images": 100 * result.history["agreement"][-1],
                "rounds": result.rounds, "seconds": time.perf_counter() - started, **result.seconds,
                "published": args.published, "recipe": chosen.to_dict(), "config": config.to_dict(),
                "reduced": args.student_steps < 48750 or args.student_image_steps < 2000
                or len(result.images) < paper_images,
                "note": f"{args.student_steps} steps of the student, {len(result.images)} images of "
                f"{args.student_image_steps} steps; the paper takes 48750, {paper_images} and 2000",
            }
        )  # fmt: skip
        print(f"student of {name}: {rows[-1]['ours']:.2f} %, {rows[-1]['seconds']:.0f} s", flush=True)
        done(rows)


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=list(FILES_OF))
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz with x_test and y_test")
    parser.add_argument("--weights", type=Path, help="folder of the files of the published ResNets")
    parser.add_argument("--teacher", type=Path, help="folder of the expert that is the teacher of table1")
    parser.add_argument("--student", help="architecture of the student of table1; default: the teacher's")
    parser.add_argument(
        "--steps", type=int, default=400, help="greatest number of steps for the images of agreement and ablation"
    )
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--student-steps", type=int, default=1200)
    parser.add_argument("--student-batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of the student; a VGG needs a smaller one")
    parser.add_argument("--student-image-steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--per-round", type=int, default=128)
    parser.add_argument(
        "--precision", default="bfloat16", choices=PRECISIONS, help="precision of the student's training"
    )
    parser.add_argument(
        "--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="methods that students learn from"
    )
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="fewer steps and images; about ten minutes on one core")
    parser.add_argument("--published", action="store_true", help="use the paper's recipes and schedule instead of ours")
    parser.add_argument(
        "--paper-length", action="store_true", help="train students as long as the paper does; needs a GPU"
    )
    parser.add_argument("--grids", type=Path, help="folder for pictures of the first five images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.per_class, args.test_images = min(args.steps, 200), min(args.per_class, 10), 2000
        args.student_steps, args.student_image_steps, args.rounds, args.per_round = 200, 80, 4, 64
    if args.paper_length:
        vars(args).update(PAPER_LENGTH, rounds=None)
    published = [args.weights / name for name in FILES.values()] if args.weights is not None else []
    for path in (args.cifar10, *published):
        if not path.is_file():
            parser.error(f"{path} is missing")
    if args.weights is None and set(args.questions) != {"table1"}:
        parser.error("--weights is missing")
    if args.teacher is None and "table1" in args.questions:
        parser.error("--teacher is missing")
    data = xf.data.load(str(args.cifar10)).test
    chosen = torch.linspace(0, len(data) - 1, min(args.test_images, len(data))).long()
    test = data.images[chosen], data.labels[chosen]

    def of_networks(networks: dict[str, nn.Module], spec: xf.InputSpec = SPEC) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"cell": f"network/{name}", "ours": accuracy(model, *test, spec), "paper": None, "reduced": False,
             "note": f"on {len(chosen)} real test images"}
            for name, model in networks.items()
        ]  # fmt: skip
        print(", ".join(f"{row['cell']}: {row['ours']:.2f} %" for row in rows), flush=True)
        return rows

    def write(question: str, rows: list[dict[str, Any]], **names: str) -> None:
        path = args.results / FILES_OF[question].format(**names)
        if args.published and question not in RECIPES_OF:
            path = path.with_stem(f"{path.stem}-published")
        write_results(path, rows, args.device)

    if args.weights is not None:
        teacher, judge = network(20, args.weights), network(56, args.weights)
        networks = of_networks({"ResNet-20 (teacher)": teacher, "ResNet-56 (judge)": judge})
    for question in RECIPES_OF:
        if question in args.questions:
            write(question, networks + recognised(args, question, teacher, judge))
    if "students" in args.questions:
        pair = ("cifar_resnet", "cifar_resnet")
        taught(args, teacher, SPEC, pair, test, lambda rows: write("students", networks + rows))
    if "table1" in args.questions:
        expert = xf.Expert.load(args.teacher)
        name = expert.card.architecture
        pair, spec = (name, args.student or name), expert.card.input_spec
        found = of_networks({f"{name} (teacher)": expert.model}, spec)
        found[0]["training"] = expert.card.training
        teacher_name, student_name = (each.removesuffix("_cifar") for each in pair)
        taught(
            args, expert.model, spec, pair, test,
            lambda rows: write("table1", found + rows, teacher=teacher_name, student=student_name),
        )  # fmt: skip


if __name__ == "__main__":
    main()
