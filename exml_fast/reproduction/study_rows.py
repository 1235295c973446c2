"""Rows of a study: mean and deviation over the seeds, the paper's figure, and what was shorter than published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from exml_fast.reproduction.methods import STRATEGIES, plan_of
from exml_fast.reproduction.published import published, published_lengths
from exml_fast.reproduction.study import Study, part_name
from exml_fast.reproduction.study_settings import SCENARIOS
from exml_fast.storage import load_json

__all__ = ["rows_of_study", "shorter_than_published"]

FIGURES = ("average_accuracy", "forgetting")


def rows_of_study(study: Study) -> list[dict[str, Any]]:
    """A row for each method: mean over the seeds in percent, with the standard deviation if there are several."""
    rows = []
    figures = _paper_figures(study)
    names = [(STRATEGIES[s], s, "strategy") for s in study.settings.strategies]
    names += [(name, part_name(name), "baseline") for name in study.shown_baselines()]
    for name, slug, kind in names:
        parts = [load_json(study.part_file(slug, seed)) for seed in study.seeds]
        if any("accuracy" not in part for part in parts):
            continue
        values = [100 * part["accuracy"] for part in parts]
        key = f"{SCENARIOS[study.settings.scenario]}/{name}"
        shorter = shorter_than_published(study, slug if kind == "strategy" else None)
        row = {
            "cell": f"{_shown(study.data.name)}/{key}{' ED' if kind == 'strategy' else ''}",
            "name": name,
            "slug": slug,
            "kind": kind,
            "paper": figures.get(name),
            "ours": round(statistics.mean(values), 3),
            "std": round(statistics.stdev(values), 3) if len(values) > 1 else None,
            "seeds": len(values),
            "values": [round(v, 3) for v in values],
            "reduced": bool(shorter),
            "seconds": round(statistics.mean(_seconds(part) for part in parts), 3),
            "peak_mb": round(max(part["peak_mb"] for part in parts), 1),
            "note": "; ".join(filter(None, [parts[0].get("note", ""), ", ".join(shorter)])),
        }
        row["per_experience"] = _mean_columns([part["experiences"] for part in parts])
        row |= {name: _mean_percent([part[name] for part in parts]) for name in FIGURES if name in parts[0]}
        if kind == "strategy":
            row["after_each_expert"] = _mean_columns([part["after"] for part in parts])
            row["matrix"] = [_mean_columns(lines) for lines in zip(*(part["matrix"] for part in parts), strict=True)]
        rows.append(row)
    return rows


def shorter_than_published(study: Study, strategy: str | None) -> list[str]:
    """Where a strategy's row (None: a baseline's) has less than the paper; data of others are compared with MNIST."""
    settings, data = study.settings, study.data.name
    usual, exact = published_lengths(data), published(data, settings.scenario)
    taken: dict[str, tuple[int, int]] = {}
    if exact is not None and study.options.experts_dir is None:
        epochs = settings.resolved_experts().epochs or 0
        taken["epochs of the experts"] = (epochs, exact.epochs)
    frames = [f"one of {settings.every} frames"] if data == "core50" and settings.every > 1 else []
    if strategy is not None:
        planned = plan_of(settings, strategy)
        if not planned.method.is_random:  # the paper has no such method
            taken["distillation steps"] = (planned.config.training.steps, usual.distillation_steps)
        taken["images"] = (planned.config.buffer_size, usual.buffer_size)
        if planned.recipe is not None and not planned.method.inverts_source:
            taken["inversion steps"] = (planned.recipe.optimisation.steps, usual.inversion_steps)
    return frames + [f"{ours} of {paper} {what}" for what, (ours, paper) in taken.items() if ours < paper]


def _paper_figures(study: Study) -> Mapping[str, float]:
    """The paper's figures by method; none unless the experts have the paper's network and numbers of classes."""
    found = published(study.data.name, study.settings.scenario)
    known = sorted({c for classes in study.experiences for c in classes})
    if (
        found is None
        or list(found.experiences) != [len(classes) for classes in study.experiences]
        or known != study.data.classes
        or study.networks != {found.architecture}
    ):
        return {}
    return found.paper


def _seconds(part: Mapping[str, Any]) -> float:
    """Duration of a method without the evaluation."""
    return sum(seconds for stage, seconds in part["seconds"].items() if stage != "evaluate")


def _mean_percent(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(100 * statistics.mean(known), 3) if known else None


def _mean_columns(lists: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean_percent(values) for values in zip(*lists, strict=True)]


def _shown(name: str) -> str:
    known = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "digits": "Digits", "cifar10": "CIFAR-10",
             "core50": "CORe50"}  # fmt: skip
    return known.get(name, name)
