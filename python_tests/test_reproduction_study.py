"""Studies: methods, baselines, figures beside the paper's, the page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, save_npz
from small_presets import call, published_for_quadrants

from exml_fast.continual import METHODS, ModelInversion, train_stream
from exml_fast.continual.baselines import CannotMerge
from exml_fast.data import NaturalFields, PenStrokes
from exml_fast.reproduction import methods
from exml_fast.reproduction.experts import train_experts
from exml_fast.reproduction.methods import check_methods, plan_of
from exml_fast.reproduction.stream import learn_preset, settings_of
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_page import verdict_of
from exml_fast.reproduction.study_settings import ExpertSettings, RunOptions, Settings
from exml_fast.storage import load_json


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz")


def test_images_by_another_recipe_before_random_ones(npz: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text(
        f"""task = "learn"
data = "{npz}"
experts = {{ epochs = 1, arguments = {{ batch_norm = true }} }}
strategies = ["model-inversion", "natural-fields"]
inversion = {{ recipe = "deep_inversion/cifar10-transferable", steps = 3 }}
background = "natural-fields"
calibration = "natural-fields"
typicality = 0.5
random_images = {{ steps = 2, buffer_size = 20 }}

[distillation]
steps = 2
buffer_size = 20
targets = "experts"
background_share = 0.5
precision = "bfloat16"
"""
    )
    calibration = plan_of(settings_of(learn_preset(str(own))), "model-inversion").calibration
    assert calibration is not None and calibration.typicality == 0.5
    call("learn", "--preset", own, "--json", "--out", tmp_path / "out")
    stored = load_json(tmp_path / "out" / "results.json")
    inverted, random = stored["rows"][:2]
    assert inverted["note"].startswith(
        "images inverted from the experts, and random ones, what is known: natural images; 2 of"
    )
    assert "3 of" in inverted["note"] and random["note"].startswith("random images, what is known: natural images")
    card = load_json(tmp_path / "out" / "ex-model" / "model-inversion" / "card.json")["training"]
    assert card["strategy"]["recipe"]["bn_distance"] == "gaussian_kl" and card["config"]["precision"] == "bfloat16"


def test_a_strategy_that_is_registered_later_works_in_presets(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.STRATEGIES, "real-images", "Real Images")
    monkeypatch.setitem(METHODS, "real-images", METHODS["replay"])
    own = tmp_path / "mine.toml"
    own.write_text(f'task = "learn"\ndata = "{npz}"\nexperts.epochs = 1\nstrategies = ["real-images"]\n')
    arguments = ("--steps", 2, "--buffer", 8, "--json", "--out", tmp_path / "out")
    assert json.loads(call("learn", "--preset", own, *arguments).stdout)["rows"][0]["name"] == "Real Images"


@pytest.mark.parametrize(
    "changes",
    [
        ("--classes-per-step", "1"), ("--classes-per-step", "3,1"), ("--argument", "batch_norm=true"),
        ("--architecture", "slim_resnet18", "--argument", "width=2"), ("--experts", "EXPERTS"),
    ],
)  # fmt: skip
def test_no_figure_of_the_paper_beside_other_experts(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
) -> None:
    monkeypatch.setattr("exml_fast.reproduction.study_rows.published", published_for_quadrants)
    mnist = tmp_path / "mnist.npz"
    mnist.write_bytes(npz.read_bytes())
    common = ("learn", "--data", mnist, "--strategy", "replay", "--epochs", 1, "--steps", 2, "--buffer", 1000)

    def papers(*arguments: object) -> set[float | None]:
        return {row["paper"] for row in json.loads(call(*common, *arguments, "--json").stdout)["rows"]}

    if changes[0] == "--experts":  # what they are stands on their cards
        call("train-experts", "--data", mnist, "--argument", "batch_norm=true", "--epochs", 1, "--out", tmp_path / "bn")
        changes = ("--experts", str(tmp_path / "bn"))
    assert 99.42 in papers("--out", tmp_path / "as published")
    assert papers(*changes, "--out", tmp_path / "other") == {None}


def test_a_baseline_that_fails_is_tried_again(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only networks that cannot be averaged leave a row out."""

    def damaged(_stream: Any) -> Any:
        raise ValueError("expert 2 cannot be read")

    common = ("learn", "--data", npz, "--strategy", "replay", "--epochs", 1, "--steps", 2, "--report")
    with monkeypatch.context() as patched:
        patched.setitem(methods.BASELINES, "Ensemble Avg.", damaged)
        assert "expert 2 cannot be read" in call(*common, "--out", tmp_path, code=2).output
    rows = json.loads(call("learn", "--out", tmp_path, "--resume", "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["Replay", *methods.BASELINES, *methods.MERGES]
    assert "Time and memory by stage" in (tmp_path / "report" / "index.html").read_text(), "asked for before"


def test_merges_that_cannot_run_leave_their_row_out(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_scipy(*_: Any, **__: Any) -> Any:
        raise ImportError("Re-Basin needs scipy")

    def attention(*_: Any, **__: Any) -> Any:
        raise CannotMerge("the operation permute of the network cannot be merged")

    monkeypatch.setitem(methods.MERGES, "Re-Basin", without_scipy)
    monkeypatch.setitem(methods.MERGES, "ZipIt", attention)
    common = ("learn", "--data", npz, "--strategy", "replay", "--epochs", 1, "--steps", 2, "--json")
    rows = json.loads(call(*common, "--out", tmp_path).stdout)["rows"]
    assert [row["name"] for row in rows] == ["Replay", *methods.BASELINES, "RegMean"]
    assert rows[-1]["seconds"] > 0 and rows[-1]["peak_mb"] > 0
    assert rows[-1]["note"].startswith("one model, each layer fitted to those of the experts; images: natural-fields")


def test_the_images_of_merges() -> None:
    assert isinstance(methods.merge_images(Settings()), NaturalFields)
    assert isinstance(methods.merge_images(Settings(merging="pen-strokes")), PenStrokes)
    inverted = methods.merge_images(Settings(merging="model-inversion", inversion={"steps": 7}))
    assert isinstance(inverted, ModelInversion) and inverted.recipe.optimisation.steps == 7
    with pytest.raises(ValueError, match=r"merging must be one of .*natural-fields.*, got 'photographs'"):
        check_methods(Settings(merging="photographs"))


def test_the_weight_of_a_competition_is_for_the_strategy_that_competes() -> None:
    settings = Settings(strategies=("model-inversion", "adaptive-inversion"), inversion={"compete": 2.0})
    check_methods(settings)
    recipes = [plan_of(settings, name).recipe for name in settings.strategies]
    assert [recipe and recipe.competition.compete for recipe in recipes] == [0, 2]
    with pytest.raises(ValueError, match="compete must be positive for adaptive-inversion, got 0"):
        check_methods(dataclasses.replace(settings, inversion={"compete": 0}))


def test_sources_of_random_images_take_fields_by_name() -> None:
    settings = Settings(
        strategies=("pen-strokes", "natural-fields"), sources={"pen-strokes": {"box": 0.9, "pen": [0.04, 0.08]}}
    )
    check_methods(settings)
    drawn, fields = (plan_of(settings, name) for name in settings.strategies)
    wide = PenStrokes(box=0.9, pen=(0.04, 0.08))
    assert drawn.source == wide and drawn.calibration is not None and drawn.calibration.source == wide
    assert fields.source == NaturalFields()
    behind = plan_of(
        dataclasses.replace(
            settings, background="pen-strokes", calibration="pen-strokes",
            distillation={"targets": "experts", "background_share": 0.4},
        ),
        "model-inversion",
    )  # fmt: skip
    assert behind.background is not None and behind.background.source == wide
    assert behind.calibration is not None and behind.calibration.source == wide
    with pytest.raises(ValueError, match="sources must be one of"):
        check_methods(dataclasses.replace(settings, sources={"noise": {}}))
    with pytest.raises(ValueError, match=r"sources: pen-strokes: no field 'boxes'.*did you mean 'box'"):
        check_methods(dataclasses.replace(settings, sources={"pen-strokes": {"boxes": 1}}))
    with pytest.raises(ValueError, match="box must be more than 0"):
        check_methods(dataclasses.replace(settings, sources={"pen-strokes": {"box": 0}}))


def test_strokes_and_pixels_are_inverted_with_their_own_settings() -> None:
    settings = Settings(
        strategies=("inverted-strokes", "model-inversion"), typicality=0.5, inversion={"steps": 7, "lr": 0.03},
        drawn_inversion={"steps": 9},
    )  # fmt: skip
    strokes, pixels = (plan_of(settings, name) for name in settings.strategies)
    assert strokes.recipe is not None and pixels.recipe is not None
    assert [plan.recipe.optimisation.steps for plan in (strokes, pixels) if plan.recipe] == [9, 7]
    assert strokes.recipe.optimisation.lr == 0.02 and pixels.recipe.optimisation.lr == 0.03
    assert strokes.calibration is not None and strokes.calibration.typicality == 0.5 and pixels.calibration is None
    with pytest.raises(ValueError, match=r"typicality must be 0 where no method has a calibration, got 0\.5"):
        check_methods(dataclasses.replace(settings, strategies=("model-inversion",)))


def test_replay_of_new_instances_has_a_part_for_each_expert(npz: Path, tmp_path: Path) -> None:
    settings = Settings(
        data=str(npz), scenario="new-instances", parts=2, experts=ExpertSettings(epochs=1), strategies=("replay",)
    )
    study = Study(settings, RunOptions(), tmp_path)
    replay, experts = study.data_of("replay", study.stream(0)), study.stream(0)
    seen = [replay.samples(expert, 1000, torch.Generator().manual_seed(0))[0] for expert in experts]
    assert [len(images) for images in seen] == [80, 80]
    sums = torch.cat(seen).flatten(1).double().sum(1)
    everything = experts[0].input_spec.prepare(study.data.train.images).flatten(1).double().sum(1)
    torch.testing.assert_close(sums.sort().values, everything.sort().values)


def test_the_page_shows_own_heads_and_says_what_it_cannot_show(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = quadrants()
    for i, expert in enumerate(train_stream(data, [[0, 1], [2, 3]], epochs=1, head="own", common_initialisation=False)):
        expert.save(tmp_path / "experts" / f"expert_{i}")
    common = ("learn", "--data", npz, "--experts", tmp_path / "experts", "--strategy", "replay", "--steps", 2)
    call(*common, "--report", "--out", tmp_path / "own")
    page = (tmp_path / "own" / "report" / "index.html").read_text()
    assert page.count('aria-label="Class similarities of Expert') == 2 and "2 by 2" in page

    def none(_model: Any) -> Any:
        raise ValueError("source must have a linear layer")

    monkeypatch.setattr("exml_fast.reproduction.study_page.class_similarity", none)
    said = call(*common, "--report", "--out", tmp_path / "none").output
    assert said.count("no class similarities: source must have a linear layer") == 2
    assert "Class similarities of" not in (tmp_path / "none" / "report" / "index.html").read_text()


def test_the_verdict_says_what_came_out() -> None:
    rows = [
        {"name": name, "kind": kind, "ours": ours}
        for name, kind, ours in (
            ("Inverted Strokes", "strategy", 81.25), ("Model Inversion", "strategy", 50.0),
            ("Model Inversion, joint expert", "strategy", 95.0), ("Param. Avg.", "baseline", 70.0),
            ("Oracle", "baseline", 100.0), ("Joint training", "joint", 98.66),
        )
    ]  # fmt: skip
    assert verdict_of(rows, 5) == (
        "Five experts, no data: 81.2 % (Inverted Strokes); averaging their weights 70.0 %; training on the data itself "
        "98.7 %."
    )
    best = {"name": "ZipIt", "kind": "baseline", "ours": 72.0}
    assert "(Inverted Strokes); the best baseline, ZipIt, 72.0 %; averaging their weights 70.0 %" in verdict_of(
        [*rows, best], 5
    )
    assert verdict_of(rows[3:], 5) == "" and verdict_of(rows, 1) == "One expert, no data: 81.2 % (Inverted Strokes)."


def test_experts_of_strangers_have_first_weights_of_their_own(tmp_path: Path) -> None:
    data = quadrants()
    settings = ExpertSettings(epochs=1, lr=1e-12)  # hardly trained: their weights are their first ones
    for initial in ("common", "own"):
        experts = dataclasses.replace(settings, initial=initial)
        stream = train_experts([(data, [0, 1]), (data, [2, 3])], tmp_path / initial, experts, seed=3)
        first, second = (next(expert.model.parameters()) for expert in stream)
        assert torch.allclose(first, second, atol=1e-6) == (initial == "common")
    again = train_experts([(data, [0, 1]), (data, [2, 3])], tmp_path / "again", experts, seed=3)
    assert torch.equal(next(again[1].model.parameters()), second)
