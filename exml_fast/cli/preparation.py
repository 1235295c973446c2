"""What `invert` and `distill` share: they open the networks and images of the options and check them first."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.cli.asked import DistillRun, GeneratorRun, InvertRun
from exml_fast.cli.factories import TYPED
from exml_fast.cli.parsing import FAST, parse_pairs, parse_source
from exml_fast.continual.expert import complete_arguments
from exml_fast.continual.teachers import Teacher, open_teacher
from exml_fast.data import ImageSource, InputSpec, PenStrokes, Shards, Split, load, some_images
from exml_fast.data.shards import JOB_FILE
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import bn_layers
from exml_fast.evaluation import Evaluation, evaluate
from exml_fast.generators import Fast, FastSynthesis
from exml_fast.inversion import Parametrisation, Result, Synthesizer, recipes
from exml_fast.models import OWN, create
from exml_fast.transfer import Distillation
from exml_fast.transfer.pool import require_room

__all__ = [
    "Panel",
    "PreparedDistillation",
    "open_named",
    "panel",
    "prepared_inversion",
    "prepared_distillation",
    "require_fit",
    "teacher_of",
]

PARAMETRISATIONS = {"pen-strokes": PenStrokes}
NAMED = re.compile(r"([^:=]+)(?::([^=,]+=[^=,]+(?:,[^=,]+=[^=,]+)*))?(?:=(.+))?")


def real_statistics(source: str | None, spec: InputSpec, count: int) -> str | Tensor:
    """``--statistics``: network input of some real images, or "running"."""
    return "running" if source is None else spec.prepare(some_images(source, spec.size, count))


@dataclass(frozen=True)
class Panel:
    """The networks that judge the images, the teacher first, and real images to find copies among."""

    judges: dict[str, Teacher]
    real: Tensor | None

    def ask(self, result: Result, **others: torch.nn.Module) -> Evaluation:
        """Let all networks judge the images, and ``others`` by name, which take the teacher's input."""
        teacher = next(iter(self.judges.values()))
        more = {name: dataclasses.replace(teacher, name=name, model=model) for name, model in others.items()}
        return evaluate(result, self.judges | more, self.real)


def panel(teacher: Teacher, judges: Sequence[str], real: str | None, classes: list[int] | None, device: str) -> Panel:
    """Open and check the judges before any work. ValueError naming the option that does not fit."""
    outputs = teacher.outputs()
    wanted = classes or list(teacher.units or range(outputs))
    asked = {teacher.name: teacher}
    for judge in judges:
        found = asked[judge] = open_named(judge, device, teacher.spec)
        units = found.units or range(found.outputs())
        if missing := [c for c in wanted if c not in units]:
            raise ValueError(f"--judge {judge} has no logit for the classes {missing[:8]} that images are made of")
        require_fit(f"--judge {judge}", torch.zeros(1, *teacher.spec.shape), found.spec)
    pixels = None if real is None else some_images(real, teacher.spec.size, 10_000)
    if pixels is not None:
        if len(pixels) < 2:
            raise ValueError(f"--real must hold at least 2 images, {real} has {len(pixels)}")
        require_fit("--real", pixels[:1], teacher.spec)
    return Panel(asked, pixels)


def require_fit(option: str, image: Tensor, spec: InputSpec) -> None:
    """ValueError naming the option if a network of that input cannot take such images."""
    try:
        spec.prepare(image)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def teacher_of(run: InvertRun | DistillRun | GeneratorRun) -> Teacher:
    """Open the teacher that the options name."""
    asked = run.teacher
    assert asked.model is not None
    return open_teacher(
        asked.model, weights=asked.weights, device=run.machine.device, arguments=asked.arguments, spec=asked.input
    )


def _classes_of(teacher: Teacher, wanted: str) -> list[int] | None:
    return teacher.class_ids([c.strip() for c in wanted.split(",") if c.strip()])


def _has_statistics(run: InvertRun | DistillRun, teacher: Teacher) -> bool:
    return bool(run.matching.layers) or bool(bn_layers(teacher.model))


