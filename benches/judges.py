"""Networks that judge synthetic CIFAR-10 images. Their families differ from the teacher's, and no search may see them.

    python benches/judges.py --cifar10 cifar10.npz --judges judges

trains the judges that are missing in the folder, on the 50,000 real training images: about 20 minutes of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models import DenseNet

import exml_fast as xf
from exml_fast.continual.train import train_expert
from exml_fast.data import ImageData
from exml_fast.models import register


class Judge(NamedTuple):
    """An architecture by its name, and how long it is trained."""

    architecture: str
    arguments: dict[str, Any]
    epochs: int


def small_densenet(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """DenseNet (Huang 2017) of three blocks for 32×32 images, with 0.34 million parameters."""
    model = DenseNet(growth_rate=40, block_config=(2, 3, 3), num_init_features=64, bn_size=2, num_classes=num_classes)
    model.features.conv0 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.features.pool0 = nn.MaxPool2d(2)
    return model


register("small_densenet", small_densenet, replace=True)

JUDGES = {
    "VGG-11-BN": Judge("vgg11_bn_cifar", {"width": 24}, 9),
    "DenseNet": Judge("small_densenet", {}, 8),
}
# Common settings of a short run; nothing here was tuned.
TRAINING: dict[str, Any] = {
    "lr": 0.1, "batch_size": 128, "schedule": "onecycle", "precision": "bfloat16",
    "augmentation": {"shift": 4, "flip": 0.5},
}  # fmt: skip


def judges(folder: Path, data: ImageData | None, names: list[str] | None = None) -> dict[str, xf.Expert]:
    """The judges by name. A judge without a folder of its own is trained on ``data`` and saved; FileNotFoundError
    if ``data`` is None."""
    found = {}
    for name in names or JUDGES:
        path = folder / JUDGES[name].architecture
        if not (path / "card.json").is_file():
            if data is None:
                raise FileNotFoundError(f"{path} is missing: train the judges with benches/judges.py")
            _trained(JUDGES[name], data, path).save(path)
        found[name] = xf.Expert.load(path)
    return found


def _trained(judge: Judge, data: ImageData, path: Path) -> xf.Expert:
    def progress(stage: str, epoch: int, epochs: int, terms: dict[str, float]) -> None:
        print(f"{judge.architecture}: epoch {epoch} of {epochs}, loss {terms['loss']:.3f}", flush=True)

    return train_expert(
        data, architecture=judge.architecture, arguments=judge.arguments, epochs=judge.epochs, seed=0,
        progress=progress, checkpoint_dir=path.with_suffix(".checkpoint"), **TRAINING,
    ).expert  # fmt: skip


def main() -> None:
    """Train the judges that are missing; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--judges", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--names", nargs="*", choices=list(JUDGES), help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, expert in judges(args.judges, xf.data.load(str(args.cifar10)), args.names).items():
        print(f"{name}: {expert.card.training}", flush=True)


if __name__ == "__main__":
    main()
