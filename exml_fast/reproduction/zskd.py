"""Zero-shot distillation: Tables 1 to 3, Figures 3 and 4 of Nayak 2021."""

from __future__ import annotations

import dataclasses

import torch

from exml_fast.continual import Augmentation
from exml_fast.evaluation import accuracy
from exml_fast.reproduction.lab import CLASS_IMPRESSIONS, Lab
from exml_fast.reproduction.lab_settings import (
    DistillationTable,
    ImpressionsTable,
    NetworkTable,
    SweepTable,
    TeacherTable,
)
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.training import train_classifier
from exml_fast.transfer.zskd import transfer_set_sweep
from exml_fast.validation import settings

__all__ = ["Zskd", "require_sizes", "run"]


@settings
class Zskd:
    """A preset of task "zskd"."""

    data: str
    teacher: TeacherTable
    impressions: ImpressionsTable
    student: NetworkTable
    distillation: DistillationTable
    sweep: SweepTable | None = None
    compare: bool = False


def run(preset: Preset, context: Context) -> Outcome:
    """Tables 1 to 3, and with ``[sweep]`` Figures 3 and 4.

    ``compare = true`` adds the students of the same tables: with labels, and distilled from the real images.
    """
    lab = Lab(preset, Zskd, context)
    require_sizes(lab)
    teacher = lab.teacher()
    test, real = lab.data.test, lab.spec.prepare(lab.data.train.images)
    lab.percent("Teacher-CE", accuracy(teacher, test, lab.spec))
    lab.similarity(teacher)
    impressions = lab.impressions(teacher)
    student = lab.student(teacher, impressions.images, "zskd")
    lab.save(student, "student", "student")
    lab.percent("ZSKD", accuracy(student, test, lab.spec))
    learning, sweep = lab.settings.distillation.training, lab.settings.sweep
    classes = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS) if lab.settings.compare else None
    if classes is not None:
        with lab.stage("student with labels"):
            alone = lab.network("student", 1000)
            alone = train_classifier(
                alone, lab.data.train, lab.spec, config=learning, seed=context.seed, progress=context.progress
            ).model
        lab.percent("Student-CE", accuracy(alone, test, lab.spec))
        taught = lab.student(teacher, real, "student on real images")
        lab.percent("Student-KD", accuracy(taught, test, lab.spec))
        other = lab.student(teacher, classes.images, "student on class impressions")
        lab.percent("Class Impressions", accuracy(other, test, lab.spec))
    if sweep is not None:
        sets = {"Data Impressions": impressions.images, "Data samples": real}
        if classes is not None:
            sets["Class Impressions"] = classes.images
        sizes = [size for size in sweep.sizes if size <= min(len(images) for images in sets.values())]
        # Figures 3 and 4 are without augmentation.
        plain = dataclasses.replace(learning, augmentation=Augmentation(), steps=sweep.steps)
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


def require_sizes(lab: Lab) -> None:
    """ValueError unless one of the sweep's sizes can be drawn."""
    if (sweep := lab.settings.sweep) is not None:
        most = min(lab.settings.impressions.count, len(lab.data.train))
        if min(sweep.sizes) > most:
            raise ValueError(f"sweep.sizes must hold one of at most {most} images, got {list(sweep.sizes)}")
