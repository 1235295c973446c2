"""What `prune` and `quantize` share: their network and images, the measurements, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from exml_fast.cli.asked import MachineOptions, TeacherOptions, public
from exml_fast.cli.parsing import SOURCE_NAMES, parse_device, parse_input, parse_pairs, parse_source, source_name
from exml_fast.cli.preparation import require_fit
from exml_fast.continual import Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.continual.teachers import Teacher, open_teacher
from exml_fast.data import ImageSource, InputSpec, Noise, Split, load
from exml_fast.evaluation import accuracy
from exml_fast.inversion import Result
from exml_fast.report.compression import Compressed, write_compression_page
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import save_json
from exml_fast.transfer import export, speed
from exml_fast.validation import settings

__all__ = ["CompressionOptions", "Exports", "Images", "Opened", "Speed", "opened", "written"]

FORMATS, COUNTS = ("pt", "pt2", "onnx"), (1, 64)
NOISE, REAL = "noise", "real="

Images = Annotated[
    str | None,
    typer.Option(
        help="Folder that `exml-fast invert` or `synthesize` wrote. Or random images: noise, "
        f"{', '.join(SOURCE_NAMES)}. Or real=DATA: the training images of a data set.",
        show_default=False,
    ),
]  # fmt: skip
Exports = Annotated[
    list[str] | None,
    typer.Option(
        "--export", metavar="FORMAT", help="Also write the network as one file: pt (tensors and history), pt2 "
        "(a program of torch.export) or onnx; repeatable.",
    ),
]  # fmt: skip
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure the time of one and of 64 images.")]


@settings
class CompressionOptions:
    """Network, images and products of `prune` and `quantize`."""

    teacher: TeacherOptions
    machine: MachineOptions
    images: str | None
    data: str | None
    data_root: str | None
    formats: tuple[str, ...]
    speed: bool
    report: bool

    @classmethod
    def asked(
        cls,
        *,
        model: str | None,
        weights: str,
        argument: list[str] | None,
        input_spec: str | None,
        seed: int,
        device: str,
        threads: int | None,
        formats: list[str] | None,
        **others: Any,
    ) -> CompressionOptions:
        """From the options of a command; ``others`` are fields."""
        return cls(
            teacher=TeacherOptions(
                model=model, weights=weights, arguments=parse_pairs("--argument", argument),
                input=parse_input(input_spec), classes="",
            ),
            machine=MachineOptions(seed=seed, device=parse_device(device), precision="auto", threads=threads),
            formats=_formats(formats), **others,
        )  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """The network, the images, and what tests the small network."""

    teacher: Teacher
    architecture: tuple[str, dict[str, Any]]
    images: Result | Tensor | ImageSource
    test: Split | None

    @property
    def spec(self) -> InputSpec:
        """The network's input."""
        return self.teacher.spec

    def accuracy(self, run: nn.Module) -> float | None:
        """On the test images, in percent."""
        units = self.teacher.units or tuple(range(self.teacher.outputs()))
        return None if self.test is None else 100 * accuracy(run, self.test, self.spec, units)

    def some(self, count: int, seed: int) -> Tensor:
        """Images to compare the networks on: test images, or those that made the network smaller."""
        if self.test is not None:
            return self.test.normalized(self.spec, slice(0, count))
        if isinstance(self.images, ImageSource):
            return self.images.draw(count, self.spec, torch.Generator().manual_seed(seed + 1))
        return (self.images.images if isinstance(self.images, Result) else self.images)[:count]


def _formats(formats: list[str] | None) -> tuple[str, ...]:
    """The values of ``--export``; ValueError for an unknown one."""
    if unknown := [name for name in formats or () if name not in FORMATS]:
        raise ValueError(f"--export must be one of {', '.join(FORMATS)}, got {unknown[0]!r}")
    return tuple(dict.fromkeys(formats or ()))


def opened(run: CompressionOptions) -> Opened:
    """Open and check everything first; ValueError naming the option."""
    asked = run.teacher
    assert asked.model is not None
    teacher = open_teacher(
        asked.model, weights=asked.weights, device=run.machine.device, arguments=asked.arguments, spec=asked.input
    )
    outputs = teacher.outputs()
    if Path(asked.model).exists():
        card = Expert.load(asked.model).card
        architecture = card.architecture, dict(card.arguments)
    else:
        architecture = asked.model, complete_arguments(asked.model, asked.arguments, outputs, teacher.spec)
    test = None if run.data is None else load(run.data, run.data_root).test
    if test is not None:
        require_fit("--data", test.images[:1], teacher.spec)
    return Opened(teacher, architecture, _images(run, teacher.spec), test)