def _check_synthesis(
    run: InvertRun | DistillRun,
    teacher: Teacher,
    recipe: recipes.Recipe,
    statistics: str | Tensor,
    images: int,
    parametrisation: Parametrisation | None = None,
) -> None:
    """ValueError for settings that a Synthesizer of so many ``images`` refuses."""
    device = torch.device(run.machine.device)
    require_memory(teacher.model, teacher.spec, min(images, recipe.optimisation.batch_size), device, images)
    Synthesizer(
        teacher.model, teacher.spec, recipe, units=teacher.units, device=device, precision=run.machine.precision,
        statistics=statistics, layers=run.matching.layers, parametrisation=parametrisation,
    )  # fmt: skip


def prepared_inversion(
    run: InvertRun,
) -> tuple[Teacher, list[int] | None, recipes.Recipe, dict[str, Any], Panel]:
    """Open and check everything for ``invert``: teacher, classes, recipe, options of the synthesizer, and judges."""
    teacher = teacher_of(run)
    wanted = _classes_of(teacher, run.teacher.classes)
    asked = panel(teacher, run.judging.judges, run.judging.real, wanted, run.machine.device)
    matched = _has_statistics(run, teacher)
    kind = run.parametrisation
    if kind not in (None, *PARAMETRISATIONS):
        raise ValueError(f"--parametrisation must be one of {list(PARAMETRISATIONS)}, got {kind!r}")
    drawn = PARAMETRISATIONS[kind]() if kind else None
    usual = recipes.suited_to(teacher.model, teacher.spec, statistics=matched, parametrisation=drawn)
    recipe = recipes.get(run.recipe or usual).overridden(**run.overrides)
    options: dict[str, Any] = {
        "statistics": real_statistics(run.matching.statistics, teacher.spec, run.matching.statistics_count),
        "parametrisation": drawn,
    }  # fmt: skip
    if run.student:
        student = open_named(run.student, run.machine.device, teacher.spec)
        outputs, given = teacher.outputs(), student.outputs("--student")
        if given != outputs:
            raise ValueError(f"--student must give {outputs} logits, {student.name} gives {given}")
        if student.units not in (None, teacher.units or tuple(range(outputs))):
            raise ValueError(f"--student has logits for {student.units}, the teacher for {teacher.units or 'others'}")
        if dataclasses.replace(student.spec, size=teacher.spec.size) != teacher.spec:
            raise ValueError(f"--student takes {student.spec}, the teacher {teacher.spec}: they see the same images")
        options["student"] = student.model
    elif recipe.competition.compete > 0:
        raise ValueError(f"--student must be given: recipe {recipe.name!r} competes with one")
    classes = wanted or range(teacher.outputs())
    images = run.per_class * len(classes)
    _check_synthesis(run, teacher, recipe, options["statistics"], images, drawn)
    return teacher, wanted, recipe, options, asked


@dataclass(frozen=True)
class PreparedDistillation:
    """Everything that ``distill`` starts from."""

    teacher: Teacher
    classes: list[int] | None
    student: torch.nn.Module
    arguments: dict[str, Any]
    images: Result | Shards | None
    source: ImageSource | Fast | None
    recipes: list[recipes.Recipe]
    statistics: str | Tensor
    config: Distillation
    test: Split | None
    panel: Panel

    @property
    def drawn(self) -> bool:
        """Whether no classes can be asked for: a source draws the images, or they are in shards."""
        return isinstance(self.images, Shards) or (self.source is not None and not isinstance(self.source, Fast))

    def described(self) -> dict[str, Any] | None:
        """Settings of the source of images, by JSON values."""
        if isinstance(self.source, Fast):
            return {"kind": FAST, **self.source.to_dict()}
        return None if self.source is None else self.source.describe()


