"""The paper's experiments as tasks for :mod:`exml_fast.reproduce`: Tables 1 to 5 and 7, Figures 3, 4 and 6."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual import Augmentation, Card, Expert
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import InputSpec, Split, load
from exml_fast.inversion import Recipe, Result, class_similarity, invert, recipes
from exml_fast.models import create
from exml_fast.reproduce import Context, Outcome, Preset, task
from exml_fast.training import placed
from exml_fast.transfer.adaptation import adapt, adapt_by_rehearsal, tsne
from exml_fast.transfer.perturbation import EPSILON, fooling_rate, perturbed, universal_perturbations
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


class Lab:
    """A teacher on a data set's images, its impressions and its students, as a preset asks for them."""

    def __init__(self, preset: Preset, context: Context) -> None:
        self.preset, self.context = preset, context
        self.outcome = Outcome()
        _known(preset, {"task", "data", "teacher", "impressions", "paper", "published", *TASK_TABLES[preset["task"]]})
        # Whatever is wrong with the settings shows before anything is computed.
        self.recipe, self.count = self._recipe()
        self.precision = preset["impressions"].get("precision", "auto")
        for name in ("teacher", "student", "distillation", "adaptation", "rehearsal", "perturbation"):
            if name in preset:
                training(preset[name])
        if "attack" in preset:
            for part in ("", *TRAINED_UNDER):
                attack_of(preset["attack"], part)
        self.data = load(preset["data"], context.data_root)
        self.classes = len(self.data.class_names)
        # Pixels in [0, 1] go into the networks as they are (Nayak 2021, 4.1.2.1).
        channels = self.data.spec.channels
        self.spec = InputSpec(channels, self.data.spec.size, (0.0,) * channels, (1.0,) * channels)
        self.outcome.class_names = list(self.data.class_names)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the seconds of a block."""
        begun = time.perf_counter()
        yield
        took = time.perf_counter() - begun
        self.outcome.seconds[name] = round(self.outcome.seconds.get(name, 0.0) + took, 3)

    def network(self, table: str, offset: int = 0) -> nn.Module:
        """The freshly initialised network of a table."""
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
        train, config = train or self.data.train, training(self.preset["teacher"])
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
            return Result.load(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self.stage(name):
            result = invert(
                teacher, per_class=self.count // self.classes, recipe=self.recipe.replace(**changes), spec=self.spec,
                seed=self.context.seed, device=self.context.device, precision=self.precision,
                progress=self.context.progress, checkpoint=folder.with_suffix(".pt"),
            )  # fmt: skip
        result.save(folder)
        keys = ("images", "steps", "images_per_second", "teacher_accuracy", "confidence", "precision")
        self.outcome.settings[name] = {key: result.summary[key] for key in keys}
        self.show(name.capitalize(), result.pixels(), result.labels)
        return result

    def student(self, teacher: nn.Module, images: Tensor, stage: str, attack: Attack | None = None) -> nn.Module:
        """Distilled from these images, or from what ``attack`` makes of them."""
        student, table = self.network("student", 1000), self.preset["distillation"]
        with self.stage(stage):
            zskd(
                teacher, student, images, self.spec, config=training(table),
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

    def percent(self, cell: str, share: float) -> None:
        """Note a figure."""
        self.outcome.values[cell] = 100 * share

    def _architecture(self, table: str) -> tuple[str, dict[str, Any]]:
        architecture = self.preset[table]["architecture"]
        return architecture, complete_arguments(
            architecture, self.preset[table].get("arguments"), self.classes, self.spec
        )

    def _recipe(self) -> tuple[Recipe, int]:
        table = dict(self.preset["impressions"])
        count = table.pop("count")
        table.pop("precision", None)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"impressions.count must be a positive integer, got {count!r}")
        return recipes.get(table.pop("recipe", "data_impressions/nayak")).replace(**table), count


# Tables that each task reads beside those of all.
TASK_TABLES = {
    "zskd": {"student", "distillation", "sweep", "compare"},
    "robustness": {"student", "distillation", "attack"},
    "adapt": {"adaptation", "rehearsal"},
    "perturb": {"perturbation"},
}


@task("zskd")
def run_zskd(preset: Preset, context: Context) -> Outcome:
    """Tables 1 to 3, and with ``[sweep]`` Figures 3 and 4.

    ``compare = true`` adds the students of the same tables: with labels, and distilled from the real images.
    """
    lab = Lab(preset, context)
    teacher = lab.teacher()
    test, real = lab.data.test, lab.spec.prepare(lab.data.train.images)
    lab.percent("Teacher-CE", accuracy(teacher, test, lab.spec))
    lab.outcome.matrices["Class similarities of the teacher"] = class_similarity(teacher)
    impressions = lab.impressions(teacher)
    student = lab.student(teacher, impressions.images, "zskd")
    lab.save(student, "student", "student")
    lab.percent("ZSKD", accuracy(student, test, lab.spec))
    sweep = preset.get("sweep")
    classes = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS) if preset.get("compare") else None
    if classes is not None:
        with lab.stage("student with labels"):
            alone = lab.network("student", 1000)
            table = training(preset["distillation"])
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
        plain = dataclasses.replace(training(preset["distillation"]), augmentation=Augmentation(shift=0))
        plain = dataclasses.replace(plain, steps=sweep.get("steps", plain.steps))
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


@task("robustness")
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
        networks = {"Teacher": teacher, "Student": student}
        if robust and "distillation" in preset["attack"]:
            met = attack_of(preset["attack"], "distillation")
            networks["Student under attack"] = lab.student(
                teacher, impressions.images, "student under attack", attack=met
            )
            lab.save(networks["Student under attack"], "student", "student_under_attack")
        for who, model in networks.items():
            lab.percent(f"{kind} {who}/A_nat", accuracy(model, lab.data.test, lab.spec))
            with lab.stage("attacks"):
                found = attack_accuracies(model, test, lab.spec, attack, ATTACKS, seed=context.seed)
            for name in ATTACKS:
                lab.percent(f"{kind} {who}/{name} A_adv", found.adversarial[name])
                lab.percent(f"{kind} {who}/{name} F.R.", found.fooling[name])
    return lab.outcome


@task("adapt")
def run_adapt(preset: Preset, context: Context) -> Outcome:
    """Table 5 and Figure 6: the source network on the target's test images before and after adaptation, by class.

    With ``[rehearsal]`` also after our own adaptation, from the same impressions and target images.
    """
    table = preset["adaptation"]
    lab = Lab(preset, context)
    target = load(table["target"], context.data_root)
    if len(target.class_names) != lab.classes:
        raise ValueError(f"adaptation.target has {len(target.class_names)} classes, {lab.data.name!r} {lab.classes}")
    draw = torch.Generator().manual_seed(context.seed)
    source_images = sampled(lab.data.train, table.get("source_images"), draw)
    unlabelled = sampled(target.train, table.get("target_images"), draw)
    source = lab.teacher(source_images)
    impressions = lab.impressions(source)
    lab.show(f"Target images ({target.name})", lab.spec.fit(target.test.images), target.test.labels)
    images, aim = impressions.images, lab.spec.prepare(unlabelled.images)
    options: dict[str, Any] = {"seed": context.seed, "progress": context.progress}
    networks = {"Baseline": source}
    with lab.stage("adaptation"):
        adversarial = {"config": training(table), "discriminator_lr": table.get("discriminator_lr")}
        networks["Ours"] = adapt(source, images, aim, lab.spec, **adversarial, **options).model
    lab.save(networks["Ours"], "teacher", "adapted")
    if "rehearsal" in preset:
        weights = {name: preset["rehearsal"][name] for name in REHEARSAL_WEIGHTS if name in preset["rehearsal"]}
        with lab.stage("rehearsal"):
            networks["Rehearsal"] = adapt_by_rehearsal(
                source, images, aim, lab.spec, config=training(preset["rehearsal"]), **weights, **options
            ).model
        lab.save(networks["Rehearsal"], "teacher", "adapted by rehearsal")
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


@task("perturb")
def run_perturb(preset: Preset, context: Context) -> Outcome:
    """Table 7, with Class Impressions beside, and two yardsticks; ``epsilons`` adds the same for other bounds.

    Random signs of size ε say what any noise of that size does; PGD made for each image alone with the same ε, what no
    perturbation common to all can be expected to exceed.
    """
    table = preset["perturbation"]
    lab = Lab(preset, context)
    bound, clamp, number = table.get("epsilon", EPSILON), table.get("clamp", True), table.get("samples", 10)
    others = table.get("epsilons", [])
    if not isinstance(others, list) or any(not isinstance(e, int | float) or not 0 < e <= 1 for e in [bound, *others]):
        raise ValueError(f"perturbation.epsilon and epsilons must be in (0, 1], got {bound!r} and {others!r}")
    bounds = sorted({bound, *others})
    teacher, test = lab.teacher(), lab.data.test
    lab.percent("Accuracy", accuracy(teacher, test, lab.spec))
    made = {"Ours": lab.impressions(teacher)}
    if table.get("class_impressions"):
        made["AAA"] = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS)

    def trained(images: Tensor, epsilon: float) -> Tensor:
        with lab.stage("perturbations"):
            generator = universal_perturbations(
                teacher, images, lab.spec, epsilon=epsilon, config=training(table),
                diversity=table.get("diversity", 1.0), clamp=clamp, seed=context.seed, progress=context.progress,
            ).generator  # fmt: skip
        return generator.sample(number, context.seed).cpu()

    rates: dict[str, list[tuple[float, float]]] = {}
    for epsilon in bounds:
        drawn = {name: trained(impressions.images, epsilon) for name, impressions in made.items()}
        if epsilon == bound:
            flat = (0.5 + drawn["Ours"] / (2 * epsilon)).clamp(0, 1)
            labels = torch.arange(number) % lab.classes
            lab.outcome.samples["Perturbations, ±ε drawn as white and black"] = (flat, labels)
            x = test.normalized(lab.spec, slice(0, number))
            pixels = perturbed(x, drawn["Ours"][: len(x)], lab.spec, clamp)
            lab.outcome.samples["Perturbed test images"] = (pixels.clamp(0, 1), test.labels[: len(x)])
        noise = torch.Generator().manual_seed(context.seed)
        drawn["Random signs"] = epsilon * (2.0 * torch.randint(0, 2, (number, *lab.spec.shape), generator=noise) - 1)
        found = {
            name: float(fooling_rate(teacher, perturbations, test, lab.spec, clamp=clamp).mean())
            for name, perturbations in drawn.items()
        }
        found["PGD for each image"] = individual_rate(teacher, first_images(test, 2000), lab.spec, epsilon)
        for name, share in found.items():
            lab.percent(name if epsilon == bound else f"{name} at ε = {epsilon:g}", share)
            rates.setdefault(name, []).append((epsilon, 100 * share))
    if len(bounds) > 1:
        lab.outcome.lines[BY_BOUND] = rates
        lab.outcome.axes[BY_BOUND] = ("ε, pixels being in [0, 1]", "fooling rate, %")
    return lab.outcome


def individual_rate(model: nn.Module, split: Split, spec: InputSpec, epsilon: float) -> float:
    """Share of images whose predicted class PGD of 40 steps, made for the image alone, changes."""
    attack, changed = Attack(epsilon, epsilon / 10, 40), 0
    device = next(model.parameters()).device
    for x, _ in split.batches(spec):
        said = logits_of(model, x).argmax(1)
        attacked = pgd(model, x.to(device), said.to(device), attack, spec)
        changed += int((logits_of(model, attacked.cpu()).argmax(1) != said).sum())
    return changed / len(split)


def training(table: dict[str, Any]) -> Training:
    """The fields of :class:`Training` in a preset's table; ``augmentation`` is a table of its own."""
    own = {f.name for f in dataclasses.fields(Training)}
    given = {name: value for name, value in table.items() if name in own}
    if "augmentation" in given:
        given["augmentation"] = Augmentation(**({"shift": 0} | given["augmentation"]))
    return Training(**given)


def attack_of(table: dict[str, Any], part: str = "") -> Attack:
    """The fields of :class:`Attack` in a preset's table [attack]; with ``part`` those that its table has from there."""
    own = {f.name for f in dataclasses.fields(Attack)}
    changes = table.get(part, {})
    if not isinstance(changes, dict):
        raise ValueError(f"attack.{part} must be a table of {sorted(own)}, got {changes!r}")
    for name, given, expected in (
        ("attack", table, own | {"training_steps", "test_images", *TRAINED_UNDER}),
        (f"attack.{part}", changes, own),
    ):
        if unknown := sorted(set(given) - expected):
            raise ValueError(f"{name}: {unknown[0]!r} is not known; expected {sorted(expected)}")
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


def _known(preset: Preset, expected: set[str]) -> None:
    for name in ("data", "teacher", "impressions"):
        if name not in preset:
            raise ValueError(f"preset: {name!r} is missing")
    if unknown := sorted(set(preset) - expected):
        raise ValueError(f"preset: {unknown[0]!r} is not known to task {preset['task']!r}; expected {sorted(expected)}")
