"""`exml-fast generator`: a generator that holds what a classifier knows."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from exml_fast.cli.asked import GeneratorRun, MachineOptions, TeacherOptions, public
from exml_fast.cli.guard import Guard, print_json
from exml_fast.cli.options import (
    ArchitectureArgument,
    DataRoot,
    Device,
    Input,
    Json,
    Overwrite,
    Page,
    Png,
    Resume,
    Seed,
    TensorBoardFolder,
    Threads,
    Watch,
    Weights,
)
from exml_fast.cli.parsing import (
    given_options,
    parse_device,
    parse_input,
    parse_pairs,
    parse_precision,
    require_report,
    use_threads,
)
from exml_fast.cli.preparation import require_fit, teacher_of
from exml_fast.cli.run_file import close_run, open_run
from exml_fast.cli.watch import Viewer
from exml_fast.continual import Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.continual.teachers import Teacher
from exml_fast.data import Split, load, some_images
from exml_fast.evaluation import accuracy
from exml_fast.evaluation.features import logits
from exml_fast.generators import Delegation, Delegator, Generator, delegate
from exml_fast.inversion import Result
from exml_fast.models import create
from exml_fast.ownership import remove_tree
from exml_fast.report.generators import feature_map, write_generator_page
from exml_fast.report.images import save_images
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import save_json

__all__ = ["generator"]


@dataclass(frozen=True)
class _Prepared:
    """Everything that ``generator`` starts from."""

    teacher: Teacher
    student: nn.Module | None
    architecture: tuple[str, dict[str, Any]]
    earlier: Generator | None
    config: Delegator
    test: Split | None
    real: Tensor | None


def generator(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Teacher: an expert's folder, torchvision/<name>, timm/<name>, cifar_resnet or lenet5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the generator, the student and images.")] = Path("generated"),
    weights: Weights = "DEFAULT",
    argument: ArchitectureArgument = None,
    input_spec: Input = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the student; default: the teacher's, with new weights. Its final linear layer must "
            "have the teacher's size.",
            show_default=False,
        ),
    ] = None,
    student_argument: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the student's architecture; repeatable.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a generator of an earlier task, which is trained on; default: a new one.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Rounds of five imitations and one exploration; default: 15000.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change any field of Delegator, as width=32; repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(min=5, help="Images to save.")] = 1000,
    data: Annotated[
        str | None,
        typer.Option(help="Data set that tests the student, which never learns from it.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    real: Annotated[
        str | None,
        typer.Option(
            help="Data set or folder of real images, which the page compares with the generated ones.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of all networks: auto, float32 or bfloat16.")] = "auto",
    png: Png = False,
    tensorboard: TensorBoardFolder = None,
    report: Page = False,
    watch: Watch = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a generator whose images teach a student what a classifier knows, without data (Ye 2022)."""
    with Guard(context) as guard:
        if model is None and not resume:
            raise ValueError("MODEL is missing: an expert's folder, torchvision/<name> or timm/<name>")
        report = report or watch
        if report:
            require_report()
        given = GeneratorRun(
            teacher=TeacherOptions(
                model=model, weights=weights, arguments=parse_pairs("--argument", argument),
                input=parse_input(input_spec), classes="",
            ),
            machine=MachineOptions(
                seed=seed, device=parse_device(device), precision=parse_precision(precision), threads=threads
            ),
            student=student, student_arguments=parse_pairs("--student-argument", student_argument),
            start=None if start is None else str(start),
            delegator=given_options(steps=steps) | parse_pairs("--set", settings),
            count=count, data=data, data_root=data_root, real=real,
            png=png, report=report,
        )  # fmt: skip
        ready = None if resume else _prepared(given)
        run = open_run(context, guard, out, given, resume=resume, overwrite=overwrite)
        use_threads(run.machine.threads)
        ready = ready or _prepared(run)
        viewer = Viewer(
            out,
            f"A generator of what {run.teacher.model} knows",
            watch=watch,
            followed=run.report,
            tensorboard=tensorboard,
        )
        trained = _trained(run, ready, out, viewer)
        summary = _saved(run, ready, trained, out)
        remove_tree(out / "checkpoints")
        close_run(out)
        if as_json:
            print_json(summary)
        else:
            tested = "" if summary["accuracy"] is None else f", student {100 * summary['accuracy']:.2f} % of {run.data}"
            typer.echo(f"generator in {out / 'generator'}: {summary['seconds']:.0f} s{tested}")


