"""`exml-fast quantize`: a network of 8 or 4 bits, on images that need not be real."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from exml_fast.cli.compression import (
    CompressionOptions,
    Exports,
    Images,
    Opened,
    Speed,
    opened,
    written,
)
from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    DataRoot,
    Device,
    Input,
    Json,
    Overwrite,
    Page,
    Resume,
    Seed,
    TensorBoardFolder,
    Threads,
    Watch,
    Weights,
)
from exml_fast.cli.parsing import given_options, parse_pairs, require_report, use_threads
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.ownership import remove_tree
from exml_fast.transfer import Quantization, QuantizeResult, compiled
from exml_fast.transfer import quantize as quantize_network
from exml_fast.transfer.quantization.static import torchao
from exml_fast.validation import settings

__all__ = ["quantize"]


@settings
class QuantizeRun:
    """What ``quantize`` was asked for."""

    options: CompressionOptions
    quantization: dict[str, Any]

    def config(self) -> Quantization:
        """Settings of the quantisation."""
        return Quantization().replace(**self.quantization)


def quantize(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Network: an expert's folder, torchvision/<name>, timm/<name>, cifar_resnet or lenet5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the network and the results.")] = Path("quantized"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    images: Images = None,
    bits: Annotated[int, typer.Option(help="8, or 4 of weights and activations, with learning.")] = 8,
    float_layers: Annotated[
        float, typer.Option(help="The most sensitive layers stay float32: their number, or below 1 their share.")
    ] = 0.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the learning with 4 bits; default: 500.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change any field of Quantization; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set that tests the networks; nothing is learned from it.")
    ] = None,
    data_root: DataRoot = None,
    formats: Exports = None,
    speed: Speed = True,
    report: Page = False,
    watch: Watch = False,
    tensorboard: TensorBoardFolder = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Compute a classifier in 8 or 4 bits, with ranges from images that need not be real.

    The time of 8 bits, and of the float network beside it, is that of compiled networks (AOTInductor).
    """
    with Guard(context) as guard:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        report = report or watch
        if report:
            require_report()
        torchao()
        given = QuantizeRun(
            options=CompressionOptions.asked(
                model=model, weights=weights, argument=argument, input_spec=input_spec, images=images, data=data,
                data_root=data_root, formats=formats, speed=speed, report=report, seed=seed, device=device,
                threads=threads,
            ),
            quantization={"bits": bits, "float_layers": float_layers} | given_options(steps=steps)
            | parse_pairs("--set", changes),
        )  # fmt: skip
        if given.config().bits == 8 and not resume and not device.startswith("cpu"):
            raise ValueError(f"--device must be cpu with 8 bits, which run on CPUs alone, got {device}")
        ready = None if resume else opened(given.options)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.options.machine.threads)
        ready = ready or opened(run.options)
        with Viewer(out, "Quantisation", watch=watch, tensorboard=tensorboard, followed=run.options.report) as progress:
            result = quantize_network(
                ready.teacher.model, ready.images, config=run.config(), spec=ready.spec,
                seed=run.options.machine.seed, progress=progress, checkpoint_dir=out / "checkpoints",
            )  # fmt: skip
        summary = _saved(run, ready, result, out)
        remove_tree(out / "checkpoints")
        close_run(out)
        if as_json:
            print_json(summary)
        else:
            before, after = summary["networks"].values()
            tested = "" if after["accuracy"] is None else f", {after['accuracy']:.2f} % of {before['accuracy']:.2f} %"
            smaller = before["bytes"] / after["bytes"]
            typer.echo(
                f"network in {out / 'network'}: {result.bits} bits, {smaller:.1f} times smaller{tested}, agrees on "
                f"{summary['agreement']:.1f} %"
            )


def _saved(run: QuantizeRun, ready: Opened, result: QuantizeResult, out: Path) -> dict[str, Any]:
    architecture, arguments = ready.architecture
    result.save(out / "network", architecture=architecture, arguments=arguments)
    names = [*result.widths, *result.float_layers]
    found = result.sensitivity
    layers = [
        {"Layer": name, "Bits": result.widths.get(name, 32),
         "Divergence when it alone is quantised": f"{found[name]:.2e}" if name in found else "–"}
        for name in sorted(names, key=lambda name: -found.get(name, 0.0))
    ]  # fmt: skip
    points = [(float(k + 1), value) for k, value in enumerate(found.values())]
    title = "Divergence when one layer alone is quantised"
    curves = {title: ({"layers in order": points}, ("layer", "KL"))} if points else {}
    small = "int8" if result.bits == 8 else "4 bits"
    networks: dict[str, Any] = {"float32": ready.teacher.model, small: result.model}
    if result.bits == 8 and run.options.speed:
        networks = {name: compiled(network) for name, network in networks.items()}
    sizes = {"float32": result.float_bytes, small: result.nbytes}
    more = {"bits": result.bits, "sensitivity": result.sensitivity, "float_layers": result.float_layers}
    return written(out, run.options, ready, result, networks, sizes, layers, curves, more, run.quantization)
