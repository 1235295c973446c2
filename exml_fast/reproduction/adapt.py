"""Source-free domain adaptation: Table 5 and Figure 6 of Nayak 2021."""

from __future__ import annotations

from typing import Any

import torch

from exml_fast.data import ImageData, load
from exml_fast.evaluation import accuracy, class_accuracies, features
from exml_fast.reproduction.lab import Lab, sampled
from exml_fast.reproduction.lab_settings import (
    AdaptationTable,
    ImpressionsTable,
    RehearsalTable,
    TeacherTable,
    require_package,
)
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.transfer.adaptation import adapt, adapt_by_rehearsal, tsne
from exml_fast.validation import settings

__all__ = ["Adapt", "open_target", "run"]


@settings
class Adapt:
    """A preset of task "adapt"."""

    data: str
    teacher: TeacherTable
    impressions: ImpressionsTable
    adaptation: AdaptationTable
    rehearsal: RehearsalTable | None = None

    def check(self) -> None:
        if self.adaptation.tsne:
            require_package("sklearn", "eval", "scikit-learn")


def run(preset: Preset, context: Context) -> Outcome:
    """Table 5 and Figure 6: the source network on the target's test images before and after adaptation, by class.

    With ``[rehearsal]`` also after our own adaptation, from the same impressions and target images.
    """
    lab = Lab(preset, Adapt, context)
    table, rehearsal = lab.settings.adaptation, lab.settings.rehearsal
    target = open_target(lab)
    draw = torch.Generator().manual_seed(context.seed)
    # A given source network has been trained already.
    count = None if lab.expert is not None else table.source_images
    source_images = sampled(lab.data.train, count, draw)
    unlabelled = sampled(target.train, table.target_images, draw)
    source = lab.teacher(source_images)
    impressions = lab.impressions(source)
    lab.show(f"Target images ({target.name})", lab.spec.fit(target.test.images), target.test.labels)
    images, aim = impressions.images, lab.spec.prepare(unlabelled.images)
    options: dict[str, Any] = {"seed": context.seed, "progress": context.progress}
    networks = {"Baseline": source}
    with lab.stage("adaptation"):
        adversarial = {"config": table.training, "discriminator_lr": table.discriminator_lr}
        networks["Ours"] = adapt(source, images, aim, spec=lab.spec, **adversarial, **options).model
    lab.save(networks["Ours"], "teacher", "adapted")
    if rehearsal is not None:
        with lab.stage("rehearsal"):
            networks["Rehearsal"] = adapt_by_rehearsal(
                source, images, aim, spec=lab.spec, config=rehearsal.training, **rehearsal.weights(), **options
            ).model
        lab.save(networks["Rehearsal"], "teacher", "adapted_by_rehearsal")
    lab.percent("Source on its own test images", accuracy(source, lab.data.test, lab.spec))
    for name, model in networks.items():
        by_class = class_accuracies(model, target.test, lab.spec, lab.classes)
        lab.percent(f"{name}/Avg", accuracy(model, target.test, lab.spec))
        for c, share in enumerate(by_class.tolist()):
            lab.percent(f"{name}/C{c + 1}", share)
    if shown := table.tsne:
        some = lab.spec.prepare(target.test.images[:shown])
        mine = images[:shown]
        titles = {"Baseline": "before adaptation", "Ours": "after adaptation", "Rehearsal": "after rehearsal"}
        with lab.stage("t-SNE"):
            for name, model in networks.items():
                flat = tsne([features(source, mine), features(model, some)], context.seed)
                named = zip(("impressions", "target images"), flat, strict=True)
                lab.outcome.points[f"t-SNE of the features {titles[name]}"] = dict(named)
    return lab.outcome


def open_target(lab: Lab) -> ImageData:
    """The data to adapt to; ValueError unless the classes suit the source's and there are enough images."""
    table = lab.settings.adaptation
    target = load(table.target, lab.context.data_root)
    if (found := len(target.class_names)) != lab.classes:
        raise ValueError(f"adaptation.target has {found} classes, {lab.data.name!r} {lab.classes}")
    if missing := sorted(set(range(lab.classes)) - set(target.test.labels.tolist())):
        raise ValueError(f"adaptation.target has no test images of classes {missing}")
    for split, name in ((lab.data.train, "source_images"), (target.train, "target_images")):
        unused = name == "source_images" and lab.expert is not None
        if not unused and (count := getattr(table, name) or 0) > len(split):
            raise ValueError(f"adaptation.{name} must be at most {len(split)}, got {count}")
    return target
