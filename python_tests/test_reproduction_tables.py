"""Presets of streams: Carta 2022's settings, `learn --preset`, its tables and the sweep, on the quadrants."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, save_npz
from typer.testing import CliRunner

from exml_fast.cli.app import app
from exml_fast.continual import METHODS, DistillationConfig, train_stream
from exml_fast.continual.teachers import pretrained_weights
from exml_fast.data import Augmentation
from exml_fast.models import create
from exml_fast.reproduction import methods, published
from exml_fast.reproduction.methods import check_methods, plan_of
from exml_fast.reproduction.preset import names
from exml_fast.reproduction.runner import load_preset
from exml_fast.reproduction.stream import experts_folder, learn_preset, settings_of
from exml_fast.reproduction.study import Study
from exml_fast.reproduction.study_settings import ExpertSettings, RunOptions, Settings
from exml_fast.storage import load_json, save_tensors

TINY = {"experts.epochs": 2, "distillation.steps": 20, "distillation.buffer_size": 40, "inversion.steps": 2}
CARTA = [name for name in names() if name.startswith("carta2022/") and load_preset(name)["task"] == "learn"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz")


def published_for_quadrants(data: str, scenario: str) -> published.Published | None:
    """What was published, as if the paper's experts had had the classes of the quadrants."""
    found = published.published(data, scenario)
    experiences = {"joint": (4,), "new-classes": (2, 2)}
    return found and dataclasses.replace(found, experiences=experiences[scenario])


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def options(changes: dict[str, Any]) -> list[str]:
    return [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]


@pytest.mark.parametrize("name", CARTA)
def test_presets_are_as_published(name: str) -> None:
    settings = settings_of(learn_preset(name))
    found = published.published(settings.data, settings.scenario)
    planned = plan_of(settings, "model-inversion")
    config = planned.config
    assert found is not None and config.lambda_ce == 1 and planned.recipe is not None
    assert (config.optimizer.steps, config.buffer.buffer_size) == (found.distillation_steps, found.buffer_size)
    assert (settings.experts.epochs, settings.experts.architecture) == (found.epochs, found.architecture)
    assert planned.recipe.steps == found.inversion_steps
    arguments = {"in_channels": 1} if found.architecture == "lenet5" else {}
    assert create(found.architecture, num_classes=50, **arguments) is not None


def test_the_papers_figures_are_in_the_presets() -> None:
    paper = {(data, scenario): found.paper for (data, scenario), found in published._all().items()}
    assert sum(map(len, paper.values())) == 44 and len(paper) == 8
    assert paper["mnist", "new-classes"]["Model Inversion"] == 43.23
    assert paper["cifar10", "multi-task"]["Param. Avg."] == 51.85
    assert paper["core50", "new-instances"]["Ensemble Avg."] == 69.92
    assert published.published("digits", "joint") is None
    assert published.published_lengths("digits") == published.published_lengths("mnist")


def test_presets_hold_the_appendix() -> None:
    assert "replay" not in settings_of({"strategies": ["all"]}).strategies
    nc, mt, ni = (learn_preset(f"carta2022/{name}") for name in ("mnist-nc", "cifar10-mt", "core50-ni"))
    assert plan_of(settings_of(nc), "model-inversion").config == DistillationConfig()
    assert (nc["experts"]["lr"], nc["experts"]["epochs"], nc["classes_per_step"]) == (0.01, 20, [2])
    assert (mt["distillation"]["lr"], mt["scenario"]) == (0.1, "multi-task")
    assert mt["experts"]["architecture"] == "slim_resnet18"
    assert (ni["parts"], ni["experts"]["batch_size"], ni["experts"]["lr"]) == (8, 128, 1e-3)
    assert ni["distillation"]["batch_size"] == 10
    assert len(CARTA) == 8


@pytest.mark.parametrize(
    ("data", "generation", "distillation"),
    [
        ("mnist", {"jitter": 4, "flip": False, "rotate": 0.0, "crop": (1.0, 1.0)}, Augmentation(shift=4)),
        (
            "cifar10",
            {"jitter": 0, "flip": True, "rotate": 15.0, "crop": (0.8, 1.0)},
            Augmentation(shift=2, scale=0.1, flip=0.5, rotation=15.0),
        ),
        (
            "core50",
            {"jitter": 4, "flip": True, "rotate": 15.0, "crop": (1.0, 1.0)},
            Augmentation(shift=4, flip=0.5, rotation=15.0),
        ),
    ],
)
def test_images_are_augmented_as_published(data: str, generation: dict[str, Any], distillation: Augmentation) -> None:
    """Of the published code: crops of a padded image, or of 0.8 to 1 of the area (CIFAR-10); flips; 15 degrees."""
    presets = [learn_preset(name) for name in CARTA if f"/{data}-" in name]
    assert presets
    for preset in presets:
        settings = settings_of(preset)
        for strategy in ("model-inversion", "data-impression"):
            assert plan_of(settings, strategy).config.buffer.augmentation == distillation
            recipe = plan_of(settings, strategy).recipe
            assert {name: getattr(recipe, name) for name in generation} == generation


