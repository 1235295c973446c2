"""Nayak 2021's experiments as tasks: Tables 1 to 5 and 7, Figures 3, 4 and 6."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checks import is_count, is_number
from exml_fast.continual import Augmentation, Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec, Split, load
from exml_fast.engine import PRECISIONS
from exml_fast.inversion import Recipe, Result, Synthesizer, class_similarity, invert, recipes
from exml_fast.models import create
from exml_fast.reproduction.runner import Context, Outcome, Preset, task
from exml_fast.storage import load_json, save_json, save_tensors
from exml_fast.training import placed
from exml_fast.transfer.adaptation import adapt, adapt_by_rehearsal, tsne
from exml_fast.transfer.perturbation import (
    EPSILON,
    PerturbationGenerator,
    fooling_rate,
    perturbed,
    universal_perturbations,
)
from exml_fast.transfer.robustness import ATTACKS, Attack, adversarial_training, attack_accuracies, pgd
from exml_fast.transfer.training import (
    Training,
    accuracy,
    class_accuracies,
    features,
    logits_of,
    train_classifier,
)
from exml_fast.transfer.zskd import TEMPERATURE, transfer_set_sweep, zskd

__all__ = ["CLASS_IMPRESSIONS", "Lab"]

CLASS_IMPRESSIONS = {"targets": "hard"}
BY_BOUND = "Fooling rate by the bound of the perturbations"
REHEARSAL_WEIGHTS = ("information", "consistency", "confidence")
SHOWN = 4
# Tables of [attack] with what differs while the robust teacher, and while the student under attack, is trained.
TRAINED_UNDER = ("training", "distillation")
# Whether a setting fits, and what is expected of it.
Range = tuple[Callable[[Any], bool], str]


class Lab:
    """A teacher on a data set's images, its impressions and its students, as a preset asks for them."""

    def __init__(self, preset: Preset, context: Context) -> None:
        self.preset, self.context = preset, context
        self.outcome = Outcome()
        self._seconds = context.folder / "seconds.json"
        if self._seconds.is_file():
            self.outcome.seconds = load_json(self._seconds)
        # Whatever is wrong with the settings shows before anything is computed.
        _check(preset)
        self.recipe, self.count = self._recipe()
        self.precision = preset["impressions"].get("precision", "auto")
        self.data = load(preset["data"], context.data_root)
        self.classes = len(self.data.class_names)
        if self.count % self.classes:
            raise ValueError(f"impressions.count must be a multiple of the {self.classes} classes, got {self.count}")
        given = preset["teacher"].get("expert")
        self.expert = None if given is None else Expert.load(given)
        if self.expert is not None and self.expert.card.units != tuple(range(self.classes)):
            raise ValueError(
                f"teacher.expert must have a logit for each of the {self.classes} classes, in their order; "
                f"its are of classes {list(self.expert.card.units)}"
            )
        # Pixels in [0, 1] go into the networks as they are (Nayak 2021, 4.1.2.1).
        channels = self.data.spec.channels
        self.spec = InputSpec(channels, self.data.spec.size, (0.0,) * channels, (1.0,) * channels)
        if self.expert is not None:
            self.spec = self.expert.card.input_spec
        self.outcome.class_names = list(self.data.class_names)
        sizes = preset.get("sweep", {}).get("sizes", [])
        if sizes and min(sizes) > (most := min(self.count, len(self.data.train))):
            raise ValueError(f"sweep.sizes must hold one of at most {most} images, got {sizes}")
        if "adaptation" in preset:
            self._open_target(preset["adaptation"])
        if "perturbation" in preset:
            PerturbationGenerator(self.spec, preset["perturbation"].get("epsilon", EPSILON))
        for table in ("teacher", "student"):
            if table in preset:
                self._try(table)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the seconds of a block, also where it is interrupted."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.outcome.seconds[name] = round(self.outcome.seconds.get(name, 0.0) + took, 3)
            save_json(self._seconds, self.outcome.seconds)

    def network(self, table: str, offset: int = 0) -> nn.Module:
        """The freshly initialised network of a table, or the expert that it names."""
        if table == "teacher" and self.expert is not None:
            return placed(copy.deepcopy(self.expert.model), torch.device(self.context.device))
        architecture, arguments = self._architecture(table)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed + offset)
            return placed(create(architecture, **arguments), torch.device(self.context.device))

    def teacher(self, train: Split | None = None, robust: bool = False) -> nn.Module:
        """Trained with cross-entropy, or on PGD examples; kept in the context's folder."""
        name = "robust teacher" if robust else "teacher"
        folder = self.context.folder / name.replace(" ", "_")
        if (folder / "card.json").is_file():
            return placed(Expert.load(folder).model, torch.device(self.context.device))
        model = self.network("teacher")
        if self.expert is not None:
            return model
        train, config = train or self.data.train, training(self.preset["teacher"], "teacher")
        options: dict[str, Any] = {"seed": self.context.seed, "progress": self.context.progress}
        with self.stage(name):
            if robust:
                config = dataclasses.replace(config, steps=self.preset["attack"].get("training_steps", config.steps))
                attack = attack_of(self.preset["attack"], "training")
                adversarial_training(model, train, self.spec, config, attack, **options)
            else:
                train_classifier(model, train, self.spec, config, **options)
        self.save(model, "teacher", folder.name)
        return model

    def impressions(self, teacher: nn.Module, name: str = "impressions", **changes: Any) -> Result:
        """Of all classes and scaling factors, in one call; kept in the context's folder, resumed where interrupted."""
        folder = self.context.folder / name.replace(" ", "_")
        if (folder / "result.json").is_file():
            return self._noted(Result.load(folder), name)
        checkpoints = folder.with_suffix(".checkpoint")
        with self.stage(name):
            result = invert(
                teacher, per_class=self.count // self.classes, recipe=self.recipe.replace(**changes), spec=self.spec,
                seed=self.context.seed, device=self.context.device, precision=self.precision,
                progress=self.context.progress, checkpoint_dir=checkpoints,
            )  # fmt: skip
        result.save(folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return self._noted(result, name)

    def _noted(self, result: Result, name: str) -> Result:
        keys = ("images", "steps", "images_per_second", "teacher_accuracy", "confidence", "precision")
        self.outcome.settings[name] = {key: result.summary[key] for key in keys}
        self.show(name.capitalize(), result.pixels(), result.labels)
        return result

    def student(self, teacher: nn.Module, images: Tensor, stage: str, attack: Attack | None = None) -> nn.Module:
        """Distilled from these images, or from what ``attack`` makes of them."""
        student, table = self.network("student", 1000), self.preset["distillation"]
        with self.stage(stage):
            zskd(
                teacher, student, images, self.spec, config=training(table, "distillation"),
                temperature=table.get("temperature", TEMPERATURE), mixup=table.get("mixup", 0.0),
                attack=attack, seed=self.context.seed, progress=self.context.progress,
            )  # fmt: skip
        return student

    def save(self, model: nn.Module, table: str, name: str) -> None:
        """As an expert that every other command can read."""
        architecture, arguments = self._architecture(table)
        ids = tuple(range(self.classes))
        made = {"task": self.preset["task"], "data": self.data.name, "seed": self.context.seed}
        card = Card(architecture, arguments, ids, ids, tuple(self.data.class_names), self.spec, made)
        Expert(model, card).save(self.context.folder / name)

    def show(self, title: str, pixels: Tensor, labels: Tensor) -> None:
        """Some images of every class."""
        chosen = torch.cat([torch.nonzero(labels == c)[:SHOWN, 0] for c in range(self.classes)])
        self.outcome.samples[title] = (pixels[chosen], labels[chosen])

    def similarity(self, teacher: nn.Module) -> None:
        """Note the class similarities that the targets of the impressions are drawn by, if they are."""
        if self.recipe.targets == "dirichlet":
            self.outcome.matrices["Class similarities of the teacher"] = self._similarity(teacher)

    def percent(self, cell: str, share: float) -> None:
        """Note a figure."""
        self.outcome.values[cell] = 100 * share

    def _open_target(self, table: dict[str, Any]) -> None:
        """The data to adapt to; ValueError unless they suit the source's, and there are as many images as asked for."""
        self.target = load(table["target"], self.context.data_root)
        if (found := len(self.target.class_names)) != self.classes:
            raise ValueError(f"adaptation.target has {found} classes, {self.data.name!r} {self.classes}")
        if missing := sorted(set(range(self.classes)) - set(self.target.test.labels.tolist())):
            raise ValueError(f"adaptation.target has no test images of classes {missing}")
        for split, name in ((self.data.train, "source_images"), (self.target.train, "target_images")):
            unused = name == "source_images" and self.expert is not None
            if not unused and (count := table.get(name, 0)) > len(split):
                raise ValueError(f"adaptation.{name} must be at most {len(split)}, got {count}")

    def _similarity(self, teacher: nn.Module) -> Tensor:
        example = torch.zeros(1, *self.spec.shape, device=next(teacher.parameters()).device)
        return class_similarity(
            teacher, normalize=self.recipe.similarity_minmax, layer=self.recipe.similarity_layer, example=example
        )

    def _try(self, table: str) -> None:
        """ValueError unless a table's network answers for one image with a logit a class, and has similar classes."""
        network = self.network(table).eval()
        image = torch.zeros(1, *self.spec.shape, device=next(network.parameters()).device)
        try:
            with torch.no_grad():
                logits = network(image)
        except RuntimeError as error:
            raise ValueError(f"{table}: the network does not take images of {self.spec.shape}: {error}") from error
        if tuple(logits.shape) != (1, self.classes):
            raise ValueError(f"{table} must give {self.classes} logits an image, got shape {tuple(logits.shape)}")
        if table == "teacher":
            if self.recipe.targets == "dirichlet":
                self._similarity(network)
            # Refuses a recipe that needs what the network lacks.
            Synthesizer(network, self.spec, self.recipe, engine=False)

    def _architecture(self, table: str) -> tuple[str, dict[str, Any]]:
        if table == "teacher" and self.expert is not None:
            return self.expert.card.architecture, dict(self.expert.card.arguments)
        architecture = self.preset[table]["architecture"]
        return architecture, complete_arguments(
            architecture, self.preset[table].get("arguments"), self.classes, self.spec
        )

    def _recipe(self) -> tuple[Recipe, int]:
        table = dict(self.preset["impressions"])
        count = table.pop("count")
        table.pop("precision", None)
        recipe = recipes.get(table.pop("recipe", "data_impressions/nayak")).replace(**table)
        if recipe.compete:
            raise ValueError(f"impressions.compete must be 0, as no student competes here, got {recipe.compete}")
        return recipe, count


COUNT: Range = (is_count, "a positive integer")
NO_OR_COUNT: Range = (lambda v: v == 0 or is_count(v), "an integer of at least 0")
POSITIVE: Range = (lambda v: is_number(v) and v > 0, "a positive number")
WEIGHT: Range = (lambda v: is_number(v) and v >= 0, "a number of at least 0")
SHARE: Range = (lambda v: is_number(v) and 0 <= v <= 1, "in [0, 1]")
BOUND: Range = (lambda v: is_number(v) and 0 < v <= 1, "in (0, 1]")
FLAG: Range = (lambda v: isinstance(v, bool), "true or false")
TEXT: Range = (lambda v: isinstance(v, str), "a text")
TABLE: Range = (lambda v: isinstance(v, dict), "a table")
NETWORK = {"architecture": TEXT, "arguments": TABLE}


def _list_of(each: Range) -> Range:
    return lambda values: isinstance(values, list) and all(map(each[0], values)), f"a list, each {each[1]}"


# What each table of a preset may hold, but for the fields of Training, Attack and Recipe.
SETTINGS: dict[str, dict[str, Range]] = {
    "teacher": NETWORK | {"expert": TEXT},
    "student": NETWORK,
    "impressions": {"count": COUNT, "recipe": TEXT, "precision": (PRECISIONS.__contains__, f"one of {PRECISIONS}")},
    "distillation": {"temperature": POSITIVE, "mixup": WEIGHT},
    "sweep": {"sizes": _list_of(COUNT), "steps": COUNT},
    "attack": {"training_steps": COUNT, "test_images": COUNT, **dict.fromkeys(TRAINED_UNDER, TABLE)},
    "adaptation": {
        "target": TEXT, "source_images": COUNT, "target_images": COUNT, "discriminator_lr": POSITIVE,
        "tsne": NO_OR_COUNT,
    },
    "rehearsal": {"information": WEIGHT, "consistency": WEIGHT, "confidence": SHARE},
    "perturbation": {
        "epsilon": BOUND, "epsilons": _list_of(BOUND), "clamp": FLAG, "samples": COUNT, "diversity": WEIGHT,
        "class_impressions": FLAG, "real_images": FLAG,
    },
}  # fmt: skip
# Tables that say how something is trained.
LEARNING = ("teacher", "distillation", "adaptation", "rehearsal", "perturbation")
# Settings and tables of all tasks, and what each task needs and may have beside them.
EVERY_TASK = ("data", "teacher", "impressions")
NEEDED = {
    "zskd": ("student", "distillation"),
    "robustness": ("student", "distillation", "attack"),
    "adapt": ("adaptation",),
    "perturb": ("perturbation",),
}
OPTIONAL = {"zskd": ("sweep", "compare"), "robustness": (), "adapt": ("rehearsal",), "perturb": ()}
NEEDED_SETTINGS = (
    ("teacher", "architecture"), ("student", "architecture"), ("impressions", "count"), ("adaptation", "target"),
    ("sweep", "sizes"), ("sweep", "steps"),
)  # fmt: skip


def check(preset: Preset, data_root: str | None, device: str) -> None:
    """ValueError or ImportError for what a preset of one of these tasks cannot be run with."""
    with tempfile.TemporaryDirectory() as nothing:
        Lab(preset, Context(Path(nothing), 0, data_root, device, None))


def _check(preset: Preset) -> None:
    """The same, as far as it shows without data or networks."""
    name = preset["task"]
    needed = (*EVERY_TASK, *NEEDED[name])
    if missing := [part for part in needed if part not in preset]:
        raise ValueError(f"preset: {missing[0]!r} is missing")
    known = {*needed, *OPTIONAL[name], "task", "paper", "published", "usual"}
    if unknown := sorted(set(preset) - known):
        raise ValueError(f"preset: {unknown[0]!r} is not known to task {name!r}; expected {sorted(known)}")
    _in_range("", preset, {"data": TEXT, "compare": FLAG})
    for table, ranges in SETTINGS.items():
        if table in preset:
            own = _fields(Training) if table in LEARNING else _fields(Attack) if table == "attack" else set()
            if table != "impressions":  # whose other fields are the recipe's, which names them itself
                _only(table, preset[table], own | set(ranges))
            _in_range(f"{table}.", preset[table], ranges)
    for table, key in NEEDED_SETTINGS:
        if table in preset and key not in preset[table] and not (table == "teacher" and "expert" in preset[table]):
            raise ValueError(f"preset: {table}.{key} is missing")
    if "expert" in preset["teacher"]:
        _only("teacher with an expert", preset["teacher"], {"expert"})
    for table in LEARNING:
        if table in preset:
            training(preset[table], table)
    if "attack" in preset:
        for part in ("", *TRAINED_UNDER):
            attack_of(preset["attack"], part)
        if "expert" in preset["teacher"]:
            raise ValueError("teacher.expert: the teachers of task 'robustness' are trained by it, one under attack")
        _require("art", "attacks", "adversarial-robustness-toolbox")
    if preset.get("adaptation", {}).get("tsne"):
        _require("sklearn", "eval", "scikit-learn")


def _require(module: str, extra: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"this needs {package}: pip install 'exml_fast[{extra}]'")


def _in_range(prefix: str, table: dict[str, Any], ranges: dict[str, Range]) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{prefix[:-1]} must be a table of {sorted(ranges)}, got {table!r}")
    for name, (fits, expected) in ranges.items():
        if name in table and not fits(table[name]):
            raise ValueError(f"{prefix}{name} must be {expected}, got {table[name]!r}")


@task("zskd", check)
def run_zskd(preset: Preset, context: Context) -> Outcome:
    """Tables 1 to 3, and with ``[sweep]`` Figures 3 and 4.

    ``compare = true`` adds the students of the same tables: with labels, and distilled from the real images.
    """
    lab = Lab(preset, context)
    teacher = lab.teacher()
    test, real = lab.data.test, lab.spec.prepare(lab.data.train.images)
    lab.percent("Teacher-CE", accuracy(teacher, test, lab.spec))
    lab.similarity(teacher)
    impressions = lab.impressions(teacher)
    student = lab.student(teacher, impressions.images, "zskd")
    lab.save(student, "student", "student")
    lab.percent("ZSKD", accuracy(student, test, lab.spec))
    sweep = preset.get("sweep")
    classes = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS) if preset.get("compare") else None
    if classes is not None:
        with lab.stage("student with labels"):
            alone = lab.network("student", 1000)
            table = training(preset["distillation"], "distillation")
            train_classifier(alone, lab.data.train, lab.spec, table, seed=context.seed, progress=context.progress)
        lab.percent("Student-CE", accuracy(alone, test, lab.spec))
        taught = lab.student(teacher, real, "student on real images")
        lab.percent("Student-KD", accuracy(taught, test, lab.spec))
        other = lab.student(teacher, classes.images, "student on class impressions")
        lab.percent("Class Impressions", accuracy(other, test, lab.spec))
    if sweep is not None:
        sets = {"Data Impressions": impressions.images, "Data samples": real}
        if classes is not None:
            sets["Class Impressions"] = classes.images
        sizes = [size for size in sweep["sizes"] if size <= min(len(images) for images in sets.values())]
        # Figures 3 and 4 are without augmentation.
        plain = dataclasses.replace(
            training(preset["distillation"], "distillation"), augmentation=Augmentation(shift=0)
        )
        plain = dataclasses.replace(plain, steps=sweep["steps"])
        shuffled = torch.Generator().manual_seed(context.seed)
        sets["Data samples"] = real[torch.randperm(len(real), generator=shuffled)]
        with lab.stage("sweep"):
            found = transfer_set_sweep(
                teacher, lambda seed: lab.network("student", seed), sets, sizes, test, lab.spec, config=plain,
                seed=context.seed, progress=context.progress,
            )  # fmt: skip
        share = [100 * size / len(lab.data.train) for size in sizes]
        lab.outcome.lines["Test accuracy by transfer-set size in % of the training set"] = {
            name: list(zip(share, [100 * v for v in values], strict=True)) for name, values in found.items()
        }
        for name, values in found.items():
            for size, value in zip(sizes, values, strict=True):
                lab.percent(f"{name}, {size}", value)
    return lab.outcome


