"""What `invert` and `distill` share: networks and images by name, checked first, and the report on the images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.cli.teachers import Teacher, open_named, open_teacher
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec, PenStrokes, Split, load, some_images
from exml_fast.distillation import TransferConfig
from exml_fast.distillation.transfer import check_pool
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import bn_layers
from exml_fast.evaluation import Evaluation, evaluate
from exml_fast.inversion import Parametrisation, Result, Synthesizer, recipes
from exml_fast.inversion.synthesizer import suited_recipe
from exml_fast.models import create
from exml_fast.progress import require_tensorboard
from exml_fast.storage import atomic_path, save_json

__all__ = [
    "Panel", "PreparedTransfer", "history_rows", "learned_row", "panel", "parse_input", "prepared_inversion",
    "prepared_transfer", "real_statistics", "save_images", "save_report", "write_images_page",
]  # fmt: skip

PARAMETRISATIONS = {"pen-strokes": PenStrokes}
READING = (
    "The images below were made from the network alone: no training image was used. A network recognises an image if "
    "the class it was made for has the largest logit. Networks that were not used to make the images show whether they "
    "hold what the class looks like, or only what fools one network (Yin 2020, Table 2).",
    "The Inception score is computed with the network in its row, on these images: it compares sets of images of the "
    "same classes, not papers. Diversity is the mean cosine distance between the features of a class's images, 0 for "
    "copies. Features are what the final linear layer reads.",
)


def parse_input(text: str | None) -> dict[str, Any] | None:
    """``--input``: a JSON object; ValueError naming the option."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        InputSpec.from_dict(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'--input must be like {{"channels": 3, "size": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}}: {error}'
        ) from error
    return value


def real_statistics(source: str | None, spec: InputSpec, count: int) -> str | Tensor:
    """``--statistics``: network input of some real images, or "running"."""
    return "running" if source is None else spec.prepare(some_images(source, spec.size, count))


@dataclass(frozen=True)
class Panel:
    """Who is asked about the images, the teacher first, and the real images among which copies are looked for."""

    judges: dict[str, Teacher]
    real: Tensor | None

    def ask(self, result: Result, **others: torch.nn.Module) -> Evaluation:
        """Them, and ``others`` by name, which take the teacher's input."""
        teacher = next(iter(self.judges.values()))
        more = {name: dataclasses.replace(teacher, name=name, model=model) for name, model in others.items()}
        return evaluate(result, self.judges | more, self.real)


def panel(teacher: Teacher, judges: Sequence[str], real: str | None, classes: list[int] | None, device: str) -> Panel:
    """Opened and checked before any work. ValueError naming the option that does not fit."""
    outputs = teacher.outputs()
    wanted = classes or list(teacher.units or range(outputs))
    asked = {teacher.name: teacher}
    for judge in judges:
        found = asked[judge] = open_named(judge, device, teacher.spec)
        units = found.units or range(found.outputs())
        if missing := [c for c in wanted if c not in units]:
            raise ValueError(f"--judge {judge} has no logit for the classes {missing[:8]} that images are made of")
        _require_fit(f"--judge {judge}", torch.zeros(1, *teacher.spec.shape), found.spec)
    pixels = None if real is None else some_images(real, teacher.spec.size, 10_000)
    if pixels is not None:
        if len(pixels) < 2:
            raise ValueError(f"--real must hold at least 2 images, {real} has {len(pixels)}")
        _require_fit("--real", pixels[:1], teacher.spec)
    return Panel(asked, pixels)


def _require_fit(option: str, image: Tensor, spec: InputSpec) -> None:
    """ValueError naming the option if a network of that input cannot take such images."""
    try:
        spec.prepare(image)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _teacher_of(run: dict[str, Any]) -> Teacher:
    return open_teacher(run["model"], run["weights"], run["device"], run["arguments"], run["input"])


def _classes_of(teacher: Teacher, wanted: str) -> list[int] | None:
    return teacher.class_ids([c.strip() for c in wanted.split(",") if c.strip()])


def _has_statistics(run: dict[str, Any], teacher: Teacher) -> bool:
    return bool(run["layers"]) or bool(bn_layers(teacher.model))


def _changed(name: str | recipes.Recipe, changes: Mapping[str, Any]) -> recipes.Recipe:
    """A recipe with other values. Other steps change those at smaller sizes in proportion unless they are given."""
    recipe = recipes.get(name)
    changed = recipe.replace(**changes)
    if changed.steps == recipe.steps or "coarse_steps" in changes:
        return changed
    share = changed.steps / recipe.steps
    return changed.replace(coarse_steps=tuple(max(1, round(share * steps)) for steps in recipe.coarse_steps))