def _images(run: CompressionOptions, spec: InputSpec) -> Result | Tensor | ImageSource:
    if run.images is None:
        named = ", ".join(SOURCE_NAMES)
        raise ValueError(f"--images is missing: a folder of `exml-fast invert`, noise, real=DATA, {named}")
    if run.images == NOISE:
        return Noise()
    if run.images.startswith(REAL):
        split = load(run.images.removeprefix(REAL), run.data_root).train
        require_fit("--images", split.images[:1], spec)
        return split.normalized(spec)
    if source_name(run.images) is not None:
        source = parse_source(run.images)
        assert source is not None
        return source
    if not Path(run.images).is_dir():
        raise ValueError(
            f"--images must be a folder of `exml-fast invert`, noise, real=DATA or one of {', '.join(SOURCE_NAMES)}, "
            f"got {run.images!r}"
        )
    result = Result.load(run.images)
    if result.spec != spec:
        raise ValueError(f"--images: {run.images} holds {result.spec}, the network takes {spec}")
    return result


def _measured(
    networks: Mapping[str, Callable[[Tensor], Tensor]], ready: Opened, run: CompressionOptions
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each network, by its name and the number of images; empty with ``--no-speed``."""
    found: dict[str, dict[str, float]] = {name: {} for name in networks}
    for count in COUNTS if run.speed else ():
        images = torch.randn(count, *ready.spec.shape, generator=torch.Generator().manual_seed(0))
        for name, times in speed(networks, images.to(run.machine.device)).items():
            found[name][str(count)] = round(times["median"], 4)
    return found


def written(
    out: Path,
    run: CompressionOptions,
    ready: Opened,
    result: Any,
    networks: Mapping[str, Callable[[Tensor], Tensor]],
    sizes: Mapping[str, int],
    layers: list[dict[str, Any]],
    curves: Mapping[str, Any],
    more: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write results, exported files and the page; the summary.

    ``networks`` and ``sizes`` (bytes) are of the network before and after, by name. ``more`` joins the summary,
    ``settings`` those of ``run``.
    """
    teacher, small = ready.teacher, result.model
    for name in run.formats:
        export(result, out / f"network.{name}", spec=ready.spec)
    times = _measured(networks, ready, run)
    images = ready.some(2000, run.machine.seed)
    with torch.no_grad():
        wanted, found = (
            torch.cat([network(part.to(run.machine.device)).argmax(1).cpu() for part in images.split(250)])
            for network in (teacher.model, small)
        )
    accuracies = (ready.accuracy(teacher.model), ready.accuracy(small))
    rows = {
        name: {"accuracy": accuracies[k], "bytes": sizes[name], "milliseconds": times[name]}
        for k, name in enumerate(networks)
    }
    agreement = 100 * float((wanted == found).double().mean())
    origin = provenance(run.machine.device)
    seconds = {name: round(value, 3) for name, value in result.seconds.items()}
    summary = {
        "out": str(out), "network": str(out / "network"), "agreement": round(agreement, 3), "networks": rows,
        "seconds": seconds, "peak_mb": result.peak_mb, **more, **origin,
    }  # fmt: skip
    given = "".join(Path(part).name for part in str(run.images).partition("="))  # without folders of this machine
    data = {} if run.data is None else {"data": Path(run.data).name}
    shown = public(run) | {"images": given, **data} | {k: v for k, v in settings.items() if v not in (None, {}, [], ())}
    save_json(out / "results.json", {**summary, "history": result.history, "layers": layers, "settings": shown})
    if run.report:
        differ = wanted != found
        page = Compressed(
            f"{teacher.name}, made smaller", rows, agreement, layers, curves,
            (ready.spec.denormalize(images[differ]).clamp(0, 1), wanted[differ]), seconds,
        )  # fmt: skip
        write_compression_page(out / "report" / "index.html", page, teacher, origin, shown)
    return summary