@task("robustness", check)
def run_robustness(preset: Preset, context: Context) -> Outcome:
    """Table 4: attacks on a plain and a robust teacher, and on the students of their impressions.

    With ``[attack.distillation]`` also on a student of the robust teacher's impressions under attack (ours).
    """
    lab = Lab(preset, context)
    attack = attack_of(preset["attack"])
    test = first_images(lab.data.test, preset["attack"].get("test_images"))
    for robust in (False, True):
        kind = "robust" if robust else "non-robust"
        teacher = lab.teacher(robust=robust)
        impressions = lab.impressions(teacher, f"impressions of the {kind} teacher")
        student = lab.student(teacher, impressions.images, f"student of the {kind} teacher")
        lab.save(student, "student", f"student_of_the_{kind}_teacher")
        networks = {"Teacher": teacher, "Student": student}
        if robust and "distillation" in preset["attack"]:
            met = attack_of(preset["attack"], "distillation")
            networks["Student under attack"] = lab.student(
                teacher, impressions.images, "student under attack", attack=met
            )
            lab.save(networks["Student under attack"], "student", "student_under_attack")
        for who, model in networks.items():
            lab.percent(f"{kind} {who}/A_nat", accuracy(model, test, lab.spec))
            with lab.stage("attacks"):
                found = attack_accuracies(model, test, lab.spec, attack, ATTACKS, seed=context.seed)
            for name in ATTACKS:
                lab.percent(f"{kind} {who}/{name} A_adv", found.adversarial[name])
                lab.percent(f"{kind} {who}/{name} F.R.", found.fooling[name])
    return lab.outcome