def _check_synthesis(
    run: dict[str, Any],
    teacher: Teacher,
    recipe: recipes.Recipe,
    statistics: str | Tensor,
    images: int,
    parametrisation: Parametrisation | None = None,
) -> None:
    """ValueError for whatever a Synthesizer would complain about that is to make so many ``images``."""
    device = torch.device(run["device"])
    require_memory(teacher.model, teacher.spec, min(images, recipe.batch_size), device, images)
    Synthesizer(
        teacher.model, teacher.spec, recipe, units=teacher.units, device=device, precision=run["precision"],
        statistics=statistics, layers=run["layers"], parametrisation=parametrisation,
    )  # fmt: skip


def prepared_inversion(
    run: dict[str, Any],
) -> tuple[Teacher, list[int] | None, recipes.Recipe, dict[str, Any], Panel]:
    """Teacher, classes, recipe, student and statistics, and who is asked: all that can be wrong."""
    teacher = _teacher_of(run)
    wanted = _classes_of(teacher, run["classes"])
    asked = panel(teacher, run["judges"], run["real"], wanted, run["device"])
    matched = _has_statistics(run, teacher)
    kind = run["parametrisation"]
    if kind not in (None, *PARAMETRISATIONS):
        raise ValueError(f"--parametrisation must be one of {list(PARAMETRISATIONS)}, got {kind!r}")
    drawn = PARAMETRISATIONS[kind]() if kind else None
    usual = suited_recipe(teacher.model, teacher.spec, matched, parametrisation=drawn)
    recipe = _changed(run["recipe"] or usual, run["overrides"])
    options: dict[str, Any] = {
        "statistics": real_statistics(run["statistics"], teacher.spec, run["statistics_count"]),
        "parametrisation": drawn,
    }  # fmt: skip
    if run["student"]:
        student = open_named(run["student"], run["device"], teacher.spec)
        outputs, given = teacher.outputs(), student.outputs("--student")
        if given != outputs:
            raise ValueError(f"--student must give {outputs} logits, {student.name} gives {given}")
        if student.units not in (None, teacher.units or tuple(range(outputs))):
            raise ValueError(f"--student has logits for {student.units}, the teacher for {teacher.units or 'others'}")
        if dataclasses.replace(student.spec, size=teacher.spec.size) != teacher.spec:
            raise ValueError(f"--student takes {student.spec}, the teacher {teacher.spec}: they see the same images")
        options["student"] = student.model
    elif recipe.compete > 0:
        raise ValueError(f"--student must be given: recipe {recipe.name!r} competes with one")
    classes = wanted or range(teacher.outputs())
    images = run["per_class"] * len(classes)
    _check_synthesis(run, teacher, recipe, options["statistics"], images, drawn)
    return teacher, wanted, recipe, options, asked


@dataclass(frozen=True)
class PreparedTransfer:
    """What `distill` starts from."""

    teacher: Teacher
    classes: list[int] | None
    student: torch.nn.Module
    arguments: dict[str, Any]
    images: Result | None
    recipes: list[recipes.Recipe]
    statistics: str | Tensor
    config: TransferConfig
    test: Split | None
    panel: Panel


def prepared_transfer(run: dict[str, Any]) -> PreparedTransfer:
    """All that can be wrong."""
    teacher = _teacher_of(run)
    wanted = _classes_of(teacher, run["classes"])
    asked = panel(teacher, run["judges"], run["real"], wanted, run["device"])
    config = TransferConfig().replace(**run["transfer"])
    first = None if run["images"] is None else Result.load(run["images"])
    if first is not None and first.spec != teacher.spec:
        raise ValueError(f"--images: {run['images']} holds {first.spec}, the teacher takes {teacher.spec}")
    named = run["recipes"]
    if not named and first is None:
        named = [suited_recipe(teacher.model, teacher.spec, _has_statistics(run, teacher), adaptive=True)]
    if not named and run["inversion"]:
        raise ValueError("--set changes a recipe: give --recipe too")
    in_turn = [_changed(name, run["inversion"]) for name in named]
    statistics = real_statistics(run["statistics"], teacher.spec, run["statistics_count"])
    for recipe in in_turn:
        _check_synthesis(run, teacher, recipe, statistics, config.per_round)
    outputs = teacher.outputs()
    arguments = complete_arguments(run["student"], run["student_arguments"], outputs, teacher.spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run["seed"])
        student = create(run["student"], **arguments).to(run["device"])
    given = dataclasses.replace(teacher, name=run["student"], model=student).outputs("--student")
    if given != outputs:
        raise ValueError(f"--student must give {outputs} logits, {run['student']} gives {given}")
    require_memory(student, teacher.spec, config.batch_size, torch.device(run["device"]))
    test = None if run["data"] is None else load(run["data"], run["data_root"]).test
    if test is not None:
        _require_fit("--data", test.images[:1], teacher.spec)
        units = teacher.units or range(outputs)
        if not any(label in units for label in test.labels.unique().tolist()):
            raise ValueError(f"--data: {run['data']} has no test image of the teacher's classes {list(units)[:8]}")
    check_pool(config, teacher.spec, 0 if first is None else len(first), bool(in_turn), run["pool_dir"])
    if run["tensorboard"]:
        require_tensorboard()
    return PreparedTransfer(teacher, wanted, student, arguments, first, in_turn, statistics, config, test, asked)


