"""The commands, on digits or the quadrants with tiny settings."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from small_experts import save_npz
from torchvision.utils import save_image
from typer.testing import CliRunner, Result

from exml_fast import cli
from exml_fast.cli.app import app
from exml_fast.cli.progress import Reporter
from exml_fast.continual import (
    Card,
    ExModelDistillation,
    Expert,
    ExpertStream,
    Measured,
    ResponseCalibration,
    new_classes,
    train_stream,
)
from exml_fast.data import Augmentation, InputSpec, load
from exml_fast.generators import Generator
from exml_fast.inversion import Result as Inverted
from exml_fast.models import create
from exml_fast.profiling import Meter
from exml_fast.report.live import LivePage
from exml_fast.storage import load_json

QUICK_LEARN = ("--inversion-steps", "2", "--buffer", "40", "--steps", "20")


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(call(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quadrants as a file: four classes, quick to learn."""
    return save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz")


@pytest.fixture(scope="module")
def experts(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    call("train-experts", "--data", npz, "--epochs", 4, "--lr", 0.02, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def learned(npz: Path, experts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("learned")
    strategies = ("--strategy", "model-inversion", "--strategy", "data-impression")
    summary = as_json(
        "learn", "--data", npz, "--experts", experts, *strategies, *QUICK_LEARN, "--seeds", 2, "--report", "--out", out
    )
    return out, summary


@pytest.mark.parametrize(
    ("scenario", "rows"),
    [
        ("multi-task", ["Replay", "Oracle", "Param. Avg.", "Re-Basin", "RegMean", "ZipIt"]),
        (
            "new-instances",
            ["Replay", "Ensemble Avg.", "Min. Entropy", "Param. Avg.", "Re-Basin", "RegMean", "ZipIt"],
        ),
    ],
)
def test_learn_with_tasks_and_with_new_instances(npz: Path, tmp_path: Path, scenario: str, rows: list[str]) -> None:
    summary = as_json(
        "learn", "--data", npz, "--scenario", scenario, "--classes-per-step", "3,1", "--parts", 2, "--epochs", 2,
        "--strategy", "replay", *QUICK_LEARN, "--buffer", 40, "--steps", 60, "--out", tmp_path / "out",
    )  # fmt: skip
    assert [row["name"] for row in summary["rows"]] == rows
    assert all(0 <= row["ours"] <= 100 for row in summary["rows"])
    replay = summary["rows"][0]
    if scenario == "multi-task":
        assert replay["per_experience"][1] == 100, "one class of one"
    else:
        assert len(replay["per_experience"]) == 1 and len(replay["after_each_expert"]) == 2


def test_version_prints_build_info() -> None:
    lines = dict(line.split(maxsplit=1) for line in call("--version").stdout.splitlines())
    assert {"version", "torch", "compiler", "cpu_capability"} <= set(lines)
    assert lines["torch"] == torch.__version__


@pytest.mark.parametrize("command", ["train-experts", "invert", "distill", "generator", "learn", "evaluate", "demo"])
def test_help_names_the_common_options(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "160", "TERM": "dumb"}).output
    assert all(option in text for option in ("--seed", "--device", "--out", "--json"))


def test_train_experts_saves_a_stream(npz: Path, tmp_path: Path) -> None:
    summary = as_json("train-experts", "--data", npz, "--epochs", 2, "--classes-per-step", 2, "--out", tmp_path)
    stream = ExpertStream(tmp_path)
    assert stream.experiences == [[0, 1], [2, 3]]
    assert [card["sha256"] for card in summary["experts"]] == [card.sha256 for card in stream.cards]
    assert summary["machine"]["torch"] == torch.__version__ and summary["commit"]
    assert load_json(tmp_path / "run.json")["finished"]


def test_train_experts_equals_the_library(npz: Path, tmp_path: Path) -> None:
    from exml_fast.data import load

    call("train-experts", "--data", npz, "--epochs", 1, "--out", tmp_path)
    data = load(str(npz))
    want = train_stream(data, new_classes(data, 2), epochs=1)
    assert ExpertStream(tmp_path).fingerprints() == want.fingerprints()


def test_train_experts_passes_its_training_options_on(npz: Path, tmp_path: Path) -> None:
    call(
        "train-experts", "--data", npz, "--scenario", "joint", "--epochs", 1, "--lr", 0.05, "--batch-size", 16,
        "--schedule", "onecycle", "--augment", "shift=2", "--augment", "flip=0.5", "--precision", "bfloat16",
        "--out", tmp_path,
    )  # fmt: skip
    (card,) = ExpertStream(tmp_path).cards
    assert Augmentation(**card.training["augmentation"]) == Augmentation(shift=2, flip=0.5)
    assert card.training["precision"] == "bfloat16"
    assert (card.training["schedule"], card.training["batch_size"]) == ("onecycle", 16)
    refused = call("train-experts", "--data", npz, "--augment", "zoom=2", "--out", tmp_path / "other", code=2)
    assert "augmentation: no field 'zoom'" in refused.stderr
    for option, message in (
        (("--augment", "flip=yes"), "flip must be a number, got 'yes'"),
        (("--schedule", "step"), "schedule must be one of 'constant' or 'onecycle', got 'step'"),
        (("--precision", "half"), "precision must be one of 'float32' or 'bfloat16', got 'half'"),
    ):
        refused = call("train-experts", "--data", npz, *option, "--out", tmp_path / "other", code=2)
        assert message in " ".join(refused.stderr.split()), message


def test_train_experts_prints_cards_and_plain_lines(tmp_path: Path) -> None:
    result = call("train-experts", "--scenario", "joint", "--epochs", 1, "--out", tmp_path)
    assert "expert_01" in result.stdout and "lenet5" in result.stdout
    assert "\x1b" not in result.output and "epochs: done in" in result.stderr


def test_invert_an_expert(experts: Path, tmp_path: Path) -> None:
    arguments = ("--classes", "1,0", "--per-class", 3, "--steps", 3, "--set", "tv_l2=0.001", "--png", "--out", tmp_path)
    summary = as_json("invert", experts / "expert_01", *arguments)
    result = Inverted.load(tmp_path)
    assert sorted(result.labels.tolist()) == [0, 0, 0, 1, 1, 1] and summary["images"] == 6
    assert summary["recipe"]["steps"] == 3 and summary["recipe"]["tv_l2"] == 0.001
    assert (tmp_path / "grid.png").stat().st_size > 0 and len(list((tmp_path / "png").iterdir())) == 6
    assert not (tmp_path / "checkpoints").exists()


def test_invert_takes_torchvision_weights_from_a_file(tmp_path: Path) -> None:
    import torchvision

    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "weights.pt")
    source = ("torchvision/shufflenet_v2_x0_5", "--weights", tmp_path / "weights.pt")
    summary = as_json(
        "invert", *source, "--classes", "goldfish, 3", "--per-class", 1, "--steps", 1, "--out", tmp_path / "out"
    )
    assert summary["classes"] == [1, 3] and summary["recipe"]["name"] == "deep_inversion/imagenet-transferable"
    assert summary["recipe"]["coarse_steps"] == [3], "steps at the smaller size in proportion"


def test_invert_asks_judges_and_looks_for_copies(experts: Path, npz: Path, tmp_path: Path) -> None:
    other = experts / "expert_02"
    arguments = ("--classes", "0,1", "--per-class", 2, "--steps", 3, "--judge", other, "--real", npz, "--report")
    summary = as_json("invert", experts / "expert_01", *arguments, "--out", tmp_path)
    report = load_json(tmp_path / "report.json")
    assert list(report["judges"]) == [str(experts / "expert_01"), str(other)] and "command" in report
    assert report["judges"] == summary["judges"] and set(report["diversity"]) == {"0", "1"}
    assert len(report["memorisation"]["nearest"]) == 4 and report["settings"]["model"] == "expert_01"
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Recognised, %" in page and "Nearest real images" in page and "An <em>expert</em>" not in page
    assert Inverted.load(tmp_path).soft_labels().sum(1).allclose(torch.ones(4))


def test_invert_competes_and_takes_statistics_from_images(experts: Path, npz: Path, tmp_path: Path) -> None:
    images = ("--statistics", npz, "--statistics-count", 20, "--layer", "features.0", "--layer", "features.3")
    student = ("--recipe", "adaptive_deep_inversion", "--student", experts / "expert_02")
    short = ("--classes", 0, "--per-class", 2, "--steps", 2, "--out", tmp_path)
    summary = as_json("invert", experts / "expert_01", *images, *student, *short)
    assert summary["absent"] == [] and {"bn", "compete"} <= set(Inverted.load(tmp_path).history)
    refused = call("invert", experts / "expert_01", *student[:2], *images, *short[:-2], "--out", tmp_path / "b", code=2)
    assert "student must be" in refused.output


def test_networks_of_ours_need_weights_and_input(tmp_path: Path) -> None:
    from exml_fast.models import CifarResNet

    state = {f"module.{name}": value for name, value in CifarResNet(8, 3).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.th")
    spec = json.dumps({"channels": 3, "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3})
    own = ("cifar_resnet", "--weights", tmp_path / "weights.th", "--argument", "depth=8", "--argument", "num_classes=3")
    short = ("--classes", 2, "--per-class", 1, "--steps", 1, "--out", tmp_path / "out")
    assert as_json("invert", *own, "--input", spec, *short)["classes"] == [2]
    for arguments, message in (
        ((*own, *short), "input is missing"),
        ((*own, "--input", '{"channels": 3}', *short), "--input must be like"),
        (("cifar_resnet", "--input", spec, *short), "weights must be a local file"),
        (
            (*own[:-2], "--input", spec, *short),
            "does not fit this model, a CifarResNet: 2 tensors of other shapes (first",
        ),
        ((*own, "--input", spec, "--classes", 3, "--out", tmp_path / "c"), "has no classes [3], only 0 to 2"),
        ((*own, "--input", spec.replace("3, ", "4, ", 1), *short), "mean must have one number per channel (4)"),
    ):
        assert message in " ".join(call("invert", *arguments, code=2).output.split()), message
    assert not (tmp_path / "c").exists()


def test_distill_teaches_a_student_and_goes_on(npz: Path, experts: Path, tmp_path: Path) -> None:
    first = ("--classes", "0,1", "--per-class", 4, "--steps", 3, "--out", tmp_path / "images")
    call("invert", experts / "expert_01", *first)
    arguments = [
        "distill", experts / "expert_01", "--images", tmp_path / "images", "--recipe", "adaptive_deep_inversion",
        "--recipe", "deep_dream", "--set", "bn=0", "--set", "steps=3", "--classes", "0,1", "--student", "lenet5",
        "--student-argument", "activation=relu", "--steps", 12, "--rounds", 2, "--distillation", "generate_every=4",
        "--distillation", "per_round=6", "--distillation", "batch_size=8", "--distillation", "lr=0.01", "--data", npz,
        "--report", "--out", tmp_path / "out", "--png", "--real", npz, "--pool-dir", tmp_path / "pool",
    ]  # fmt: skip
    summary = as_json(*arguments)
    assert list((tmp_path / "pool").iterdir()) == []
    student = Expert.load(tmp_path / "out" / "student")
    assert student.card.arguments["activation"] == "relu" and student.units == Expert.load(experts / "expert_01").units
    assert summary["images"] == 8 + 12 and [r["step"] for r in summary["rounds"]] == [0, 4]
    assert student.card.training["accuracy"] == summary["accuracy"] and 0 <= summary["accuracy"] <= 1
    assert len(Inverted.load(tmp_path / "out" / "images")) == 20 and not (tmp_path / "out" / "checkpoints").exists()
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    for part in ("Agreement with its teacher", "Divergence from the teacher", "Nearest real image"):
        assert part in page
    report = load_json(tmp_path / "out" / "report.json")
    assert report["distillation"]["accuracy"] == summary["accuracy"] and "lenet5 (student)" in report["judges"]
    pool = Inverted.load(tmp_path / "out" / "images")
    assert pool.soft_labels().sum(1).allclose(torch.ones(20))
    assert len(list((tmp_path / "out" / "images" / "png").iterdir())) == 20
    says = Expert.load(experts / "expert_01").model.eval()(pool.images)
    torch.testing.assert_close(pool.logits, says.detach(), rtol=1e-4, atol=1e-4)
    stored = load_json(tmp_path / "out" / "results.json")
    assert stored["settings"]["inversion"] == {"bn": 0, "steps": 3}
    made_by = [(recipe["name"], recipe["steps"]) for recipe in report["recipes"]]
    assert made_by == [("adaptive_deep_inversion", 3), ("deep_dream", 3)] and {
        r["recipe"] for r in summary["rounds"]
    } <= {0, 1}
    assert "adaptive_deep_inversion, deep_dream" in page
    assert not {"images", "pool_dir"} & set(stored["settings"])
    for wrong, message in (
        (("--student", "lenet6"), "unknown architecture 'lenet6'"),
        (("--distillation", "temperature=0"), "temperature must be positive"),
        (("--images", tmp_path / "nowhere"), "nowhere"),
        (("--classes", "7"), "has no classes [7]"),
    ):
        refused = call(*arguments[:2], "--set", "bn=0", *wrong, "--out", tmp_path / "wrong", code=2)
        assert message in refused.output and not (tmp_path / "wrong").exists()


def test_distill_draws_random_images(npz: Path, experts: Path, tmp_path: Path) -> None:
    short = ("--student", "lenet5", "--steps", 6, "--distillation", "generate_every=3", "--distillation", "per_round=8")
    given = ("distill", experts / "expert_01", "--images", "dead-leaves", *short, "--distillation", "batch_size=4")
    summary = as_json(*given, "--report", "--out", tmp_path / "out")
    assert [(r["step"], r["images"]) for r in summary["rounds"]] == [(0, 32), (3, 8)] and summary["images"] == 32
    stored = load_json(tmp_path / "out" / "results.json")
    assert stored["settings"]["images"] == "dead-leaves"
    card = Expert.load(tmp_path / "out" / "student").card
    assert card.training["source"]["source"] == "DeadLeaves" and card.training["recipes"] == []
    assert "DeadLeaves" in (tmp_path / "out" / "report" / "index.html").read_text()
    (tmp_path / "photos").mkdir()
    save_image(torch.rand(3, 40, 50), tmp_path / "photos" / "a.png")
    crops = ("--images", f"photographs={tmp_path / 'photos'}")
    summary = as_json("distill", experts / "expert_01", *crops, *short, "--out", tmp_path / "crops")
    assert load_json(tmp_path / "crops" / "results.json")["settings"]["images"] == "photographs"
    made = Generator.create("upsampling", Expert.load(experts / "expert_01").input_spec, latent_size=5, width=2)
    made.save(tmp_path / "generator")
    images = ("--images", f"generator={tmp_path / 'generator'}")
    summary = as_json("distill", experts / "expert_01", *images, *short, "--out", tmp_path / "generated")
    assert load_json(tmp_path / "generated" / "results.json")["settings"]["images"] == "generator"
    for wrong, message in (
        (("--images", f"photographs={tmp_path / 'nowhere'}"), "photographs: there is no file"),
        (("--images", f"generator={tmp_path / 'photos'}"), "photos"),
        (("--recipe", "deep_dream"), "--images dead-leaves makes all images"),
        (("--classes", "0,1"), "--classes: --images dead-leaves draws images of no class"),
        (("--set", "steps=3"), "--set changes a recipe or --images fast"),
    ):
        refused = call(*given, *wrong, "--out", tmp_path / "wrong", code=2)
        assert message in refused.output and not (tmp_path / "wrong").exists()


def test_distill_takes_images_of_a_meta_generator(experts: Path, tmp_path: Path) -> None:
    short = ("--student", "lenet5", "--steps", 4, "--distillation", "generate_every=2", "--distillation", "per_round=8")
    given = ("distill", experts / "expert_01", "--images", "fast", "--classes", "0,1", *short)
    changes = ("--set", "steps=2", "--set", "width=2", "--set", "bn_optional=true", "--set", "warmup=1")
    summary = as_json(*given, *changes, "--report", "--out", tmp_path / "out")
    assert summary["images"] == 16 and "teacher" in summary["rounds"][0]
    card = Expert.load(tmp_path / "out" / "student").card
    assert card.training["source"]["kind"] == "fast" and card.training["source"]["width"] == 2
    assert set(Inverted.load(tmp_path / "out" / "images").labels.tolist()) == {0, 1}
    for wrong, message in (
        (("--set", "width=0"), "width must be at least 1"),
        (("--recipe", "deep_dream"), "--images fast makes all images"),
        ((), "bn_optional"),
    ):
        refused = call(*given, *wrong, "--out", tmp_path / "wrong", code=2)
        assert message in refused.output and not (tmp_path / "wrong").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def of_two_and_three(experts: Path, tmp_path: Path) -> Path:
    """An expert whose logits are classes 3 and 2."""
    card = Expert.load(experts / "expert_01").card
    arguments = {**card.arguments, "num_classes": 2}
    torch.manual_seed(0)
    model = create(card.architecture, **arguments)
    names = ("three", "two")
    Expert(model, Card(card.architecture, arguments, (3, 2), (3, 2), names, card.input_spec)).save(tmp_path / "two")
    return tmp_path / "two"


def test_distill_counts_by_class_ids(npz: Path, of_two_and_three: Path, tmp_path: Path) -> None:
    arguments = (
        "distill", of_two_and_three, "--set", "bn=0", "--set", "compete=0", "--set", "steps=2", "--steps", 2,
        "--rounds", 1, "--distillation", "per_round=4", "--data", npz, "--out", tmp_path / "out",
    )  # fmt: skip
    accuracy = as_json(*arguments)["accuracy"]
    student, test = Expert.load(tmp_path / "out" / "student"), load(str(npz)).test
    says = student.model.eval()(student.input_spec.prepare(test.images)).argmax(1)
    assert student.units == (3, 2)
    assert accuracy == pytest.approx(float((torch.tensor(student.units)[says] == test.labels).double().mean()))


def test_a_student_to_compete_with_has_the_teachers_classes(experts: Path, of_two_and_three: Path) -> None:
    card = Expert.load(of_two_and_three).card
    other, out = of_two_and_three.with_name("other"), of_two_and_three.with_name("out")
    again = Card(card.architecture, card.arguments, (0, 1), (0, 1), ("zero", "one"), card.input_spec)
    Expert(create(card.architecture, **card.arguments), again).save(other)
    wrong = ("--student", other, "--set", "compete=1", "--set", "bn=0", "--out", out)
    said = " ".join(call("invert", of_two_and_three, *wrong, code=2).output.split())
    assert "--student has logits for (0, 1), the teacher for (3, 2)" in said and not out.exists()


def test_images_of_other_channels_are_refused_first(experts: Path, tmp_path: Path) -> None:
    """Nobody makes four channels of three."""
    card, out = Expert.load(experts / "expert_01").card, tmp_path / "out"
    for channels in (3, 4):
        spec = InputSpec(channels, card.input_spec.size, (0.5,) * channels, (0.25,) * channels)
        arguments = {**card.arguments, "in_channels": channels}
        of_so_many = Card(card.architecture, arguments, card.units, card.units, card.class_names, spec)
        Expert(create(card.architecture, **arguments), of_so_many).save(tmp_path / str(channels))
    colour, pixels, labels = tmp_path / "colour.npz", np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)
    np.savez(colour, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    for command, option, value in (
        ("invert", "--real", colour), ("distill", "--real", colour), ("distill", "--data", colour),
        ("invert", "--judge", tmp_path / "3"), ("distill", "--judge", tmp_path / "3"),
    ):  # fmt: skip
        refused = call(command, tmp_path / "4", "--set", "bn=0", option, value, "--out", out, code=2)
        said = " ".join(refused.output.split())
        assert said.startswith(f"error: {option}") and "channels cannot be converted to" in said, said
        assert not out.exists()


def test_refused_commands_leave_the_folder_as_it_was(
    npz: Path, experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input is an error that names its option, before any work and before an earlier run is touched."""
    first, out = experts / "expert_01", tmp_path / "out"
    call("invert", first, "--classes", 0, "--per-class", 1, "--steps", 1, "--out", out)
    before = contents(out)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    def spec(channels: int, size: int) -> str:
        return json.dumps(
            {"channels": channels, "size": [size, size], "mean": [0.5] * channels, "std": [0.5] * channels}
        )

    invert, distill = ("invert", first), ("distill", first, "--set", "bn=0", "--steps", 1)
    both = (
        (("--input", spec(3, 32)), "input of", "rejects images of shape (1, 3, 32, 32)"),
        (("--input", spec(4, 32)), "input of", "rejects images of shape (1, 4, 32, 32)"),
        (("--input", spec(1, 60_000)), "input of", "GB free"),
        (("--classes", 99), "classes:", "has no classes [99]"),
        (("--statistics", "/nowhere"), "/nowhere", ""),
        (("--real", "/nowhere"), "/nowhere", ""),
        (("--judge", "torchvision/nothing=/nowhere"), "nothing", ""),
        (("--layer", "nothing*", "--statistics", npz), "nothing*", "matches no layer"),
    )
    own = (
        (distill, ("--data", "/nowhere"), "/nowhere", ""),
        (distill, ("--distillation", "pool_size=2"), "pool_size must hold a round", ""),
        (distill, ("--distillation", "batch_size=100000000"), "a batch of 100000000 images", "smaller batch_size"),
        (invert, ("--per-class", 100_000_000), "GB of memory are free", "ask for fewer"),
        (distill, ("--tensorboard", tmp_path / "board"), "TensorBoard needs tensorboard", ""),
        (distill, ("--student-argument", "in_channels=3"), "--student of lenet5", "rejects images"),
        (distill, ("--distillation", "lr=fast"), "lr must be a number", "'fast'"),
        (distill, ("--distillation", 'augmentation={"zoom": 1}'), "augmentation", "unknown field 'zoom'"),
        (invert, ("--set", "compete=1"), "--student must be given", ""),
    )
    cases = [(command, *case) for case in both for command in (invert, distill)] + list(own)
    for command, wrong, *messages in cases:
        said = " ".join(call(*command, *wrong, "--out", out, code=2).output.split())
        assert said.startswith("error:") and all(message in said for message in messages), (wrong, said)
        assert contents(out) == before, wrong


def test_networks_without_a_linear_layer(tmp_path: Path) -> None:
    """SqueezeNet's classifier is a convolution: class ids are checked by its logits, features are what it reads."""
    import torchvision

    model = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    source = ("torchvision/squeezenet1_1", "--weights", tmp_path / "weights.pt", "--argument", "num_classes=3")
    small = json.dumps({"channels": 3, "size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3})
    short = ("--input", small, "--per-class", 2, "--steps", 1, "--out", tmp_path / "out")
    refused = call("invert", *source, "--classes", 5, *short, code=2)
    assert "has no classes [5], only 0 to 2" in refused.output and not (tmp_path / "out").exists()
    summary = as_json("invert", *source, "--classes", 1, *short)
    assert summary["recipe"]["name"] == "model_inversion" and list(summary["diversity"]) == ["1"]


def test_judges_with_arguments_and_weights(tmp_path: Path) -> None:
    from exml_fast.models import CifarResNet

    for depth in (8, 14):
        torch.save(CifarResNet(depth, 3).state_dict(), tmp_path / f"{depth}.th")
    spec = json.dumps({"channels": 3, "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3})
    own = ("cifar_resnet", "--weights", tmp_path / "8.th", "--argument", "depth=8", "--argument", "num_classes=3")
    short = ("--input", spec, "--classes", 2, "--per-class", 1, "--steps", 1, "--out", tmp_path / "out")
    judge = f"cifar_resnet:depth=14,num_classes=3={tmp_path / '14.th'}"
    assert list(as_json("invert", *own, *short, "--judge", judge)["judges"]) == ["cifar_resnet", judge]
    wrong = judge.replace("depth=14", "depth=8")
    said = " ".join(call("invert", *own, *short, "--judge", wrong, code=2).output.split())
    assert "does not fit this model, a CifarResNet" in said and "unknown tensors (first layer" in said
    assert "arguments of its architecture must be given too" in said


def test_torchvisions_inceptions_normalise_inside(tmp_path: Path) -> None:
    """As torchvision has them with the weights that it downloads; a file says nothing of it."""
    import torchvision

    from exml_fast.continual.teachers import open_teacher

    model = torchvision.models.googlenet(num_classes=2, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    source, weights = "torchvision/googlenet", str(tmp_path / "weights.pt")
    assert open_teacher(source, weights=weights, arguments={"num_classes": 2}).model.transform_input
    assert not open_teacher(
        source, weights=weights, arguments={"num_classes": 2, "transform_input": False}
    ).model.transform_input


def test_ambiguous_class_names() -> None:
    from exml_fast.continual.teachers import Teacher
    from exml_fast.data import InputSpec
    from exml_fast.models import LeNet5

    names = {0: "crane", 1: "Crane", 2: "heron"}
    teacher = Teacher("birds", LeNet5(3), InputSpec(1, (32, 32), (0.5,), (0.5,)), None, None, names)
    assert teacher.class_ids(["heron", "1"]) == [2, 1]
    with pytest.raises(ValueError, match=r"'crane' is the name of the classes \[0, 1\] of birds: give the id"):
        teacher.class_ids(["crane"])


def test_learn_writes_rows_as_designed(learned: tuple[Path, dict[str, Any]]) -> None:
    out, summary = learned
    stored = load_json(out / "results.json")
    assert {"command", "commit", "date", "machine", "rows"} <= set(stored)
    assert stored["rows"] == summary["rows"]
    rows = {row["cell"]: row for row in stored["rows"]}
    assert list(rows) == [
        f"quadrants/NC/{name}"
        for name in (
            "Model Inversion ED",
            "Data Impression ED",
            "Oracle",
            "Ensemble Avg.",
            "Min. Entropy",
            "Param. Avg.",
            "Re-Basin",
            "RegMean",
            "ZipIt",
        )
    ]
    ours = rows["quadrants/NC/Model Inversion ED"]
    assert ours["seeds"] == 2 and len(ours["values"]) == 2 and ours["std"] is not None and ours["reduced"]
    assert len(ours["after_each_expert"]) == 2 and ours["seconds"] > 0 and ours["peak_mb"] > 0
    assert rows["quadrants/NC/Oracle"]["ours"] > 90
    (first, _), last = ours["matrix"]
    assert ours["per_experience"] == last and ours["forgetting"] == pytest.approx(first - last[0], abs=0.01)
    assert ours["average_accuracy"] == pytest.approx(sum(last) / 2, abs=0.01)
    assert ours["ours"] == ours["average_accuracy"] == ours["after_each_expert"][1], "experiences of one size"
    assert rows["quadrants/NC/Oracle"]["per_experience"] and "forgetting" not in rows["quadrants/NC/Oracle"]
    assert not (out / "checkpoints").exists()


def test_learn_saves_ex_models_that_evaluate(learned: tuple[Path, dict[str, Any]], npz: Path) -> None:
    out, summary = learned
    folder = out / "ex-model" / "model-inversion-seed_1"
    assert Expert.load(folder).card.classes == (0, 1, 2, 3)
    figures = as_json("evaluate", folder, "--data", npz)
    assert figures["accuracy"] * 100 == pytest.approx(summary["rows"][0]["values"][1], abs=1e-3)
    assert sum(map(sum, figures["confusion"])) == figures["images"] == 40
    text = call("evaluate", folder, "--data", npz).stdout
    assert "40 test images" in text and "confusion" in text


def test_learn_writes_the_page(learned: tuple[Path, dict[str, Any]]) -> None:
    page = (learned[0] / "report" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Model Inversion", "Data Impression", "Oracle", "Param. Avg.", "±"))
    for heading in ("Accuracy by experience, %", "accuracy on each experience after each expert",
                    "Images of each class in the final buffer", "Time and memory by stage"):  # fmt: skip
        assert heading in page
    assert page.count("Class similarities of Expert") == 2 and "<td>evaluate</td>" in page
    stored = load_json(learned[0] / "parts" / "model-inversion-seed_0.json")
    assert stored["buffer_classes"] == {"0": 10, "1": 10, "2": 10, "3": 10}
    assert set(stored["stage_peak_mb"]) == set(stored["seconds"]) == {"generate", "distil", "evaluate"}
    assert stored["peak_mb"] >= max(stored["stage_peak_mb"].values()), "meters within a meter"


def test_auxiliary_data_from_a_file(npz: Path, experts: Path, tmp_path: Path) -> None:
    auxiliary = ("--strategy", "auxiliary-data", "--auxiliary", npz)
    arguments = ("--data", npz, "--experts", experts, *auxiliary, *QUICK_LEARN, "--out", tmp_path / "run")
    assert as_json("learn", *arguments)["rows"][0]["name"] == "Auxiliary Data"
    assert (tmp_path / "run" / "ex-model" / "card.json").is_file()


def test_auxiliary_data_from_a_folder_of_photographs(npz: Path, experts: Path, tmp_path: Path) -> None:
    """Of any size and at any depth, as a user's ImageNet."""
    for i in range(40):
        place = tmp_path / "photos" / f"n{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (20 + i, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).save(place / f"{i}.jpg")
    auxiliary = ("--strategy", "auxiliary-data", "--auxiliary", tmp_path / "photos")
    arguments = ("--data", npz, "--experts", experts, *auxiliary, *QUICK_LEARN, "--out", tmp_path / "run")
    (row,) = [row for row in as_json("learn", *arguments)["rows"] if row["kind"] == "strategy"]
    assert row["note"].startswith("images of photos")
    assert load_json(tmp_path / "run" / "results.json")["settings"]["auxiliary"] == "photos", "no place on this machine"
    (tmp_path / "empty").mkdir()
    early = ("--strategy", "auxiliary-data", "--auxiliary", tmp_path / "empty", "--out", tmp_path / "none")
    output = call("learn", "--data", npz, *early, code=2).output
    assert "holds no images" in output and not (tmp_path / "none" / "experts").exists()


@pytest.mark.parametrize("calibration", [None, "none", "pen-strokes"])
def test_learn_from_random_images(
    npz: Path, experts: Path, tmp_path: Path, calibration: str | None, monkeypatch
) -> None:
    """Distilled with settings of their own, calibrated on themselves unless another source is named."""
    seen: list[Any] = []
    kept = ExModelDistillation.__init__

    def spy(self: Any, *args: Any, **options: Any) -> None:
        seen.append((args[1], options["calibration"]))
        kept(self, *args, **options)

    monkeypatch.setattr(ExModelDistillation, "__init__", spy)
    one = Measured(torch.ones(2), torch.empty(2, 0))
    monkeypatch.setattr(ResponseCalibration, "measure", lambda self, expert, generator: one)
    more = [] if calibration is None else ["--calibration", calibration]
    arguments = ("--data", npz, "--experts", experts, "--strategy", "dead-leaves", *QUICK_LEARN, *more)
    row = as_json("learn", *arguments, "--out", tmp_path / "run")["rows"][0]
    assert row["name"] == "Dead Leaves" and row["note"].startswith("random images, what is known: natural images")
    ((config, found),) = seen
    assert config.targets.name == "stored" and config.loss.name == "kl" and config.training.steps < 2000
    source = {None: "DeadLeaves", "pen-strokes": "PenStrokes"}.get(calibration)
    assert (found and found.describe()["source"]["source"]) == source


def test_learn_from_photographs(npz: Path, experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Measured(torch.ones(2), torch.empty(2, 0))
    monkeypatch.setattr(ResponseCalibration, "measure", lambda self, expert, generator: one)
    (tmp_path / "photos").mkdir()
    save_image(torch.rand(3, 40, 50), tmp_path / "photos" / "a.png")
    arguments = ("learn", "--data", npz, "--experts", experts, *QUICK_LEARN)
    given = ("--strategy", f"photographs={tmp_path / 'photos'}")
    row = as_json(*arguments, *given, "--out", tmp_path / "run")["rows"][0]
    assert row["name"] == "Photographs" and row["note"].startswith("random crops, what is known: one photograph")
    stored = load_json(tmp_path / "run" / "results.json")["settings"]
    assert stored["strategies"] == ["photographs"] and stored["photographs"] == "photos"
    for wrong, message in (
        (("--strategy", "photographs"), "source must be files, folders or tensors of photographs"),
        ((*given, *given), "--strategy photographs must be given once"),
        (("--strategy", f"photographs={tmp_path / 'none'}"), "photographs: there is no file"),
    ):
        refused = call(*arguments, *wrong, "--out", tmp_path / "wrong", code=2)
        assert message in " ".join(refused.output.split()) and not (tmp_path / "wrong").exists()


def test_invert_drawings(experts: Path, tmp_path: Path) -> None:
    arguments = (experts / "expert_01", "--parametrisation", "pen-strokes", "--classes", "0,1", "--steps", 3)
    summary = as_json("invert", *arguments, "--out", tmp_path / "run")
    assert summary["recipe"]["name"] == "drawn_inversion" and summary["parametrisation"]["source"] == "PenStrokes"
    pixels = Inverted.load(tmp_path / "run").pixels()
    assert (pixels.amax((1, 2, 3)) > 0.5).all() and (pixels[:, :, 0] < 0.1).double().mean() > 0.9
    refused = call("invert", *arguments, "--parametrisation", "crayon", "--out", tmp_path / "wrong", code=2)
    assert "--parametrisation must be one of ['pen-strokes'], got 'crayon'" in " ".join(refused.output.split())
    assert not (tmp_path / "wrong").exists()


def test_learn_from_inverted_strokes(npz: Path, experts: Path, tmp_path: Path) -> None:
    quick = ("--inversion", "steps=2", "--steps", 5, "--buffer", 20)
    arguments = ("--data", npz, "--experts", experts, "--strategy", "inverted-strokes", *quick)
    row = as_json("learn", *arguments, "--out", tmp_path / "run")["rows"][0]
    assert row["name"] == "Inverted Strokes" and "inverted ones of their kind" in row["note"]
    assert "pen drawings" in row["note"] and "20 of 5000 images" in row["note"] and "steps" not in row["note"]
    card = Expert.load(tmp_path / "run" / "ex-model").card
    assert card.training["config"]["targets"] == "experts" and card.training["config"]["renormalise"]
    assert (
        card.training["strategy"]["strategy"] == "drawn_inversion" and card.training["strategy"]["recipe"]["steps"] == 2
    )


def test_demo_makes_everything(npz: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    tiny = ("--inversion-steps", 2, "--steps", 10, "--buffer", 40, "--epochs", 1)
    summary = as_json("demo", "--data", npz, *tiny, "--out", tmp_path, "--threads", threads)
    names = [row["name"] for row in summary["rows"]]
    assert names == [
        "Inverted Strokes", "Model Inversion", "Data Impression", "Oracle", "Ensemble Avg.", "Min. Entropy",
        "Param. Avg.", "Re-Basin", "RegMean", "ZipIt", "Model Inversion, joint expert",
        "Data Impression, joint expert", "Joint training",
    ]  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    for part in ("results", "samples", "accuracy", "confusion", "similarity", "time", "settings"):
        assert f'id="{part}"' in page
    stored = load_json(tmp_path / "results.json")
    assert "http" not in page and stored["rows"] == summary["rows"]
    assert stored["settings"]["experts"]["arguments"] == {} and stored["settings"]["typicality"] == 0.0
    assert "pen drawings" in summary["rows"][0]["note"]  # the table says what is known of the domain
    # A finished run is replaced, and the table is printed.
    assert "Joint training" in call("demo", "--data", npz, *tiny, "--out", tmp_path, "--threads", threads).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-experts", "--scenario", "other"), "scenario must be one of"),
        (("train-experts", "--data", "nothing"), "got 'nothing'"),
        (("learn", "--strategy", "magic"), "strategies must be one of"),
        (("learn", "--calibration", "magic"), "calibration must be one of"),
        (("learn", "--experts", "/nowhere"), "no such folder"),
        (("learn", "--inversion", "stepz=3"), "did you mean 'steps'"),
        (("learn", "--distillation", "rate=3"), "unknown field 'rate'"),
        (("learn", "--inversion", "steps"), "must be NAME=VALUE"),
        (("learn", "--device", "abacus"), "--device must be"),
        (("learn", "--resume"), "no run of 'learn'"),
        (("invert", "nowhere"), "neither an expert's folder"),
        (("invert",), "MODEL is missing"),
        (("invert", "torchvision/nonsense"), "no model 'nonsense'"),
        (("evaluate", "nowhere"), "card.json is missing"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out") if arguments[0] != "evaluate" else ()
    result = call(*arguments, *out, code=2)
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app, ["--debug", "evaluate", "nowhere"])
    assert isinstance(result.exception, FileNotFoundError)


def test_missing_extra_is_one_line() -> None:
    code = "import sys; sys.modules['typer'] = None; from exml_fast.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == 'exml-fast needs typer: pip install "exml_fast[cli,report]"\n'


def interrupted(arguments: list[str], when: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own and press Ctrl-C once ``when`` exists."""
    command = [sys.executable, "-m", "exml_fast.cli", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell starts its background jobs, and so tests run as one, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for _ in range(1200):
        if when.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_ctrl_c_and_resume(npz: Path, experts: Path, tmp_path: Path) -> None:
    common = ["learn", "--data", str(npz), "--experts", str(experts), "--buffer", "40"]
    common += ["--inversion-steps", "2", "--steps", "800", "--threads", "1"]
    stopped = tmp_path / "stopped"
    checkpoint = stopped / "checkpoints" / "model-inversion-seed_0" / "distillation.pt"
    run = interrupted([*common, "--out", str(stopped)], checkpoint)
    assert run.returncode == 130, run.stderr
    command = f"exml-fast learn --out {stopped} --resume"
    assert run.stderr.rstrip().endswith(command) and "Traceback" not in run.stderr and checkpoint.exists()

    assert "unfinished run" in call(*common, "--out", stopped, code=2).stderr
    assert "leave out --buffer" in call("learn", "--out", stopped, "--resume", "--buffer", 3, code=2).stderr
    resumed = as_json(*command.split()[1:])
    through = as_json(*common, "--out", tmp_path / "through")
    pick = [[(row["cell"], row["ours"]) for row in summary["rows"]] for summary in (resumed, through)]
    assert pick[0] == pick[1]
    prints = [Expert.load(out / "ex-model").fingerprint() for out in (stopped, tmp_path / "through")]
    assert prints[0] == prints[1]


def test_ctrl_c_before_a_command_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exml_fast.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == cli.INTERRUPTED == 130
    assert capsys.readouterr().err.strip() == "Interrupted. Nothing was kept."


def test_ctrl_c_and_resume_of_an_inversion(experts: Path, tmp_path: Path) -> None:
    common = ["invert", str(experts / "expert_01"), "--per-class", "2", "--steps", "1500"]
    run = interrupted([*common, "--out", str(tmp_path / "a")], tmp_path / "a" / "run.json")
    assert run.returncode == 130, run.stderr
    call("invert", "--out", tmp_path / "a", "--resume")
    call(*common, "--out", tmp_path / "b")
    assert torch.equal(Inverted.load(tmp_path / "a").images, Inverted.load(tmp_path / "b").images)


def test_progress_on_a_terminal_shows_terms_and_time() -> None:
    stream = io.StringIO()
    with Reporter(Console(file=stream, force_terminal=True, width=120)) as report:
        report.prefix = "Model Inversion"
        report("expert [1/2]: generate", 0, 10, {})
        report("expert [1/2]: generate", 5, 10, {"ce": 1.25, "bn": 0.5})
        assert report._bars is not None
        report._bars.refresh()
        report("expert [1/2]: distil", 10, 10, {"loss": 0.125})
        report._bars.refresh()
    text = stream.getvalue()
    assert "expert [1/2]: generate" in text and "ce 1.25  bn 0.5" in text and "left" in text and "loss 0.125" in text


def test_progress_elsewhere_is_plain_lines() -> None:
    stream = io.StringIO()
    with Reporter(Console(file=stream, width=40), line_seconds=0) as report:
        report("distil", 1, 4, {"loss": 2.0})
        report("distil", 2, 4, {"loss": 1.0, "a rather long name of a term": 3.0})
    assert "\x1b" not in stream.getvalue()
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("distil: 2/4  loss 1  a rather long name of a term 3") and last.endswith("s left")


def test_meter_sees_memory_and_time() -> None:
    with Meter() as first:
        pass
    with Meter() as second:
        torch.ones(40_000_000).sum()
    assert second.seconds > 0 and second.peak_mb - first.peak_mb > 100


def test_a_run_is_watched(experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    images = LivePage.images

    def looking(self: LivePage, *arguments: Any) -> None:
        images(self, *arguments)
        self._write("It is running.", running=True)
        pages.append(self.path.read_text())

    monkeypatch.setattr(LivePage, "images", looking)
    out = tmp_path / "out"
    call("invert", experts / "expert_01", "--steps", 60, "--per-class", 1, "--out", out, "--watch")
    assert len(pages) == 3 and all("data-refresh" in page and "data:image/png" in page for page in pages)
    final = (out / "report" / "index.html").read_text()
    assert "data-refresh=" not in final and "How the images form" in final and "recognises" in final


def test_tensorboard_gets_terms_and_images_and_may_be_given_with_resume(experts: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board, out = tmp_path / "board", tmp_path / "out"
    steps = ("--per-class", 1, "--steps", 2, "--out", out)
    call("invert", experts / "expert_01", *steps, "--tensorboard", board)
    tags = events.EventAccumulator(str(board)).Reload().Tags()
    assert "invert/loss" in tags["scalars"] and tags["images"] == ["invert/images"]
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"finished": False}))
    call("invert", "--out", out, "--resume", "--tensorboard", tmp_path / "again")
    assert events.EventAccumulator(str(tmp_path / "again")).Reload().Tags()["scalars"]