@task("adapt", check)
def run_adapt(preset: Preset, context: Context) -> Outcome:
    """Table 5 and Figure 6: the source network on the target's test images before and after adaptation, by class.

    With ``[rehearsal]`` also after our own adaptation, from the same impressions and target images.
    """
    table = preset["adaptation"]
    lab = Lab(preset, context)
    target = lab.target
    draw = torch.Generator().manual_seed(context.seed)
    # A source network that is given has had its images.
    count = None if lab.expert is not None else table.get("source_images")
    source_images = sampled(lab.data.train, count, draw)
    unlabelled = sampled(target.train, table.get("target_images"), draw)
    source = lab.teacher(source_images)
    impressions = lab.impressions(source)
    lab.show(f"Target images ({target.name})", lab.spec.fit(target.test.images), target.test.labels)
    images, aim = impressions.images, lab.spec.prepare(unlabelled.images)
    options: dict[str, Any] = {"seed": context.seed, "progress": context.progress}
    networks = {"Baseline": source}
    with lab.stage("adaptation"):
        adversarial = {"config": training(table, "adaptation"), "discriminator_lr": table.get("discriminator_lr")}
        networks["Ours"] = adapt(source, images, aim, lab.spec, **adversarial, **options).model
    lab.save(networks["Ours"], "teacher", "adapted")
    if "rehearsal" in preset:
        weights = {name: preset["rehearsal"][name] for name in REHEARSAL_WEIGHTS if name in preset["rehearsal"]}
        with lab.stage("rehearsal"):
            networks["Rehearsal"] = adapt_by_rehearsal(
                source, images, aim, lab.spec, config=training(preset["rehearsal"], "rehearsal"), **weights, **options
            ).model
        lab.save(networks["Rehearsal"], "teacher", "adapted_by_rehearsal")
    lab.percent("Source on its own test images", accuracy(source, lab.data.test, lab.spec))
    for name, model in networks.items():
        by_class = class_accuracies(model, target.test, lab.spec, lab.classes)
        lab.percent(f"{name}/Avg", accuracy(model, target.test, lab.spec))
        for c, share in enumerate(by_class.tolist()):
            lab.percent(f"{name}/C{c + 1}", share)
    if shown := table.get("tsne", 0):
        some = lab.spec.prepare(target.test.images[:shown])
        mine = images[:shown]
        titles = {"Baseline": "before adaptation", "Ours": "after adaptation", "Rehearsal": "after rehearsal"}
        with lab.stage("t-SNE"):
            for name, model in networks.items():
                flat = tsne([features(source, mine), features(model, some)], context.seed)
                named = zip(("impressions", "target images"), flat, strict=True)
                lab.outcome.points[f"t-SNE of the features {titles[name]}"] = dict(named)
    return lab.outcome