def _prepared(run: GeneratorRun) -> _Prepared:
    """Open and check everything first; ValueError naming the option."""
    teacher = teacher_of(run)
    outputs = teacher.outputs()
    config = Delegator().replace(**{"precision": run.machine.precision, **run.delegator})
    student = None
    if run.student is None:
        architecture = _architecture(run, teacher, outputs)
    else:
        arguments = complete_arguments(run.student, run.student_arguments, outputs, teacher.spec)
        architecture = run.student, arguments
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.machine.seed)
            student = create(run.student, **arguments)
        given = dataclasses.replace(teacher, name=run.student, model=student).outputs("--student")
        if given != outputs:
            raise ValueError(f"--student must give {outputs} logits, {run.student} gives {given}")
    earlier = None if run.start is None else Generator.load(run.start)
    if earlier is not None and earlier.spec != teacher.spec:
        raise ValueError(f"--start: {run.start} makes images of {earlier.spec}, the teacher takes {teacher.spec}")
    test = None if run.data is None else load(run.data, run.data_root).test
    if test is not None:
        require_fit("--data", test.images[:1], teacher.spec)
    real = None
    if run.real is not None:
        pixels = some_images(run.real, teacher.spec.size, 500)
        require_fit("--real", pixels[:1], teacher.spec)
        real = teacher.spec.prepare(pixels)
    return _Prepared(teacher, student, architecture, earlier, config, test, real)


def _architecture(run: GeneratorRun, teacher: Teacher, outputs: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the teacher's architecture, for the student's card."""
    model = str(run.teacher.model)
    if Path(model).exists():
        card = Expert.load(model).card
        return card.architecture, dict(card.arguments)
    return model, complete_arguments(model, run.teacher.arguments, outputs, teacher.spec)


def _trained(run: GeneratorRun, ready: _Prepared, out: Path, viewer: Viewer) -> Delegation:
    teacher, test = ready.teacher, ready.test
    with contextlib.ExitStack() as stack:
        progress: Any = stack.enter_context(viewer)
        return delegate(
            teacher.model, ready.student, generator=ready.earlier, config=ready.config, spec=teacher.spec,
            units=teacher.units, seed=run.machine.seed, device=run.machine.device,
            evaluate=None if test is None else lambda student: accuracy(student, test, teacher.spec, teacher.units),
            progress=progress, checkpoint_dir=out / "checkpoints",
        )  # fmt: skip


def _saved(run: GeneratorRun, ready: _Prepared, trained: Delegation, out: Path) -> dict[str, Any]:
    """Write generator, student, images, results and page; the summary."""
    teacher, seconds = ready.teacher, sum(trained.seconds.values())
    units = teacher.units or tuple(range(teacher.outputs()))
    trained.generator.save(out / "generator")
    names = tuple(teacher.class_names.get(unit, str(unit)) for unit in units)
    training = {"method": "self-distilled knowledge delegator", "teacher": run.teacher.model, "seed": run.machine.seed}
    card = Card(*ready.architecture, units, units, names, teacher.spec, training=training)
    Expert(trained.model.cpu(), card).save(out / "student")
    images = trained.generator.sample(run.count, run.machine.seed)
    found = logits(teacher.model, images)
    labels = torch.tensor(units)[found.argmax(1)]
    result = Result(images, labels, None, teacher.spec, {}, seconds, {"source": trained.generator.describe()}, found)
    save_images(result, out / "images", None, run.png)
    origin = provenance(run.machine.device)
    agreement = float((logits(trained.model, images).argmax(1) == found.argmax(1)).double().mean())
    accuracy_found = trained.evaluations[-1][1] if trained.evaluations else None
    summary = {
        "out": str(out), "generator": str(out / "generator"), "student": str(out / "student"), "images": len(images),
        "agreement": agreement, "accuracy": accuracy_found, "seconds": round(seconds, 3),
        "peak_mb": trained.peak_mb, **origin,
    }  # fmt: skip
    save_json(out / "results.json", {**summary, "history": trained.history, "settings": public(run)})
    if run.report:
        row = {
            "Network": ready.architecture[0], "Agreement with its teacher on new images, %": f"{100 * agreement:.1f}",
            "Test accuracy, %": "–" if accuracy_found is None else f"{100 * accuracy_found:.2f}",
            "Time, s": f"{seconds:.1f}", "Classes in the images": f"{len(labels.unique())} of {len(units)}",
        }  # fmt: skip
        write_generator_page(
            out / "report" / "index.html", result, teacher, trained.history, origin, public(run),
            {"The student": [row]}, feature_map(teacher, images, ready.real, run.machine.seed),
        )  # fmt: skip
    return summary
