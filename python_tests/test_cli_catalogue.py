from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import trained
from typer.testing import CliRunner, Result

from exml_fast.cli.app import app
from exml_fast.continual import Catalogue, Expert, ExpertStream, hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalogue = Catalogue(tmp_path / "catalogue")
    for name, expert in zip(("b", "a"), trained(), strict=True):
        catalogue.add(expert, name)
    return catalogue.folder


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["catalogue", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def as_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(call(*arguments, "--json", code=code).stdout)


def test_list_shows_the_cards(folder: Path) -> None:
    card = json.loads((folder / "b" / "card.json").read_text())
    card |= {"class_names": ["[red]no\x1b[2Jrth", *card["class_names"][1:]], "licence": "MIT"}
    (folder / "b" / "card.json").write_text(json.dumps(card))
    text = call("list", folder).stdout
    for cell in ("2 experts", "lenet5", "quadrants", "100.00", "1×32×32", "MIT", "south-west"):
        assert cell in text
    assert len(text.split("south-west, south-east")) == 2 and all(len(line) < 200 for line in text.splitlines())
    assert "[red]no�[2Jrth, north-east" in text and "\x1b" not in text
    experts = as_json("list", folder)["experts"]
    assert [e["name"] for e in experts] == ["a", "b"] and experts[1]["sha256"] == card["sha256"]
    assert experts[0]["parameters"] == sum(p.numel() for p in trained()[0].model.parameters())


def test_new_makes_an_expert_of_somebody_s_weights(tmp_path: Path) -> None:
    from exml_fast.models import CifarResNet

    torch.save({"state_dict": CifarResNet(8, 3).state_dict()}, tmp_path / "weights.th")
    spec = json.dumps({"channels": 3, "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3})
    source = (
        "cifar_resnet",
        "--weights",
        tmp_path / "weights.th",
        "--argument",
        "depth=8",
        "--argument",
        "num_classes=3",
    )
    place = (tmp_path / "catalogue", "mine", *source)
    (entry,) = as_json("new", *place, "--input", spec, "--class-names", "cat, dog,horse", "--licence", "MIT")["experts"]
    assert (entry["name"], entry["licence"], entry["class_names"]) == ("mine", "MIT", ["cat", "dog", "horse"])
    expert = Expert.load(tmp_path / "catalogue" / "mine")
    assert expert.classes == expert.units == (0, 1, 2) and expert.input_spec.size == (32, 32)
    assert expert.logits(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    (other,) = as_json("new", tmp_path / "catalogue", "numbers", *source, "--input", spec)["experts"]
    assert other["class_names"] == ["0", "1", "2"]
    for arguments, message in (
        ((*place, "--input", spec), "mine exists already: give another name or overwrite it"),
        ((*place,), "input is missing"),
        ((*place[:2], tmp_path / "catalogue"), "is a file or folder: give an architecture"),
        ((*place, "--input", spec, "--class-names", "cat,dog"), "must name the 3 logits of cifar_resnet, got 2 names"),
    ):
        assert message in call("new", *arguments, code=2).stderr, message


def test_new_knows_no_names_of_weights_from_a_file_and_checks_what_a_card_can_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    from exml_fast.continual import teachers

    model = torchvision.models.squeezenet1_1(num_classes=10)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    place = (tmp_path / "catalogue", "mine", "torchvision/squeezenet1_1", "--weights", tmp_path / "weights.pt")
    (entry,) = as_json("new", *place, "--argument", "num_classes=10")["experts"]
    assert entry["class_names"] == [str(i) for i in range(10)]
    open_teacher = teachers.open_teacher

    def with_more(*arguments: Any, **options: Any) -> teachers.Teacher:
        teacher = open_teacher(*arguments, **options)
        teacher.model.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
        return teacher

    monkeypatch.setattr(teachers, "open_teacher", with_more)
    refused = call("new", *place, "--argument", "num_classes=10", "--overwrite", code=2)
    assert "computes something else than the network that was loaded" in " ".join(refused.stderr.split())


def test_find_passes_every_condition_on(folder: Path) -> None:
    def found(*conditions: object) -> list[str]:
        return [e["name"] for e in as_json("find", folder, *conditions)["experts"]]

    assert found("--class", "north-*") == ["b"]
    assert found("--class", "north-west", "--class", "south-west") == []
    assert found("--class", "north-west", "--class", "south-west", "--any") == ["a", "b"]
    assert found("--architecture", "timm/*") == found("--licence", "MIT") == []
    assert found("--min-accuracy", 0.5, "--min-parameters", 5, "--min-bytes", 5) == ["a", "b"]
    assert found("--max-parameters", 5) == found("--max-bytes", 5) == []
    error = call("find", folder, "--min-accuracy", 90, code=2).stderr
    assert error == "error: min_accuracy must be between 0 and 1, got 90.0\n"


def test_add_verify_and_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    assert "no problems" in call("verify", folder).stdout
    Expert(trained()[0].model, trained()[0].card).save(tmp_path / "c")
    assert as_json("add", folder, tmp_path / "c", "--licence", "MIT")["experts"][0]["licence"] == "MIT"
    assert "exists already" in call("add", folder, tmp_path / "c", code=2).stderr
    call("add", folder, tmp_path / "c", "--overwrite")
    call("add", tmp_path / "new", tmp_path / "c", "--name", "d")
    assert "--name takes one expert" in call("add", folder, tmp_path, folder / "a", "--name", "x", code=2).stderr

    (folder / "a" / "model.safetensors").write_bytes(b"")
    (folder / "b" / "card.json").write_text("{")
    result = call("verify", folder, code=1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("a: ") and "header is cut off" in lines[0] and lines[1].startswith("b: ")
    assert lines[2] == "3 experts checked, 2 problems"
    assert list(as_json("verify", folder, code=1)["problems"]) == ["a", "b"]
    assert as_json("verify", folder, "c") == {"catalogue": str(folder), "checked": ["c"], "problems": {}}
    listed = call("list", folder)
    assert "1 experts" in listed.stdout and listed.stderr.count("not readable: ") == 2
    assert list(as_json("list", folder)["unreadable"]) == ["a", "b"]
    assert "no such folder" in call("verify", tmp_path / "nowhere", code=2).stderr


def test_export_and_import(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "stream"
    assert [e["name"] for e in as_json("export", folder, out, "--expert", "b", "--expert", "a")["experts"]] == [
        "b",
        "a",
    ]
    assert ExpertStream(out).experiences == [[0, 1], [2, 3]]
    assert "exists already" in call("export", folder, out, code=2).stderr
    assert [e["name"] for e in as_json("export", folder, out, "--overwrite")["experts"]] == ["a", "b"]
    assert "exists already" in call("import", folder, out, code=2).stderr
    assert "x_a" in call("import", folder, out, "--prefix", "x_").stdout
    call("import", folder, out, "--overwrite")
    assert Catalogue(folder).names == ["a", "b", "x_a", "x_b"]


def test_push_and_pull(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(hub, "push", lambda *a, **k: calls.append((a, k)) or "address")
    assert call("push", folder / "a", "me/one", "--private", "--message", "m").stdout == "address\n"
    assert calls.pop() == ((folder / "a", "me/one"), {"revision": None, "private": True, "message": "m"})
    monkeypatch.setattr(hub, "pull", lambda *a, **k: calls.append((a, k)) or [trained()[0].card])
    assert as_json("pull", "me/one", tmp_path / "x", "--revision", "v1")["experts"][0]["classes"] == [0, 1]
    assert calls.pop() == (("me/one", tmp_path / "x"), {"revision": "v1", "overwrite": False})
    assert "lenet5: north-west, north-east" in call("pull", "me/one", tmp_path / "x").stdout

    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr(hub, "push", refuse)
    assert call("push", folder / "a", "me/one", code=2).stderr == "error: 401 Client Error\n"


def test_a_class_that_no_expert_knows_gets_the_nearest_names(folder: Path) -> None:
    assert (
        "no expert knows a class nort; the nearest names are north-" in call("find", folder, "--class", "nort").stderr
    )
    assert "no expert knows" not in call("find", folder, "--class", "north-*", "--min-parameters", 10**9).stderr
