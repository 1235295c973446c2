"""What benches/readme.py accepts as a headline, and how it shows a step of inversion."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exml_fast.storage import load_json, save_json

BENCHES = Path(__file__).resolve().parents[1] / "benches"
Tables = Callable[[str], Any]
MACHINE = {"gpu": None, "cpu": "a CPU", "threads": 1, "torch": "2"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """A module of benches/."""
    monkeypatch.syspath_prepend(BENCHES)
    return lambda name: importlib.import_module(name)


def results(path: Path, rows: list[dict[str, Any]], commit: str = "abc") -> Path:
    save_json(path, {"command": "a command", "commit": commit, "date": "", "machine": MACHINE, "rows": rows})
    return path


def streamed(values: list[float], reduced: bool = False) -> list[dict[str, Any]]:
    return [
        {"cell": "MNIST/NC/A", "values": values, "reduced": reduced, "paper": None, "ours": values[0]},
        {"cell": "MNIST/NC/Ensemble Avg.", "paper": 33.4, "ours": 73.2, "values": [69.0, 74.0, 76.0], "reduced": False},
    ]


def test_a_headline_leaves_out_the_seeds_of_choices(tables: Tables, tmp_path: Path) -> None:
    headlines = tables("readme_tables.headlines")
    row = headlines.Headline(
        "a task", "a", "MNIST/NC/A", "mnist/NC", "MNIST/NC/Ensemble Avg.", "ex_model", "strokes", True
    )
    results(tmp_path / "a.json", streamed([99.0, 75.0, 76.0], reduced=True))
    cells = headlines.headline(row, tmp_path)
    assert cells[:2] == ["a task", "strokes"] and cells[2] == "43.2" and cells[3] == "**75.5** ± 0.7 † ‡"
    assert cells[4:6] == ["2", "33.4 / 75.0"]  # the teacher's of the same seeds
    results(tmp_path / "a.json", streamed([99.0, 43.0, 76.0]))
    assert headlines.headline(row, tmp_path)[3] == "59.5 ± 23.3 ‡"  # not bold: one seed is below the paper


def test_only_rows_beside_a_comparable_figure_are_bold(tables: Tables, tmp_path: Path) -> None:
    headlines = tables("readme_tables.headlines")
    results(tmp_path / "a.json", streamed([99.0, 75.0, 76.0]))
    names = "a task", "a", "MNIST/NC/A"
    unknown = headlines.Headline(*names, None, "MNIST/NC/Ensemble Avg.", "ex_model", own=True)
    assert headlines.headline(unknown, tmp_path)[2:4] == ["–", "75.5 ± 0.7 §"]
    other = headlines.Headline(*names, "mnist/NC", "MNIST/NC/Ensemble Avg.", "ex_model", comparable=False)
    assert headlines.headline(other, tmp_path)[2:4] == ["43.2", "75.5 ± 0.7"]


def test_the_demo_names_unequal_budgets(tables: Tables) -> None:
    settings = {"random_images": {"buffer_size": 1000, "views": 8}, "distillation": {"buffer_size": 300}}
    names = ("Inverted Strokes", "inverted-strokes", 90.2), ("Data Impression", "data-impression", 36.0)
    rows = [{"kind": "strategy", "name": name, "slug": slug, "seconds": seconds} for name, slug, seconds in names]
    budgets = tables("readme_tables.streams").unequal_budgets
    text = budgets({"rows": rows, "settings": settings})
    assert "Inverted Strokes learned from 1000 images in 8 views each in 90 s, Data Impression learned from 300" in text
    assert budgets({"rows": rows[:1], "settings": settings}) == ""


def test_intervals_say_what_they_do_not_exclude(tables: Tables) -> None:
    row = {
        "network": "A", "precision": "bfloat16", "teacher_difference": 0.5, "teacher_difference_error": 0.3,
        "judge_difference": -1.3, "judge_difference_error": 3.0, "objective_difference": 0.0,
        "objective_difference_error": 0.0,
    }  # fmt: skip
    text = tables("readme_tables.engine").not_excluded([row])
    assert text.startswith("Intervals without 0: A, recognised by the teacher.") and "losses of up to 4 points" in text


def test_the_judged_headline_leaves_out_the_seed_of_choices(tables: Tables, tmp_path: Path) -> None:
    def of_seed(seed: int, seconds: float) -> dict[str, Any]:
        agreement = {"published": {"a judge": 50.0 - seed, "seen": 0.0}, "ours": {"a judge": 80.0 + seed, "seen": 0.0}}
        return {"seed": seed, "published_seconds": seconds, "ours_seconds": 5.0, "agreement": agreement}

    summary = {
        "unseen": ["a judge"], "images": 100, "precision": "bfloat16", "ours_steps": [50], "published_steps": [2000],
        "published_recipe": {"bn": 1.0},
    }  # fmt: skip
    path = results(tmp_path / "judged.json", [summary, of_seed(0, 9e9), of_seed(1, 900.0), of_seed(2, 1100.0)])
    text = " ".join(tables("readme_tables.images").judged_headline(path).split())
    assert "in 5.0 CPU seconds of one core**, 200 times faster than [our plain-PyTorch copy](benches/inv" in text
    assert "of the published loop (1000 s). The loop's weight of the statistics is 1, the smallest that the" in text
    assert "Our recipe, `deep_inversion/cifar10-quick`, takes 40 times fewer steps. A step" in text
    assert "A step takes 5.0 times less time, in bfloat16 instead of" in text
    assert "recognise 82 % of our images and 48 % of the loop's (means of 2 seeds" in text


def test_one_seed_and_changed_trees_are_no_headlines(tables: Tables, tmp_path: Path) -> None:
    headlines = tables("readme_tables.headlines")
    row = headlines.Headline("a task", "a", "MNIST/NC/A", "mnist/NC", "MNIST/NC/Ensemble Avg.", "ex_model")
    results(tmp_path / "a.json", streamed([75.0, 76.0]))
    with pytest.raises(ValueError, match="a task cannot be a headline: 1 of its seeds took part in no choice"):
        headlines.headline(row, tmp_path)
    path = results(tmp_path / "a.json", streamed([75.0, 76.0, 77.0]), "abc+changes")
    with pytest.raises(ValueError, match=r"a.json cannot be a headline: it was measured at abc\+changes"):
        headlines.headline(row, tmp_path)
    for headline in (tables("readme_tables.images").judged_headline, tables("readme_tables.engine").fastest):
        with pytest.raises(ValueError, match="cannot be a headline"):
            headline(path)
    assert "at commit abc, with changes on a CPU" in tables("readme_tables.common").source(path, load_json(path))


def test_the_comparator_is_the_best_method_without_the_experts_data(tables: Tables) -> None:
    best = tables("readme_tables.headlines").best_of_carta
    assert best("cifar10/NC") == ("Auxiliary Data", 41.35)
    assert best("cifar10/Joint") == ("Auxiliary Data", 76.94)
    assert best("mnist/NC")[0] == "Model Inversion"


def test_every_table_names_its_commit(tables: Tables) -> None:
    readme, commits = tables("readme"), tables("readme_tables.common").commits
    for page, names in readme.FILES.items():
        text = (readme.ROOT / page).read_text()
        for name in names:
            if name.endswith("headlines") or name == "judged-headline":
                continue  # their pages have the tables
            body = text.split(f"<!-- table: {name} -->")[1].split("<!-- end -->")[0]
            for file in set(part.split(".json")[0] for part in body.split("benches/results/")[1:]):
                for commit in commits(load_json(readme.RESULTS / f"{file}.json")):
                    assert commit.removesuffix("+changes") in body, (page, name, file)


def step(dtype: str, engine: float, **more: Any) -> dict[str, Any]:
    row = {
        "teacher": "tiny", "weights": "random weights", "size": 8, "batch": 4, "dtype": dtype, "rounds": 21,
        "engine_ms": engine,
        "reference_ms": 40.0, "alternative_ms": 20.0, "bare_ms": 12.0, "bare": "float32", "convolutions_ms": 8.0,
        "alternative": "bfloat16, frozen", "engine_peak_mb": 30.0, "alternative_peak_mb": 25.0,
        "reference_peak_mb": 90.0, "setup_s": {"engine": 1.0, "alternative": 50.0},
        "spread": {"engine": [engine - 1, engine + 1]},
        "plain_ms": {"engine": 2 * engine, "alternative": 30.0, "bare": 12.0, "reference": 60.0},
        "plain_peak_mb": {"engine": 40.0, "alternative": 28.0, "reference": 95.0},
    }  # fmt: skip
    return {**row, **more}


def test_a_step_of_inversion(tables: Tables, tmp_path: Path) -> None:
    options = {"teacher": "next", "options_ms": {"float32, default": 1.0}}
    path = results(tmp_path / "inversion-cpu.json", [step("float32", 16.0), step("bfloat16", 10.0), options])
    bound = {"teacher": "tiny", "batch": 4, "dtype": "bfloat16", "ideal_ms": 7.0}
    results(tmp_path / "roofline-cpu.json", [bound], "def")
    engine = tables("readme_tables.engine")
    text = engine.inversion(path)
    cells = (
        "| tiny 8², batch 4, bfloat16 | 10.0 ms (9.0 to 11.0) | 4.00× | 2.00× (bfloat16, frozen) | 0.83× (float32) |"
    )
    assert f"{cells} 1.25× | 7.0 ms | 30 / 25 / 90 MB | 1.0 / 50 s |" in text
    assert "| 16.0 ms (15.0 to 17.0) | 2.50× | 1.25× (bfloat16, frozen) | 1.33× (float32) | 2.00× | – |" in text
    assert "All contenders run in the engine's reused memory. Medians of 21 interleaved rounds; the" in text
    assert "at commit abc on" in text and "at commit def on" in text and "Weights: tiny: random weights." in text
    alone = "| tiny 8², batch 4, bfloat16 | 2.00× | 1.50× | 1.00× | 1.50× | 1.50× | 40 / 28 / 95 MB |"
    assert alone in text
    assert "⁸ Computed" in text and "Options: float32, as this CPU emulates bfloat16, then" in text
    both = {"alternatives_ms": {"float32, default": 1.0, "bfloat16, default": 2.0}}
    alone = engine.inversion(results(tmp_path / "inversion-cpu-other.json", [step("float32", 16.0, **both)]))
    assert "⁸" not in alone and "Options: float32, cast weights and autocast, then" in alone
    fastest = engine.fastest(path)
    assert "bfloat16 | 10.0 ms" in fastest and "float32 | 16.0 ms" not in fastest


def test_an_architecture_that_is_refused_has_its_reason(tables: Tables, tmp_path: Path) -> None:
    fused = {
        "architecture": "timm/a", "size": 64, "way": "fused", "calls": 3, "gain_float32": 1.5, "gain_bfloat16": 2.5,
        "bfloat16_runs_in": "bfloat16", "logits_float32": 1e-6, "cosine_float32": 1.0, "cosine_bfloat16": 0.99,
    }  # fmt: skip
    refused = {"architecture": "timm/b", "way": "refused", "error": "ValueError: a | b"}
    path = results(tmp_path / "architectures-cpu.json", [fused, refused])
    text = tables("readme_tables.architectures").architectures(path)
    assert "2 architectures with random weights: 1 fused, 1 refused. A step in float32" in text
    assert "a median of 1.50 times faster" in text and "the median is 2.50 times faster" in text
    assert "| timm/a | 64² | fused | 3 | 1.50× | 2.50× | 1e-06 | 1.0000 / 0.990 |" in text
    assert "| timm/b | – | ValueError: a / b | – |" in text


def test_compression_shows_all_images(tables: Tables, tmp_path: Path) -> None:
    settings = {"source": {"images": 512}, "training": {"steps": 200, "batch_size": 64}}
    timed = {"networks": 2, "rounds": 51, "compiler": "AOTInductor", "threads": 2, "commits": ["def"]}
    row = {
        "network": "ResNet-20", "task": "int8", "timed": timed, "settings": {"real": settings, "noise": settings},
        "float": 92.0, "values": {"real": [91.0, 92.0], "noise": [50.0]},
        "seeds": {"real": [0, 1], "noise": [0]}, "bytes": 25, "float_bytes": 100,
        "faster": {"1": {"ratio": 2.0}, "64": {"ratio": 1.25}}, "before": None, "commits": ["abc"],
    }  # fmt: skip
    text = tables("readme_tables.compression").compression(results(tmp_path / "compression.json", [row]))
    line = "| ResNet-20 | 8 bits | 92.00 | 91.50 ± 0.71 | – | – | – | – | 50.00 | 1 to 2 | 0.50 / 0.80 | 0.25 |"
    assert line in text
    assert "A set has 512 (real), 512 (noise) images." in text
    assert "the median of 2 networks (51 rounds each, AOTInductor, 2 threads, commit def)" in text
    tuned = {"training": {"steps": 600, "batch_size": 128, "augmentation": {"scale": 0.0, "rotation": 0}}}
    changed = {"training": tuned["training"] | {"augmentation": {"scale": 0.3, "rotation": 15}}}
    row |= {"task": "prune-filters-20", "values": {"real": [91.0], "deep-inversion": [90.0]}, "timed": None}
    row |= {"settings": {"real": {"fine_tuning": tuned}, "deep-inversion": {"fine_tuning": changed}}, "faster": None}
    text = tables("readme_tables.compression").compression(results(tmp_path / "compression.json", [row]))
    assert "Pruned networks learned for 600 steps of 128 images." in text
    assert "scaled by up to 0.3 and rotated by up to 15°" in text


def test_class_incremental_methods_are_in_order_of_accuracy(tables: Tables, tmp_path: Path) -> None:
    shared = {
        "protocol": "b50-5", "std": None, "seeds": [0], "bytes": 6144000, "working_bytes": 6144000, "data": "some data",
        "seconds_per_task": 30.0, "peak_mb": 100.0, "note": "reduced", "real_exemplars": True, "synthetic": False,
        "last": 20.0, "commits": ["abc"],
    }  # fmt: skip
    rows = [shared | {"method": "icarl", "average": 30.0}]
    rows.append(shared | {"method": "abd", "average": 31.0, "std": 0.5, "real_exemplars": False, "synthetic": True})
    path = results(tmp_path / "class-incremental.json", rows)
    text = tables("readme_tables.incremental").class_incremental(path)
    assert "| `icarl` | real | 30.0 | 20.0 | 1 | 6.1 / 6.1 MB | 30 s | 100 MB |" in text
    assert text.index("| `abd` | synthetic | 31.0 ± 0.5 |") < text.index("| `icarl`")
