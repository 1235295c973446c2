"""`exml-fast generator`: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from exml_fast.cli.app import app
from exml_fast.continual import Card, Expert
from exml_fast.data import InputSpec
from exml_fast.generators import Generator
from exml_fast.models import create

SPEC = InputSpec(1, (32, 32), (0.5,), (0.25,))
ARGUMENTS = {"in_channels": 1, "num_classes": 3, "batch_norm": True}
SHORT = ("--steps", 2, "--set", "batch_size=8", "--set", "width=4", "--set", "latent_size=8", "--count", 24)


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert whose logits are classes 2, 0 and 1."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    model = create("lenet5", **ARGUMENTS)
    card = Card("lenet5", ARGUMENTS, (2, 0, 1), (2, 0, 1), ("two", "zero", "one"), SPEC)
    Expert(model, card).save(folder)
    return folder


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "few.npz"
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (30, 32, 32), dtype=np.uint8), np.tile([0, 1, 2], 10)
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return file


def test_a_generator_is_trained_saved_and_shown(teacher: Path, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call(
        "generator", teacher, *SHORT, "--data", npz, "--real", npz, "--report", "--png", "--json", "--out", out
    )
    assert code == 0, text
    summary: dict[str, Any] = json.loads(text.splitlines()[-1])
    made = Generator.load(out / "generator")
    assert made.classes == (2, 0, 1)
    assert made.sample(2).shape == (2, 1, 32, 32)
    student = Expert.load(out / "student")
    assert student.units == (2, 0, 1)
    assert 0 <= summary["accuracy"] <= 1 and 0 <= summary["agreement"] <= 1
    assert len(list((out / "images" / "png").iterdir())) == 24
    page = (out / "report" / "index.html").read_text("utf-8")
    for heading in ("Loss: imitation", "Loss: explore", "Features of generated images", "Features of real images"):
        assert heading in page
    stored = json.loads((out / "results.json").read_text("utf-8"))
    assert stored["history"]["step"][-1] == 2
    assert not (out / "checkpoints").exists()


def test_a_generator_is_trained_on_for_the_next_task(teacher: Path, tmp_path: Path) -> None:
    assert call("generator", teacher, *SHORT, "--out", tmp_path / "first")[0] == 0
    code, text = call(
        "generator", teacher, *SHORT, "--start", tmp_path / "first" / "generator", "--seed", 1, "--out", tmp_path / "on"
    )
    assert code == 0, text
    first, second = (Generator.load(tmp_path / name / "generator") for name in ("first", "on"))
    assert first.latent_size == second.latent_size
    assert not torch.equal(first.sample(2), second.sample(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "latent_size=0"), "latent_size"),
        (("--set", "widht=4"), "width"),
        (("--start", "/nowhere"), "nowhere"),
        (("--student", "cifar_resnet"), "student"),
        (("--data", "/nowhere.npz"), "nowhere"),
        (("--precision", "half"), "--precision"),
    ],
)
def test_wrong_options_are_named_before_any_step(
    options: tuple[str, ...], message: str, teacher: Path, tmp_path: Path
) -> None:
    code, text = call("generator", teacher, "--steps", 1, *options, "--out", tmp_path / "out")
    assert code == 2
    assert text.startswith("error: ") and message in text


def test_a_generator_of_another_input_is_refused(teacher: Path, tmp_path: Path) -> None:
    other = Generator.create("upsampling", InputSpec(1, (16, 16), (0.5,), (0.25,)), latent_size=8, width=4)
    other.save(tmp_path / "other")
    code, text = call("generator", teacher, *SHORT, "--start", tmp_path / "other", "--out", tmp_path / "out")
    assert code == 2 and "--start" in text
