"""`exml-fast synthesize`: images in shards, by processes, Ray or Slurm."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import ArchitectureArgument, Device, Input, Json, Seed, Weights
from exml_fast.cli.parsing import given_options, parse_device, parse_input, parse_pairs, parse_precision
from exml_fast.cli.progress import Reporter
from exml_fast.cli.run_file import was_typed
from exml_fast.continual import Expert
from exml_fast.continual.teachers import Teacher, expert_of
from exml_fast.data import Shards
from exml_fast.data.shards import JOB_FILE
from exml_fast.data.shards_export import export_folder, export_webdataset
from exml_fast.distributed import Executor, LocalExecutor, RayExecutor, SlurmExecutor, load_job, prepare, resume
from exml_fast.engine.statistics import bn_layers
from exml_fast.inversion import recipes
from exml_fast.progress import Progress

__all__ = ["synthesize"]

# Options that decide no image: with --resume they may be given anew.
FREE = {
    "again", "out", "executor", "workers", "address", "gpus", "slurm", "block", "webdataset", "image_folder", "as_json",
}  # fmt: skip


def synthesize(
    context: typer.Context,
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experts' folders, torchvision/<name>, timm/<name>, cifar_resnet or lenet5: a job for each.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the job, or of a folder for each of several networks.")] = Path(
        "shards"
    ),
    shards: Annotated[int, typer.Option(min=1, help="Number of shards of each network.")] = 1,
    per_shard: Annotated[int, typer.Option(min=1, help="Images of a shard.")] = 64,
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    recipe: Annotated[
        str | None, typer.Option(help="Default: suited to the network, as `invert`.", show_default=False)
    ] = None,
    classes: Annotated[str, typer.Option(help="Ids or names of classes, separated by commas; default: all.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps; default: the recipe's.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the network: auto, float32 or bfloat16.")] = "auto",
    executor: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes (local; 0: this one) or simultaneous tasks (slurm).")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, as auto or ray://host:10001.", show_default=False)
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a Ray task, also a part of one.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Parameter of submitit, as slurm_partition=gpu; repeatable."),
    ] = None,
    block: Annotated[int, typer.Option(min=1, help="Shards of a Slurm task.")] = 8,
    webdataset: Annotated[
        Path | None, typer.Option(help="Also write tar files of WebDataset here.", show_default=False)
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option(help="Also write PNG files by class here.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker.")] = 1,
    as_json: Json = False,
    again: Annotated[bool, typer.Option("--resume", help="Make the missing shards of the jobs in --out.")] = False,
) -> None:
    """Make images of classifiers in shards on disk. Ctrl-C finishes the shards in flight, a second one ends at once."""
    with Guard(context) as guard:
        engine = _executor(executor, workers, address, gpus, parse_pairs("--slurm", slurm), block)
        if again:
            typed = [p for p in context.params if was_typed(context, p) and p not in FREE]
            if typed:
                raise ValueError(f"--resume takes the jobs as they are in {out}: leave out {', '.join(sorted(typed))}")
            folders = _jobs(out)
        else:
            if not networks:
                raise ValueError("NETWORK is missing: an expert's folder, torchvision/<name> or timm/<name>")
            changes = parse_pairs("--set", override) | given_options(steps=steps)
            folders = _folders(out, networks)
            kind: Any = parse_device(device).partition(":")[0]
            for name, folder in zip(networks, folders, strict=True):
                expert = _expert(name, weights, parse_pairs("--argument", argument), parse_input(input_spec))
                usual = recipes.suited_to(expert.model, expert.input_spec, statistics=bool(bn_layers(expert.model)))
                chosen = recipes.get(recipe or usual).overridden(**changes)
                prepare(
                    folder, expert, shards=shards, per_shard=per_shard, recipe=chosen,
                    classes=_classes(name, expert, classes), seed=seed, device=kind,
                    precision=parse_precision(precision), threads=threads,
                )  # fmt: skip
        guard.resume = shlex.join(["exml-fast", "synthesize", "--out", str(out), "--executor", executor, "--resume"])
        begun = time.monotonic()
        with Reporter() as reporter:
            made = [_run(folder, engine, reporter) for folder in folders]
        for found in made:
            part = "" if len(made) == 1 else found.folder.name
            if webdataset is not None:
                export_webdataset(found, webdataset / part)
            if image_folder is not None:
                export_folder(found, image_folder / part)
        summary: dict[str, Any] = {
            "out": str(out), "executor": executor, "networks": len(made), "shards": sum(len(s.indices) for s in made),
            "images": sum(map(len, made)), "bytes": sum(int(s.manifest.bytes.sum()) for s in made),
            "seconds": round(time.monotonic() - begun, 3), "jobs": {str(s.folder): s.digest for s in made},
        }  # fmt: skip
        if as_json:
            print_json(summary)
        else:
            typer.echo(
                f"{summary['images']} images in {summary['shards']} shards ({summary['bytes'] / 1e6:.1f} MB, "
                f"{summary['seconds']:.1f} s): {out}"
            )


def _executor(
    name: str, workers: int | None, address: str | None, gpus: float | None, slurm: dict[str, Any], block: int
) -> Executor:
    """ValueError for an unknown executor, or for an option of another one."""
    options = {"--address": ("ray", address), "--gpus": ("ray", gpus), "--slurm": ("slurm", slurm or None)}
    for option, (owner, value) in options.items():
        if value is not None and owner != name:
            raise ValueError(f"{option} is for --executor {owner}, got --executor {name}")
    if name == "local":
        return LocalExecutor(workers)
    if name == "ray":
        if workers is not None:
            raise ValueError("--workers is for --executor local and slurm: Ray takes what its cluster has")
        return RayExecutor(address, gpus=gpus)
    if name == "slurm":
        return SlurmExecutor(workers or 8, block=block, parameters=slurm)
    raise ValueError(f"--executor must be local, ray or slurm, got {name!r}")


def _run(folder: Path, engine: Executor, progress: Progress) -> Shards:
    job = load_job(folder)

    def named(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        progress(f"{stage} {folder.name} by {job.recipe['name']}", step, total, terms)

    return resume(folder, executor=engine, progress=named)


def _jobs(out: Path) -> list[Path]:
    """The folders of jobs in ``out``: itself or its subfolders. ValueError if there is none."""
    found = [out] if (out / JOB_FILE).is_file() else sorted(file.parent for file in out.glob(f"*/{JOB_FILE}"))
    if not found:
        raise ValueError(f"--resume: no synthesis job in {out}: {JOB_FILE} is missing")
    return found


def _folders(out: Path, networks: list[str]) -> list[Path]:
    """A folder for each network; ValueError if two would share one."""
    if len(networks) == 1:
        return [out]
    names = [Path(name).resolve().name if Path(name).exists() else name.replace("/", "-") for name in networks]
    if len(set(names)) < len(names):
        raise ValueError(f"NETWORK: two networks would share a folder: {', '.join(sorted(names))}")
    return [out / name for name in names]


def _expert(name: str, weights: str, arguments: dict[str, Any], spec: dict[str, Any] | None) -> Expert:
    if not Path(name).is_dir():
        return expert_of(name, weights=weights, arguments=arguments, spec=spec)
    if arguments or spec is not None or weights != "DEFAULT":
        raise ValueError(f"--weights, --argument and --input are for architectures; {name} is an expert's folder")
    return Expert.load(name)


def _classes(name: str, expert: Expert, wanted: str) -> list[int] | None:
    names = dict(zip(expert.units, expert.card.class_names, strict=True))
    teacher = Teacher(name, expert.model, expert.input_spec, expert.units, expert.classes, names)
    return teacher.class_ids([c.strip() for c in wanted.split(",") if c.strip()])
