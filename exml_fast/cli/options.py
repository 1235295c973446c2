"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exml_fast.data.sets import NAMES
from exml_fast.progress import require_tensorboard

__all__ = [
    "Architecture",
    "ArchitectureArgument",
    "Data",
    "DataRoot",
    "Device",
    "Epochs",
    "Input",
    "Json",
    "Judge",
    "Layer",
    "OneThread",
    "Overwrite",
    "Page",
    "Parts",
    "PerStep",
    "Png",
    "Real",
    "Resume",
    "Scenario",
    "Seed",
    "Statistics",
    "StatisticsCount",
    "TensorBoardFolder",
    "Threads",
    "Watch",
    "Weights",
]

Weights = Annotated[str, typer.Option(help="DEFAULT, a torchvision weights name, a local file, or random.")]
ArchitectureArgument = Annotated[
    list[str] | None, typer.Option("--argument", metavar="NAME=VALUE", help="Argument of the architecture; repeatable.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="JSON", help="Channels, size, mean and std, if not those of the network.",
        show_default=False,
    ),
]  # fmt: skip


Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<n>.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice if not given.")]
OneThread = Annotated[
    int,
    typer.Option(
        min=1,
        help="CPU threads. One is best for small networks: on a busy machine several threads wait for each other.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an unfinished run in --out (a finished run is always replaced).")
]
Data = Annotated[str, typer.Option(help=f"{', '.join(NAMES)}, a .npz file or an image folder.")]
DataRoot = Annotated[
    str | None,
    typer.Option(
        help="Folder of downloaded data sets and of core50_128x128.", envvar="EXML_FAST_DATA", show_envvar=True
    ),
]
Scenario = Annotated[str, typer.Option(help="joint, new-classes, multi-task or new-instances.")]
PerStep = Annotated[
    str,
    typer.Option(
        help="Number of classes of each expert in new-classes and multi-task; 10,5 means ten, then five each."
    ),
]
Parts = Annotated[int, typer.Option(min=1, help="Number of experts in new-instances.")]
Architecture = Annotated[
    str, typer.Option(help="lenet5, torchvision/<name>, timm/<name>, or your own as package.module:factory.")
]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
        help="Independent network that judges the images, as cifar_resnet:depth=56=resnet56.th; repeatable.",
        show_default=False,
    ),
]  # fmt: skip
Real = Annotated[
    str | None,
    typer.Option(
        help="Data set or folder of real images; the images are compared with them to find copies.", show_default=False
    ),
]
Png = Annotated[bool, typer.Option("--png", help="Also write each image as a PNG.")]
Statistics = Annotated[
    str | None,
    typer.Option(
        help="Data set or folder of real images; their statistics are matched instead of those in BatchNorm.",
        show_default=False,
    ),
]  # fmt: skip
StatisticsCount = Annotated[int, typer.Option(min=1, help="Number of real images for --statistics.")]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        help="Layer whose statistics are matched (* is a wildcard), for networks without BatchNorm; repeatable."
    ),
]


def _with_tensorboard(folder: Path | None) -> Path | None:
    if folder is not None:
        try:
            require_tensorboard()
        except ImportError as error:
            typer.echo(f"error: --tensorboard: {error}", err=True)
            raise typer.Exit(2) from None
    return folder


TensorBoardFolder = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard", help="Folder for files of TensorBoard: all terms, and the images as they form.",
        show_default=False, callback=_with_tensorboard,
    ),
]  # fmt: skip
Watch = Annotated[
    bool,
    typer.Option("--watch", help="Show the run in OUT/report/index.html while it goes on; the report replaces it."),
]
Page = Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Epochs of each expert; default: MNIST 100 (joint) or 20 (new classes), digits 40, others 20."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="A machine-readable summary on stdout instead of tables.")]
