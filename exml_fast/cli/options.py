"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from exml_fast.data.sets import NAMES

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
    "Threads",
    "Weights",
]

Weights = Annotated[str, typer.Option(help="DEFAULT, a torchvision weights name or a local file.")]
ArchitectureArgument = Annotated[
    list[str] | None, typer.Option("--argument", metavar="NAME=VALUE", help="Of the architecture; repeatable.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="JSON", help="channels, size, mean, std, if not what the network carries.",
        show_default=False,
    ),
]  # fmt: skip


Seed = Annotated[int, typer.Option(help="Decides everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:<n>.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice if not given.")]
OneThread = Annotated[
    int, typer.Option(min=1, help="CPU threads. One suits small networks: on a busy machine more wait for each other.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Throw away an unfinished run in --out (a finished one is replaced).")
]
Data = Annotated[str, typer.Option(help=f"{', '.join(NAMES)}, a .npz file or an image folder.")]
DataRoot = Annotated[
    str | None,
    typer.Option(
        help="Where downloaded data sets and core50_128x128 are kept.", envvar="EXML_FAST_DATA", show_envvar=True
    ),
]
Scenario = Annotated[str, typer.Option(help="joint, new-classes, multi-task or new-instances.")]
PerStep = Annotated[
    str, typer.Option(help="Classes of each expert in new-classes and multi-task; 10,5: ten, then five each.")
]
Parts = Annotated[int, typer.Option(min=1, help="Experts in new-instances.")]
Architecture = Annotated[str, typer.Option(help="lenet5, torchvision/<name> or timm/<name>.")]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
        help="An independent network to ask about the images, as cifar_resnet:depth=56=resnet56.th; repeatable.",
        show_default=False,
    ),
]  # fmt: skip
Real = Annotated[
    str | None,
    typer.Option(help="Data set or folder of real images to look for copies among.", show_default=False),
]
Png = Annotated[bool, typer.Option("--png", help="Also write each image as a PNG.")]
Statistics = Annotated[
    str | None,
    typer.Option(
        help="Data set or folder of real images whose statistics are matched instead of BatchNorm's.",
        show_default=False,
    ),
]  # fmt: skip
StatisticsCount = Annotated[int, typer.Option(min=1, help="How many of them.")]
Layer = Annotated[
    list[str] | None,
    typer.Option(help="Layer to match there, * for anything; repeatable. For networks without BatchNorm."),
]
Page = Annotated[bool, typer.Option("--report", help="Also write OUT/report/index.html.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="MNIST: 100 joint, 20 new classes; digits: 40; others: 20.")]
Json = Annotated[bool, typer.Option("--json", help="A machine-readable summary on stdout instead of tables.")]
