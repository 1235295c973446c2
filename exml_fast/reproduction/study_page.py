"""The page of a study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.inversion import class_similarity
from exml_fast.report import Learning, Report, Row, Samples, Similarities, write_picture, write_report
from exml_fast.reproduction.methods import STRATEGIES, plan_of
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_rows import rows_of_study

__all__ = ["joint_rows", "settings_of_study", "summary_of", "verdict_of", "write_page"]

log = logging.getLogger(__name__)

REAL_PER_CLASS = 4
# More columns would make the page too wide.
SHOWN_EXPERTS, SHOWN_CLASSES = 10, 20
JOINT_NAME, JOINT_SUFFIX = "Joint training", ", joint expert"
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
# Rows that the verdict compares with, and what they do.
COMPARED = {
    "Param. Avg.": "averaging their weights",
    "Ensemble Avg.": "averaging the outputs of all experts",
    JOINT_NAME: "training on the data itself",
}


def joint_rows(study: Study) -> list[dict[str, Any]]:
    """Rows of a study of the joint scenario, for a table with those of a stream."""
    rows = []
    for row in rows_of_study(study):
        if row["kind"] == "baseline":
            trained = study.part("experts")
            row |= {"name": JOINT_NAME, "kind": "joint", "note": "all real training data at once"}
            row |= {"seconds": round(sum(trained["seconds"].values()), 3), "peak_mb": round(trained["peak_mb"], 1)}
        else:
            row |= {"name": f"{row['name']}{JOINT_SUFFIX}", "note": "images inverted from the one joint model"}
        rows.append(row)
    return rows


def write_page(
    path: Path,
    study: Study,
    joint_study: Study | None,
    title: str,
    summary: str,
    origin: dict[str, Any],
    settings: dict[str, Any],
) -> Path:
    """The page of a study, and of one of the joint scenario beside it; its images also as ``samples.png``.

    ImportError where the extra is missing.
    """
    rows = rows_of_study(study) + (joint_rows(joint_study) if joint_study is not None else [])
    own = [r for r in rows_of_study(study) if r["kind"] == "strategy"]
    samples = [Samples("Real test images", *_real(study))]
    confusions: dict[str, Tensor] = {}
    seconds: dict[str, dict[str, float]] = {"Experts": study.part("experts")["seconds"]} if _trained(study) else {}
    for each, suffix in ((study, ""), (joint_study, JOINT_SUFFIX)):
        if each is None:
            continue
        if each is joint_study:
            seconds[JOINT_NAME] = each.part("experts")["seconds"]
        for key in each.settings.strategies:
            name = STRATEGIES[key] + suffix
            part = each.part(key)
            samples.append(Samples(name, *each.samples(key), stretch=True))
            seconds[name] = {k: v for k, v in part["seconds"].items()}
            confusions[name] = torch.tensor(part["confusion"])
    stream = study.stream(study.seeds[0])
    similarities: dict[str, Similarities] = {}
    for i, card in enumerate(stream.cards[:SHOWN_EXPERTS]):
        expert = f"Expert {i + 1} (knows {_names(card)})"
        model = stream[i].model
        try:
            similarities[expert] = Similarities(class_similarity(model), card.class_names)
        except ValueError as error:  # as without a final linear layer
            log.warning("%s: no class similarities: %s", expert, error)
    references = {}
    if joint_study is not None:
        joint_model = joint_study.stream(joint_study.seeds[0])[0].model
        similarities["The joint model"] = Similarities(class_similarity(joint_model))
        references = {r["name"]: r["ours"] for r in rows if r["kind"] == "joint"}
    learning = None
    if own and len(study.experiences) > 1:
        learning = Learning({r["name"]: r["after_each_expert"] for r in own}, references, study.seen())
    units = stream.units
    names = [stream.class_names.get(u, str(u)) for u in units]
    report = Report(
        title=title,
        summary=summary,
        command=origin["command"],
        settings=settings,
        machine={**origin["machine"], "commit": origin["commit"], "date": origin["date"]},
        class_names=study.data.class_names if len(study.data.class_names) >= len(names) else names,
        rows=[Row(r["name"], r["kind"], r["ours"], r["std"], r["seconds"], r["peak_mb"], r["note"]) for r in rows],
        samples=samples,
        learning=learning,
        confusions=confusions,
        similarities=similarities,
        seconds=seconds,
        tables=_tables(study, own, rows),
        verdict=verdict_of(rows, len(study.experiences)),
    )
    write_picture(path.with_name("samples.png"), samples)
    return write_report(path, report)


def verdict_of(rows: Sequence[Mapping[str, Any]], experts: int) -> str:
    """The best ex-model, the best baseline and training on real data, in words; empty without an ex-model."""
    learned = [row for row in rows if row["kind"] == "strategy" and not row["name"].endswith(JOINT_SUFFIX)]
    if not learned:
        return ""
    best = max(learned, key=lambda row: row["ours"])
    count = NUMBERS[experts] if experts < len(NUMBERS) else str(experts)
    parts = [f"{count} expert{'s' * (experts != 1)}, no data: {best['ours']:.1f} % ({best['name']})"]
    found = {row["name"]: row["ours"] for row in rows}
    baselines = {row["name"]: row["ours"] for row in rows if row["kind"] == "baseline" and row["name"] != "Oracle"}
    first = max(baselines, key=lambda name: baselines[name], default=None)
    if first is not None and first not in COMPARED and experts > 1:
        parts.append(f"the best baseline, {first}, {baselines[first]:.1f} %")
    parts += [f"{words} {found[name]:.1f} %" for name, words in COMPARED.items() if name in found and experts > 1]
    return "; ".join(parts) + "."


def summary_of(study: Study) -> str:
    """A summary of the data and of their use."""
    count, classes = len(study.experiences), len(study.data.class_names)
    each = f"{count} experts, each of which has seen only its own classes" if count > 1 else "one expert"
    if count > 1 and study.options.experts_dir is None and study.settings.experts.initial == "own":
        each += " and began with random weights of its own, as experts of strangers do"
    return (
        f"The data are {study.data.name} ({len(study.data.train)} training and {len(study.data.test)} test images, "
        f"{classes} classes). They were used to train {each}, and then only to measure: the ex-models below have "
        "learned from the experts alone."
    )


def settings_of_study(study: Study, threads: int | None) -> dict[str, Any]:
    """The settings of a study as the page shows them."""
    settings = study.settings
    experts = settings.resolved_experts()
    shown: dict[str, Any] = {
        "Data": settings.data,
        "Experiences": [" ".join(study.data.class_names[c] for c in e) for e in study.experiences],
        "Seeds": study.seeds,
        "Experts": study.options.experts_dir
        or f"{experts.architecture}, {experts.epochs} epochs, SGD, learning rate {experts.lr}",
    }
    shape = ("name", "steps", "lr", "batch_size", "temperature", "l2", "blur", "tv_l2", "jitter", "clip", "compete")
    for strategy in settings.strategies:
        recipe = plan_of(settings, strategy).recipe
        if strategy == "auxiliary-data":
            shown[STRATEGIES[strategy]] = settings.auxiliary
        elif recipe is not None:
            shown[STRATEGIES[strategy]] = {field: recipe.to_dict()[field] for field in shape}
    fields = (
        "buffer_size", "steps", "batch_size", "optimizer", "lr", "loss", "temperature", "lambda_ce", "lambda_latent",
        "mixup", "targets", "normalize", "combine",
    )  # fmt: skip
    for strategy in settings.strategies:
        planned = plan_of(settings, strategy)
        alone = planned.method.is_random and not planned.method.inverts_source
        name = f"Distillation, {STRATEGIES[strategy]}" if alone else "Distillation"
        config = planned.config.to_dict()
        shown[name] = {field: config[field] for field in fields if field in config}
    shown["Device"] = study.options.device + (f", {threads} threads" if threads and threads > 1 else "")
    return shown


def _tables(study: Study, own: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Tables of accuracies by experience (means), of the buffer, and of time and memory (first seed)."""
    tests, names = study.tests(), study.data.class_names
    # Named by number, and by their classes while there is room for them.
    wide = len(tests) <= SHOWN_EXPERTS and sum(map(len, tests)) <= SHOWN_CLASSES
    columns = [f"{i + 1}: {', '.join(names[c] for c in e)}" if wide else str(i + 1) for i, e in enumerate(tests)]
    shown = [row for row in rows if len(row["per_experience"]) == len(columns)]
    tables = {
        "Accuracy by experience, %": [
            {"Method": row["name"], **dict(zip(columns, map(_written, row["per_experience"]), strict=True)),
             "Average": _written(row.get("average_accuracy")), "Forgetting": _written(row.get("forgetting"))}
            for row in shown
        ]
    }  # fmt: skip
    for row in own if len(study.experiences) > 1 else []:
        tables[f"{row['name']}: accuracy on each experience after each expert, %"] = [
            {"After expert": str(i + 1), **dict(zip(columns, map(_written, line), strict=True))}
            for i, line in enumerate(row["matrix"])
        ]
    parts = {STRATEGIES[name]: study.part(name) for name in study.settings.strategies}
    if parts:
        tables["Images of each class in the final buffer"] = [
            {"Class": names[c], **{name: part["buffer_classes"].get(str(c), 0) for name, part in parts.items()}}
            for c in study.data.classes
        ]
        tables["Time and memory by stage"] = [
            {"Method": name, "Stage": stage, "Seconds": _written(seconds), "Most memory, MB": _written(peak)}
            for name, part in parts.items()
            for (stage, seconds), peak in zip(part["seconds"].items(), part["stage_peak_mb"].values(), strict=True)
        ]
    return {heading: lines for heading, lines in tables.items() if lines}


def _written(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _real(study: Study) -> tuple[Tensor, Tensor]:
    split = study.data.test
    chosen = torch.cat([torch.nonzero(split.labels == c)[:REAL_PER_CLASS, 0] for c in study.data.classes])
    return study.data.spec.fit(split.images[chosen]), split.labels[chosen]


def _trained(study: Study) -> bool:
    return study.options.experts_dir is None


def _names(card: Any) -> str:
    place = dict(zip(card.units, card.class_names, strict=True))
    return ", ".join(place[c] for c in card.classes[:6])
