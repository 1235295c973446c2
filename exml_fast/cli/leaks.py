"""`exml-fast leaks`: what synthetic images give away of the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import DataRoot, Device, Json, Seed, Threads
from exml_fast.cli.parsing import parse_device, require_report, use_threads
from exml_fast.cli.preparation import open_named
from exml_fast.data import Split, load
from exml_fast.evaluation import leaks as measure
from exml_fast.inversion import Result
from exml_fast.report.leaks import leak_verdict, write_leaks_page
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import save_json

__all__ = ["leaks"]

Networks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
        help="The teacher, then students of the images: an expert's folder or an architecture; repeatable.",
        show_default=False,
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[:NAME=VALUE,...][=WEIGHTS]",
        help="Network that was trained on other images of the same classes; it calibrates the attack. Repeatable.",
        show_default=False,
    ),
]


def leaks(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Folder of images that `invert` or `distill` has written.")],
    data: Annotated[str, typer.Option(help="The data of the teacher; its test images are the yardstick.")],
    data_root: DataRoot = None,
    network: Networks = None,
    reference: References = None,
    most: Annotated[int, typer.Option(min=100, help="Greatest number of training and of test images.")] = 10_000,
    out: Annotated[Path, typer.Option(help="Folder for leaks.json and the page.")] = Path("leaks"),
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure copies of training images among synthetic ones, and whether networks reveal their training images."""
    with Guard(context) as guard:
        require_report()
        use_threads(threads)
        where = parse_device(device)
        result, loaded = Result.load(images), load(data, data_root)
        teachers = [open_named(text, where, result.spec) for text in network or []]
        others = [open_named(text, where, result.spec) for text in reference or []]
        training, held_out = _some(loaded.train, most, seed), _some(loaded.test, most, seed)
        found = measure(result, training, held_out, networks={each.name: each for each in teachers}, references=others)
        guard.own(out)
        origin = provenance(where)
        settings: dict[str, Any] = {
            "images": images.name, "data": loaded.name, "training images": len(training),
            "held-out images": len(held_out), "references": len(others), "seed": seed,
        }  # fmt: skip
        summary = {**origin, "settings": settings, **found.to_dict()}
        save_json(out / "leaks.json", summary)
        page = write_leaks_page(out / "report" / "index.html", found, result, training, origin, settings)
        if as_json:
            print_json({"out": str(out), "page": str(page), **summary})
        else:
            typer.echo(leak_verdict(found))
            typer.echo(f"page: {page}")


def _some(split: Split, most: int, seed: int) -> Split:
    """At most ``most`` images, drawn at random."""
    if len(split) <= most:
        return split
    generator = torch.Generator().manual_seed(seed)
    return split.subset(torch.randperm(len(split), generator=generator)[:most].sort().values)