def prepared_distillation(run: DistillRun) -> PreparedDistillation:
    """Open and check everything for ``distill``."""
    teacher = teacher_of(run)
    wanted = _classes_of(teacher, run.teacher.classes)
    asked = panel(teacher, run.judging.judges, run.judging.real, wanted, run.machine.device)
    config = Distillation().replace(engine_precision=run.machine.precision, **run.learning.distillation)
    source = Fast().replace(**run.inversion) if run.images == FAST else parse_source(run.images)
    drawn = source is not None and not isinstance(source, Fast)
    first: Result | Shards | None = None
    if run.images is not None and source is None:
        stored = (Path(run.images) / JOB_FILE).is_file()
        first = Shards(run.images) if stored else Result.load(run.images)
    if first is not None and first.spec != teacher.spec:
        raise ValueError(f"--images: {run.images} holds {first.spec}, the teacher takes {teacher.spec}")
    named: list[str | recipes.Recipe] = list(run.recipes)
    if named and source is not None:
        raise ValueError(f"--recipe {run.recipes[0]}: --images {run.images} makes all images, so a recipe makes none")
    if isinstance(first, Shards) and (named or run.teacher.classes):
        option = "--recipe" if named else "--classes"
        raise ValueError(f"{option}: --images {run.images} holds shards, whose images are made already")
    if run.teacher.classes and drawn:
        raise ValueError(f"--classes: --images {run.images} draws images of no class, which the teacher labels")
    if not named and first is None and source is None:
        matched = _has_statistics(run, teacher)
        named = [recipes.suited_to(teacher.model, teacher.spec, statistics=matched, adaptive=True)]
    if run.inversion and not named and not isinstance(source, Fast):
        raise ValueError(f"--set changes a recipe or --images {FAST}: give one of them too")
    in_turn = [recipes.get(name).overridden(**run.inversion) for name in named]
    statistics = real_statistics(run.matching.statistics, teacher.spec, run.matching.statistics_count)
    generation = config.generation.resolved(config.training.batch_size, drawn)
    for recipe in in_turn:
        assert generation.per_round is not None
        _check_synthesis(run, teacher, recipe, statistics, generation.per_round)
    if isinstance(source, Fast):
        FastSynthesis(
            teacher.model, teacher.spec, source, units=teacher.units, classes=wanted, statistics=statistics,
            layers=run.matching.layers, device=run.machine.device,
        )  # fmt: skip
    outputs = teacher.outputs()
    arguments = complete_arguments(run.learning.student, run.learning.student_arguments, outputs, teacher.spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.machine.seed)
        student = create(run.learning.student, **arguments).to(run.machine.device)
    given = dataclasses.replace(teacher, name=run.learning.student, model=student).outputs("--student")
    if given != outputs:
        raise ValueError(f"--student must give {outputs} logits, {run.learning.student} gives {given}")
    require_memory(student, teacher.spec, config.training.batch_size, torch.device(run.machine.device))
    test = None if run.learning.data is None else load(run.learning.data, run.learning.data_root).test
    if test is not None:
        require_fit("--data", test.images[:1], teacher.spec)
        units = teacher.units or range(outputs)
        if not any(label in units for label in test.labels.unique().tolist()):
            raise ValueError(
                f"--data: {run.learning.data} has no test image of the teacher's classes {list(units)[:8]}"
            )
    given = 0 if first is None or isinstance(first, Shards) else len(first)
    require_room(
        config.training, generation, teacher.spec, given, source is not None or bool(in_turn), run.pool_dir,
        cheap=drawn,
    )  # fmt: skip
    return PreparedDistillation(
        teacher, wanted, student, arguments, first, source, in_turn, statistics, config, test, asked
    )


def open_named(text: str, device: str = "cpu", spec: InputSpec | None = None) -> Teacher:
    """A network of an option: ``SOURCE[:NAME=VALUE,...][=WEIGHTS]``, the pairs being arguments of its architecture.

    ``spec``: the input of architectures of ours, which carry none.
    """
    typed = TYPED.match(text)
    own = "" if typed is None or typed[1] in OWN else typed[0]
    found = NAMED.fullmatch(text.replace(own, "own", 1) if own else text)
    if Path(text).exists() or found is None:
        return open_teacher(text, device=device)
    source, pairs, weights = found.groups()
    source = own or source
    arguments = parse_pairs(f"arguments of {source}", pairs.split(",") if pairs else [])
    taken = spec.to_dict() if spec is not None and source in OWN else None
    return open_teacher(source, weights=weights or "DEFAULT", device=device, arguments=arguments, spec=taken)