def save_images(result: Result, out: Path, per_class: int | None, png: bool) -> None:
    """Shard, grid, and each image as a PNG."""
    from torchvision.utils import save_image

    result.save(out)
    columns = len(result) // per_class if per_class and len(result) <= 400 else None
    result.save_grid(out / "grid.png", columns=columns)
    if png:
        for i, (image, label) in enumerate(zip(result.pixels(), result.labels.tolist(), strict=True)):
            with atomic_path(out / "png" / f"{i:05d}_class_{label}.png") as temporary:
                save_image(image, temporary)


def save_report(
    out: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
    page: bool,
    asked: Panel,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """``report.json``, and with ``page`` ``report/index.html``, with further ``tables`` first."""
    summary = {**result.summary, "seconds": round(result.seconds, 3)}
    save_json(out / "report.json", {**origin, "settings": settings, **summary, **evaluation.to_dict()})
    if page:
        path = out / "report" / "index.html"
        write_images_page(path, result, teacher, evaluation, origin, settings, asked.real, tables)


def write_images_page(
    path: Path,
    result: Result,
    teacher: Teacher,
    evaluation: Evaluation,
    origin: dict[str, Any],
    settings: dict[str, Any],
    real: Tensor | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """The page of an inversion; with ``real`` images also each shown image's nearest. ImportError without the extra."""
    from exml_fast.report import Report, Samples, write_report

    names = [teacher.class_names.get(c, str(c)) for c in evaluation.classes]
    rank = {c: i for i, c in enumerate(evaluation.classes)}
    asked = [
        {
            "Network": name,
            "Recognised, %": f"{100 * judge['top1']:.1f}",
            "Among its first five, %": f"{100 * judge['top5']:.1f}",
            "Inception score": f"{judge['inception_score']:.2f}",
        }
        for name, judge in evaluation.judges.items()
    ]
    labels = torch.tensor([rank[c] for c in result.labels.tolist()])
    counts = torch.bincount(labels).tolist()
    classes = [
        {"Class": names[rank[c]], "Images": counts[rank[c]]}
        | {f"{name}, %": f"{100 * judge['by_class'][str(c)]:.0f}" for name, judge in evaluation.judges.items()}
        | {"Diversity": f"{evaluation.diversity[c]:.3f}" if c in evaluation.diversity else "–"}
        for c in evaluation.classes
    ]
    shown_tables = {**(tables or {}), "Recognised by": asked, "By class": classes}
    samples = [Samples("Inverted", result.pixels(), labels)]
    if real is not None and evaluation.neighbours is not None:
        nearest = real[evaluation.neighbours.index[:, 0]]
        nearest = nearest.float() / 255 if nearest.dtype == torch.uint8 else nearest
        samples.append(Samples("The real image nearest to each, in feature space", nearest, labels))
    memory = evaluation.to_dict().get("memorisation")
    if memory:
        shown_tables["Nearest real images, in feature space"] = [
            {
                "Median distance": f"{memory['median_distance']:.3f}",
                "Smallest": f"{memory['smallest_distance']:.3f}",
                "Usual between real images": f"{memory['usual_distance_among_real']:.3f}",
                "Nearer than half of that, %": f"{100 * memory['memorised']:.1f}",
            }
        ]
    made_by = result.summary.get("recipes") or [result.summary.get("recipe", {})]  # none: images given to distill
    names_of = ", ".join(recipe["name"] for recipe in made_by if recipe)
    shown = settings | {"Recipe": names_of or None, "Images": len(result)}
    report = Report(
        title=f"Images out of {teacher.name}",
        summary=f"{len(result)} images of {len(names)} classes in {result.seconds:.1f} s.",
        command=origin["command"],
        settings=shown,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=names,
        reading=READING,
        tables=shown_tables,
        samples=samples,
        confusions=evaluation.confusion if 1 < len(names) <= 100 else {},
    )
    return write_report(path, report)


def learned_row(learned: Mapping[str, Any]) -> dict[str, str]:
    """What a student came to, as a row of the page."""
    accuracy = learned["accuracy"]
    return {
        "Network": learned["student"],
        "Steps": str(learned["steps"]),
        "Agrees with its teacher on the last images, %": f"{100 * learned['agreement']:.1f}",
        "Right on the test images, %": "–" if accuracy is None else f"{100 * accuracy:.2f}",
    }


def history_rows(history: Mapping[str, Sequence[float]], most: int = 12) -> list[dict[str, str]]:
    """At most ``most`` points of a student's learning, evenly, the last among them."""
    count = len(history["step"])
    chosen = torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
    return [
        {"Step": str(int(history["step"][i])), "Divergence from the teacher": f"{history['kl'][i]:.4f}",
         "Agreement, %": f"{100 * history['agreement'][i]:.1f}"}
        for i in chosen
    ]  # fmt: skip
