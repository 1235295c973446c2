"""Networks of the user's own by ``package.module:factory``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from exml_fast.cli.app import app
from exml_fast.cli.preparation import open_named
from exml_fast.continual import Expert
from exml_fast.data import InputSpec
from exml_fast.models import OWN

CODE = """
from torch import nn

def net(num_classes, in_channels=1, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 5, stride=4), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
        nn.Linear(49 * width, num_classes),
    )
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module my_networks in the current folder; nothing of it stays."""
    before, path = dict(OWN), list(sys.path)
    (tmp_path / "my_networks.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in path if entry])
    yield
    sys.modules.pop("my_networks", None)
    OWN.clear()
    OWN.update(before)


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def forget() -> None:
    OWN.pop("my_networks:net", None)
    sys.modules.pop("my_networks", None)


def test_experts_of_a_typed_network(tmp_path: Path) -> None:
    call(
        "train-experts", "--out", "experts", "--architecture", "my_networks:net", "--argument", "width=2", "--epochs",
        1, "--classes-per-step", "5",
    )  # fmt: skip
    card = json.loads((tmp_path / "experts" / "expert_01" / "card.json").read_text())
    assert card["architecture"] == "my_networks:net"
    assert card["arguments"] == {"num_classes": 10, "in_channels": 1, "width": 2}
    forget()
    refused = call("evaluate", "experts/expert_01", code=2).stderr
    assert "unknown architecture 'my_networks:net'" in refused and "exml_fast.models.register" in refused
    assert "my_networks" not in sys.modules, "a card imports nothing"
    call("--architecture", "my_networks:net", "evaluate", "experts/expert_01")
    assert isinstance(Expert.load("experts/expert_01").model, torch.nn.Module)


def test_a_typed_teacher_and_student() -> None:
    names = dict[str, Any]()
    exec(CODE, names)
    torch.save(names["net"](3).state_dict(), "weights.pt")
    spec = json.dumps({"channels": 1, "size": [32, 32], "mean": [0.5], "std": [0.25]})
    arguments = ("--weights", "weights.pt", "--argument", "num_classes=3", "--input", spec, "--steps", 2)
    call("invert", "my_networks:net", *arguments, "--per-class", 1, "--out", "images")
    forget()
    call("invert", "--resume", "--out", "images", code=2)
    assert "my_networks" not in sys.modules, "a stored run imports nothing"
    call("--architecture", "my_networks:net", "invert", "my_networks:net", *arguments, "--per-class", 1)
    student = open_named("my_networks:net:num_classes=3=weights.pt", spec=InputSpec(1, (32, 32), (0.5,), (0.25,)))
    assert student.name == "my_networks:net" and student.outputs() == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere.at.all:net", "the module 'nowhere.at.all' cannot be imported: No module named 'nowhere'"),
        ("my_networks:no_net", "the module 'my_networks' has no 'no_net'"),
        ("my_networks:CODE", "the module 'my_networks' has no 'CODE'"),
        ("my_networks:nn", "factory must be a class or a function"),
    ],
)
def test_what_is_not_there_is_named(text: str, says: str) -> None:
    assert says in call("train-experts", "--architecture", text, code=2).stderr
    assert says in call("--architecture", text, "evaluate", "experts", code=2).stderr


def test_other_texts_are_refused() -> None:
    assert (
        "must be like package.module:factory, got 'lenet5'"
        in call("--architecture", "lenet5", "evaluate", "experts", code=2).stderr
    )


def test_the_command_that_goes_on_names_the_network(tmp_path: Path) -> None:
    arguments = ("train-experts", "--architecture", "my_networks:net", "--epochs", 1, "--out", "experts")
    call(*arguments)
    run = json.loads((tmp_path / "experts" / "run.json").read_text())
    (tmp_path / "experts" / "run.json").write_text(json.dumps(run | {"finished": False}))
    forget()
    said = call(*arguments, code=2).stderr
    again = "exml-fast --architecture my_networks:net train-experts --out experts --resume"
    assert f"go on with `{again}`" in said
    forget()
    call(*again.split()[1:])
    forget()
    call(*arguments, "--resume")  # the same command, which names the same settings
    said = call(*arguments[:-4], "--epochs", 2, "--out", "experts", "--resume", code=2).stderr
    assert "which differ: leave out" in said and "--epochs" in said
    forget()
    assert "--architecture MODULE:FACTORY COMMAND" in call("evaluate", "experts/expert_01", code=2).stderr