@task("perturb", check)
def run_perturb(preset: Preset, context: Context) -> Outcome:
    """Table 7, with Class Impressions beside, and yardsticks; ``epsilons`` adds the same for other bounds.

    Random signs of size ε say what any noise of that size does; PGD made for each image alone with the same ε, what no
    perturbation common to all can be expected to exceed; ``real_images``, what the same generator reaches that is
    trained on the training images.
    """
    table = preset["perturbation"]
    lab = Lab(preset, context)
    bound, clamp, number = table.get("epsilon", EPSILON), table.get("clamp", True), table.get("samples", 10)
    bounds = sorted({bound, *table.get("epsilons", [])})
    teacher, test = lab.teacher(), lab.data.test
    lab.percent("Accuracy", accuracy(teacher, test, lab.spec))
    made = {"Ours": lab.impressions(teacher).images}
    if table.get("class_impressions"):
        made["AAA"] = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS).images
    if table.get("real_images"):
        made["Real images"] = lab.spec.prepare(lab.data.train.images)

    def trained(images: Tensor, epsilon: float) -> Tensor:
        with lab.stage("perturbations"):
            generator = universal_perturbations(
                teacher, images, lab.spec, epsilon=epsilon, config=training(table, "perturbation"),
                diversity=table.get("diversity", 1.0), clamp=clamp, seed=context.seed, progress=context.progress,
            ).generator  # fmt: skip
        return generator.sample(number, context.seed).cpu()

    rates: dict[str, list[tuple[float, float]]] = {}
    for epsilon in bounds:
        drawn = {name: trained(images, epsilon) for name, images in made.items()}
        if epsilon == bound:
            save_tensors(context.folder / "perturbations.safetensors", {"perturbations": drawn["Ours"]})
            flat = (0.5 + drawn["Ours"] * torch.tensor(lab.spec.std)[:, None, None] / (2 * epsilon)).clamp(0, 1)
            lab.outcome.samples["Perturbations, ±ε drawn as white and black"] = (flat, -1 - torch.arange(number))
            x = test.normalized(lab.spec, slice(0, number))
            pixels = perturbed(x, drawn["Ours"][: len(x)], lab.spec, clamp)
            lab.outcome.samples["Perturbed test images"] = (
                lab.spec.denormalize(pixels).clamp(0, 1),
                test.labels[: len(x)],
            )
        noise = torch.Generator().manual_seed(context.seed)
        signs = 2.0 * torch.randint(0, 2, (number, *lab.spec.shape), generator=noise) - 1
        drawn["Random signs"] = epsilon * signs / torch.tensor(lab.spec.std)[:, None, None]
        found = {
            name: float(fooling_rate(teacher, perturbations, test, lab.spec, clamp=clamp).mean())
            for name, perturbations in drawn.items()
        }
        found["PGD for each image"] = individual_rate(teacher, first_images(test, 2000), lab.spec, epsilon, clamp)
        for name, share in found.items():
            lab.percent(name if epsilon == bound else f"{name} at ε = {epsilon:g}", share)
            rates.setdefault(name, []).append((epsilon, 100 * share))
    if len(bounds) > 1:
        lab.outcome.lines[BY_BOUND] = rates
        lab.outcome.axes[BY_BOUND] = ("ε, pixels being in [0, 1]", "fooling rate, %")
    return lab.outcome