def test_learn_from_a_preset_and_options_go_before_it(npz: Path, tmp_path: Path) -> None:
    common = ("learn", "--preset", "carta2022/mnist-nc", "--data", npz, "--strategy", "replay", "--json")
    call(*common, "--steps", 7, "--buffer", 20, "--epochs", 1, "--distillation", "lr=0.5", "--out", tmp_path)
    stored = load_json(tmp_path / "results.json")
    settings = stored["settings"]
    assert settings["distillation"] == {
        **learn_preset("carta2022/mnist-nc")["distillation"], "steps": 7, "buffer_size": 20, "lr": 0.5
    }  # fmt: skip
    assert (
        settings["strategies"] == ["replay"]
        and settings["experts"]["epochs"] == 1
        and settings["experts"]["lr"] == 0.01
    )
    assert "7 of 30000 distillation steps" in stored["rows"][0]["note"]


def test_ones_own_preset_and_what_is_wrong_with_it(npz: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    text = f'task = "learn"\ndata = "{npz}"\nexperts.epochs = 1\nscenario = "joint"\nstrategies = ["replay"]\n'
    own.write_text(f"{text}[distillation]\nsteps = 2\nbuffer_size = 8\n")
    rows = json.loads(call("learn", "--preset", own, "--json", "--out", tmp_path / "out").stdout)["rows"]
    assert [row["cell"] for row in rows] == ["quadrants/Joint/Replay ED", "quadrants/Joint/Oracle"]
    for line, message in (
        ("colour = 1", "unknown field 'colour'"),
        ("partz = 1", "unknown field 'partz' (did you mean 'parts'?)"),
        ("parts = 'many'", "parts must be an integer, got 'many'"),
        ("experts.rate = 1.0", "unknown field 'rate'"),
        ("experts.lr = -1.0", "experts.lr must be positive, got -1.0"),
        ("strategies = ['magic']", "strategies must be one of"),
        ("background = 'noise'", "background must be one of"),
        ("background = 'natural-fields'", "got 'natural-fields' and 0.0 for model-inversion"),
        ("distillation = { background_share = 0.5, targets = 'stored' }", "got None and 0.5 for model-inversion"),
        ("typicality = 0.5", "typicality must be 0 for model-inversion without a calibration, got 0.5"),
        ("typicality = -1.0", "typicality must be at least 0, got -1.0"),
        ("inversion.recipe = 'magic'", "recipe must be one of"),
        ("distillation = { rate = 3 }", "unknown field 'rate'"),
        ("seeds = 3", "unknown field 'seeds'"),
    ):
        own.write_text(f'task = "learn"\n{line}\n')
        assert message in call("learn", "--preset", own, "--out", tmp_path / "bad", code=2).output
    assert "is for task 'zskd'" in call("learn", "--preset", "digits/zskd", code=2).output
    assert not (tmp_path / "bad").exists()


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


def test_a_table_by_rows_beside_the_paper(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exml_fast.reproduction.study_rows.published", published_for_quadrants)
    mnist = npz.with_name("mnist.npz")
    mnist.write_bytes(npz.read_bytes())
    changes = options(TINY | {"data": str(mnist)})
    chosen = ["--rows", "mnist/NC,mnist/Joint", "--strategies", "model-inversion,replay", "--seeds", 2]
    out, results = tmp_path / "out", tmp_path / "rows.json"
    arguments = [*chosen, *changes, "--out", out, "--results", results, "--report"]
    printed = call("reproduce", "carta2022/table2", *arguments).output
    stored = load_json(results)
    rows = {row["cell"]: row for row in stored["rows"]}
    assert len(rows) == 9 and {row["seeds"] for row in rows.values()} == {2}
    ours = rows["MNIST/NC/Model Inversion ED"]
    assert ours["paper"] == 43.23 and ours["reduced"] and "20 of 30000 distillation steps" in ours["note"]
    assert rows["MNIST/Joint/Oracle"]["paper"] == 93.71 and "2 of 100 epochs" in rows["MNIST/Joint/Oracle"]["note"]
    assert "43.23" in printed and "* reduced: " in printed
    assert set(stored["details"]) == {"mnist/NC", "mnist/Joint"}
    page = (out / "report" / "index.html").read_text()
    assert "43.23" in page and '<a href="mnist-NC/index.html">mnist/NC</a>' in page
    for row, similarities in (("mnist-NC", 2), ("mnist-Joint", 1)):
        of_row = (out / "report" / row / "index.html").read_text()
        for table in ("Accuracy by experience", "Images of each class in the final buffer", "Time and memory by stage"):
            assert table in of_row
        assert of_row.count('aria-label="Class similarities of Expert') == similarities
    # Whatever is finished is not computed again.
    (out / "parts" / "mnist-NC" / "parts" / "replay-seed_1.json").unlink()
    times = {file: file.stat().st_mtime_ns for file in out.glob("parts/*/parts/*.json")}
    again = load_json(out / "run.json")
    (out / "run.json").write_text(json.dumps(again | {"finished": False}))
    call("reproduce", "--out", out, "--resume")
    assert load_json(out / "results.json")["rows"][1]["values"] == rows["MNIST/NC/Replay ED"]["values"]
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


@pytest.mark.parametrize(
    "changes",
    [
        ("--classes-per-step", "1"), ("--classes-per-step", "3,1"), ("--argument", "batch_norm=true"),
        ("--architecture", "slim_resnet18"), ("--experts", "EXPERTS"),
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


def test_the_sweep_draws_a_line_a_strategy(npz: Path, tmp_path: Path) -> None:
    changes = TINY | {"data": str(npz), "experts.architecture": "lenet5", "variant": "mnist", "sizes": [20, 10]}
    del changes["distillation.buffer_size"]
    arguments = ("--strategies", "replay", "--seeds", 1, "--out", tmp_path, "--report", "--json", *options(changes))
    rows = json.loads(call("reproduce", "carta2022/figure3", *arguments).stdout)["rows"]
    assert [row.get("buffer_size") for row in rows if row["kind"] == "strategy"] == [10, 20]
    assert [row["name"] for row in rows if row["kind"] == "baseline"] == ["Oracle", "Param. Avg."]
    assert not any("images" in row["note"] for row in rows if row["kind"] == "strategy")
    assert (tmp_path / "buffer_sizes.png").stat().st_size > 1000
    assert "Test accuracy by buffer size" in (tmp_path / "report" / "index.html").read_text()
    assert len(list((tmp_path / "experts").iterdir())) == 1, "the sizes share their experts"


def test_a_baseline_that_fails_is_tried_again(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only networks that cannot be averaged leave a row out."""

    def damaged(_stream: Any) -> Any:
        raise ValueError("expert 2 cannot be read")

    common = ("learn", "--data", npz, "--strategy", "replay", "--epochs", 1, "--steps", 2, "--report")
    with monkeypatch.context() as patched:
        patched.setitem(methods.BASELINES, "Ensemble Avg.", damaged)
        assert "expert 2 cannot be read" in call(*common, "--out", tmp_path, code=2).output
    rows = json.loads(call("learn", "--out", tmp_path, "--resume", "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["Replay", *methods.BASELINES]
    assert "Time and memory by stage" in (tmp_path / "report" / "index.html").read_text(), "asked for before"


def test_the_weight_of_a_competition_is_for_the_strategy_that_competes() -> None:
    settings = Settings(strategies=("model-inversion", "adaptive-inversion"), inversion={"compete": 2.0})
    check_methods(settings)
    recipes = [plan_of(settings, name).recipe for name in settings.strategies]
    assert [recipe and recipe.compete for recipe in recipes] == [0, 2]
    with pytest.raises(ValueError, match="compete must be positive for adaptive-inversion, got 0"):
        check_methods(dataclasses.replace(settings, inversion={"compete": 0}))


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


def test_bad_rows_and_strategies_are_named(tmp_path: Path) -> None:
    for arguments, message in (
        (("carta2022/table2", "--rows", "mnist/XX"), "no row 'mnist/XX', expected some of mnist/Joint,mnist/NC"),
        (("carta2022/table2", "--strategies", "magic"), "strategies must be one of"),
        (("carta2022/table2", "--set", "distillation.rate=1"), "unknown field 'rate'"),
        (("carta2022/mnist-nc", "--rows", "mnist/NC"), "has no rows"),
        (("nayak2021/table1", "--strategies", "replay"), "this one is of task 'zskd'"),
    ):
        assert message in call("reproduce", *arguments, "--out", tmp_path / "x", code=2).output
    assert not (tmp_path / "x").exists()


def test_multi_task_and_new_classes_share_their_experts_and_others_do_not(npz: Path, tmp_path: Path) -> None:
    one, two = Settings(data=str(npz)), Settings(data=str(npz), scenario="multi-task", strategies=("replay",))
    other = Settings(data=str(npz), experts=ExpertSettings(lr=0.1))
    assert experts_folder(one) == experts_folder(two) != experts_folder(other)


def test_experts_can_start_from_published_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_tensors(file, create("torchvision/squeezenet1_1").state_dict())
    like = create("torchvision/squeezenet1_1", num_classes=3).state_dict()
    found = pretrained_weights("torchvision/squeezenet1_1", str(file), like)
    assert set(like) - set(found) == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ValueError, match="weights must be one of"):
        pretrained_weights("torchvision/squeezenet1_1", "x", like)