def individual_rate(model: nn.Module, split: Split, spec: InputSpec, epsilon: float, clamp: bool = True) -> float:
    """Share of images whose predicted class PGD of 40 steps, made for the image alone, changes."""
    attack, changed = Attack(epsilon, epsilon / 10, 40), 0
    device = next(model.parameters()).device
    for x, _ in split.batches(spec):
        said = logits_of(model, x).argmax(1)
        attacked = pgd(model, x.to(device), said.to(device), attack, spec, clamp=clamp)
        changed += int((logits_of(model, attacked.cpu()).argmax(1) != said).sum())
    return changed / len(split)


def training(table: dict[str, Any], name: str) -> Training:
    """The fields of :class:`Training` in the preset's table ``name``; ``augmentation`` is a table of its own."""
    own = _fields(Training)
    given = {key: value for key, value in table.items() if key in own}
    if "augmentation" in given:
        _only(f"{name}.augmentation", given["augmentation"], _fields(Augmentation))
        given["augmentation"] = Augmentation(**({"shift": 0} | given["augmentation"]))
    try:
        return Training(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def attack_of(table: dict[str, Any], part: str = "") -> Attack:
    """The fields of :class:`Attack` in a preset's table [attack]; with ``part`` those that its table has from there."""
    own, changes = _fields(Attack), table.get(part, {})
    _only(f"attack.{part}", changes, own)
    fields = {name: value for name, value in (table | changes).items() if name in own}
    try:
        return Attack(**fields)
    except ValueError as error:
        raise ValueError(f"attack{'.' * bool(part)}{part}: {error}") from error


def first_images(split: Split, count: int | None) -> Split:
    """The first ``count``, or all."""
    return split if count is None else Split(split.images[:count], split.labels[:count])


def sampled(split: Split, count: int | None, generator: torch.Generator) -> Split:
    """``count`` random images, or all (Nayak 2021, 4.2: 2000 of MNIST and 1800 of USPS)."""
    if count is None:
        return split
    if not 0 < count <= len(split):
        raise ValueError(f"a sample must have between 1 and {len(split)} images, got {count}")
    chosen = torch.randperm(len(split), generator=generator)[:count]
    return Split(split.images[chosen], split.labels[chosen])


def _fields(kind: type[Training] | type[Augmentation] | type[Attack]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _only(name: str, table: Any, expected: set[str]) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table of {sorted(expected)}, got {table!r}")
    if unknown := sorted(set(table) - expected):
        raise ValueError(f"{name}: {unknown[0]!r} is not known; expected {sorted(expected)}")
