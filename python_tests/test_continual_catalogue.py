from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_experts import trained

from exml_fast.continual.catalogue import Catalogue
from exml_fast.continual.expert import Card, Expert
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.storage import sha256


def small_resnet() -> Expert:
    """Untrained, of classes 4 and 5, with BatchNorm and a licence."""
    torch.manual_seed(0)
    arguments = {"depth": 8, "num_classes": 2}
    spec = InputSpec(3, (32, 32), (0.5,) * 3, (0.5,) * 3)
    training = {"accuracy": 0.25, "data": "noise"}
    card = Card("cifar_resnet", arguments, (4, 5), (4, 5), ("Tabby cat", "[red] dog"), spec, training, "CC-BY-4.0")
    return Expert(create("cifar_resnet", **arguments), card)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(tmp_path / "catalogue")
    for name, expert in zip(("quadrants_10", "quadrants_9"), trained(), strict=True):
        catalogue.add(expert, name)
    catalogue.add(small_resnet(), "resnet")
    return catalogue


def names(entries: list[Any]) -> list[str]:
    return [entry.name for entry in entries]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and make the hash fit them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "card.json", lambda card: card.update(sha256=sha256(folder / "model.safetensors")))


def test_entries_say_what_the_experts_are(catalogue: Catalogue) -> None:
    assert names(catalogue.experts) == catalogue.names == ["quadrants_9", "quadrants_10", "resnet"]
    assert len(catalogue) == 3 and names(list(catalogue)) == catalogue.names and catalogue.unreadable == {}
    first = catalogue["quadrants_10"]
    assert first.classes == ["north-west", "north-east"] and first.accuracy == 1.0
    assert first.load().fingerprint() == trained()[0].fingerprint()
    for entry, expert in ((first, trained()[0]), (catalogue["resnet"], small_resnet())):
        assert entry.parameters == sum(p.numel() for p in expert.model.parameters())
        assert entry.bytes == (entry.folder / "model.safetensors").stat().st_size > 4 * entry.parameters
    described = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert described["name"] == "quadrants_10" and described["class_names"][3] == "south-east"


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, ["quadrants_9", "quadrants_10", "resnet"]),
        ({"classes": ["NORTH-west"]}, ["quadrants_10"]),
        ({"classes": ["north-west", "north-east"]}, ["quadrants_10"]),
        ({"classes": ["north-west", "south-west"]}, []),
        ({"classes": ["north-west", "south-west"], "match": "any"}, ["quadrants_9", "quadrants_10"]),
        ({"classes": ["*cat", "*-east"], "match": "any"}, ["quadrants_9", "quadrants_10", "resnet"]),
        ({"classes": ["cat"]}, []),
        ({"architecture": "lenet*"}, ["quadrants_9", "quadrants_10"]),
        ({"licence": "cc-by*"}, ["resnet"]),
        ({"licence": "*"}, ["resnet"]),
        ({"min_accuracy": 0.25}, ["quadrants_9", "quadrants_10", "resnet"]),
        ({"min_accuracy": 0.26}, ["quadrants_9", "quadrants_10"]),
        ({"max_parameters": 10}, []),
        ({"architecture": "lenet5", "classes": ["*cat"]}, []),
    ],
)
def test_find(catalogue: Catalogue, conditions: dict[str, Any], found: list[str]) -> None:
    assert names(catalogue.find(**conditions)) == found


def test_find_by_size_includes_the_limits(catalogue: Catalogue) -> None:
    entry = catalogue["resnet"]
    for size in ("parameters", "bytes"):
        value = getattr(entry, size)
        limits = {f"min_{size}": value, f"max_{size}": value}
        assert names(catalogue.find(**limits)) == ["resnet"]
        assert "resnet" not in names(catalogue.find(**{f"min_{size}": value + 1}))
        assert "resnet" not in names(catalogue.find(**{f"max_{size}": value - 1}))


def test_an_accuracy_that_is_none_is_unknown(catalogue: Catalogue) -> None:
    for value in ("0.99", True, 99.0, None):
        edit_json(catalogue.folder / "resnet" / "card.json", lambda card, v=value: card["training"].update(accuracy=v))
        assert catalogue["resnet"].accuracy is None
        assert "resnet" not in names(catalogue.find(min_accuracy=0.0))


def test_find_refuses_what_is_no_condition(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match="min_accuracy must be between 0 and 1, got 90"):
        catalogue.find(min_accuracy=90)
    with pytest.raises(ValueError, match="classes must be a list of names"):
        catalogue.find("cat")
    with pytest.raises(ValueError, match="match must be 'all' or 'any'"):
        catalogue.find(match="some")
    with pytest.raises(ValueError, match=r"min_bytes \(3\) must not be above max_bytes \(2\)"):
        catalogue.find(min_bytes=3, max_bytes=2)


def test_what_is_found_is_a_stream(catalogue: Catalogue) -> None:
    stream = ExpertStream(catalogue.find(architecture="lenet5"))
    assert stream.experiences == [[2, 3], [0, 1]]


def test_add_copies_the_expert_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    Expert(trained()[0].model, trained()[0].card).save(source)
    (source / "notes.txt").write_text("private")
    entry = catalogue.add(source, licence="MIT")
    assert entry.name == "mine" and sorted(os.listdir(entry.folder)) == ["card.json", "model.safetensors"]
    assert entry.card == dataclasses.replace(trained()[0].card, sha256=entry.card.sha256, licence="MIT")
    with pytest.raises(FileExistsError, match="mine exists already"):
        catalogue.add(source)
    assert catalogue.add(source, overwrite=True).card.licence is None
    assert catalogue.verify() == {}


def test_add_takes_nothing_damaged(catalogue: Catalogue, tmp_path: Path) -> None:
    before = files(catalogue.folder)
    source = tmp_path / "bad"
    Expert(trained()[0].model, trained()[0].card).save(source)
    edit_weights(source, lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"bad/model\.safetensors: weight .* is not finite"):
        catalogue.add(source)
    poor = small_resnet()
    next(poor.model.parameters()).data.fill_(float("inf"))
    with pytest.raises(ValueError, match="is not finite"):
        catalogue.add(poor, "resnet", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing"):
        catalogue.add(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="name must be given"):
        catalogue.add(small_resnet())
    for name in ("../x", ".x", "a/b", "", "a\nb", "c:\\x"):
        with pytest.raises(ValueError, match="plain, visible folder name"):
            catalogue.add(small_resnet(), name)
    assert files(catalogue.folder) == before and len(os.listdir(catalogue.folder)) == 3


def test_a_full_disk_leaves_no_trace(catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = catalogue.export(tmp_path / "stream")
    before, copied = files(catalogue.folder), shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if "resnet" in str(source):
            raise OSError(28, "No space left on device")
        copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        catalogue.import_(tmp_path / "stream", prefix="again_")
    with pytest.raises(OSError, match="No space left"):
        catalogue.import_(tmp_path / "stream", prefix="again_", damaged={})
    with pytest.raises(OSError, match="No space left"):
        catalogue.export(tmp_path / "stream", overwrite=True)
    with pytest.raises(OSError, match="No space left"):
        catalogue.export(tmp_path / "other")
    assert files(catalogue.folder) == before and len(os.listdir(catalogue.folder)) == 3
    assert ExpertStream(tmp_path / "stream").fingerprints() == stream.fingerprints()
    assert sorted(os.listdir(tmp_path)) == ["catalogue", "stream"]


def test_verify_names_everything_that_is_wrong(catalogue: Catalogue) -> None:
    assert catalogue.verify() == {}
    folder = catalogue.folder
    for name in ("hash", "key", "shape", "nan", "card", "cut", "bare", "odd"):
        catalogue.add(trained()[0], name)
    (folder / "hash" / "model.safetensors").write_bytes((folder / "resnet" / "model.safetensors").read_bytes())
    edit_weights(folder / "key", lambda tensors: tensors.pop(sorted(tensors)[0]))
    edit_weights(folder / "shape", lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(1)}))
    edit_weights(folder / "nan", lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(float("nan")))
    (folder / "card" / "card.json").write_text("{}")
    (folder / "cut" / "model.safetensors").write_bytes(b"\x08")
    (folder / "bare" / "card.json").unlink()
    edit_json(folder / "odd" / "card.json", lambda card: card.update(architecture="torchvision/resnext50_32x4d"))
    edit_json(folder / "odd" / "card.json", lambda card: card.update(arguments={"groups": 0}))
    (folder / ".half").mkdir()
    (folder / ".half" / "card.json").write_text("{}")
    problems = catalogue.verify()
    expected = {
        "hash": "is missing", "key": "is missing", "shape": "has shape (1,)", "nan": "is not finite",
        "card": "format_version must be", "cut": "its header is cut off", "bare": "card.json is missing",
        "odd": "does not accept",
    }  # fmt: skip
    assert set(problems) == set(expected)
    for name, text in expected.items():
        assert text in problems[name] and name in problems[name] + name, problems
    assert catalogue.verify(["resnet", "nan"]) == {"nan": problems["nan"]}
    # The others can still be listed and found; what cannot even be listed is named.
    assert set(catalogue.unreadable) == {"card", "cut", "bare"}
    assert names(catalogue.find(licence="CC*")) == ["resnet"]
    with pytest.raises(ValueError, match=r"weight 'classifier\.0\.bias' is missing"):
        catalogue.export(folder.parent / "stream", ["resnet", "hash"])
    assert not (folder.parent / "stream").exists()


def test_a_card_with_nan_is_not_json(catalogue: Catalogue) -> None:
    file = catalogue.folder / "resnet" / "card.json"
    file.write_text(file.read_text().replace("0.25", "NaN"))
    assert "NaN is not JSON" in catalogue.unreadable["resnet"]


def test_export_and_import_keep_order_names_and_files(catalogue: Catalogue, tmp_path: Path) -> None:
    order = ["resnet", "quadrants_10", "quadrants_9"]
    stream = catalogue.export(tmp_path / "stream", [catalogue["resnet"], *order[1:]])
    assert stream.experiences == [[4, 5], [0, 1], [2, 3]] == ExpertStream(tmp_path / "stream").experiences
    exported = files(tmp_path / "stream")
    assert exported.pop("stream.json") and exported == files(catalogue.folder)

    other = Catalogue(tmp_path / "other")
    assert names(other.import_(tmp_path / "stream")) == order
    assert files(other.folder) == files(catalogue.folder)
    with pytest.raises(FileExistsError, match="exists already"):
        other.import_(tmp_path / "stream")
    assert names(other.import_(tmp_path / "stream", prefix="b_")) == [f"b_{name}" for name in order]
    other.import_(tmp_path / "stream", overwrite=True)
    assert len(other) == 6 and other.verify() == {}
    # An exported stream is a catalogue that keeps its order when it is exported again, and takes nothing in.
    assert Catalogue(tmp_path / "stream").export(tmp_path / "again").experiences == stream.experiences
    with pytest.raises(ValueError, match="is an exported stream"):
        Catalogue(tmp_path / "stream").add(trained()[0], "new")


def test_import_takes_plain_folders_of_experts(tmp_path: Path) -> None:
    for number, expert in zip((10, 2), trained(), strict=True):
        Expert(expert.model, expert.card).save(tmp_path / "run" / f"expert_{number}")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert names(Catalogue(tmp_path / "new").import_(tmp_path / "run")) == ["expert_2", "expert_10"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no expert in"):
        Catalogue(tmp_path / "new").import_(tmp_path / "empty")


def test_import_takes_all_or_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.export(tmp_path / "stream")
    weights = tmp_path / "stream" / "resnet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match=r"resnet/model\.safetensors: sha256 is"):
        Catalogue(tmp_path / "other").import_(tmp_path / "stream")
    assert os.listdir(tmp_path / "other") == []


def test_import_goes_on_past_damaged_experts_if_it_may(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.export(tmp_path / "stream")
    weights = tmp_path / "stream" / "resnet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    (tmp_path / "stream" / "quadrants_9" / "card.json").write_text("{}")
    damaged: dict[str, str] = {}
    copied = Catalogue(tmp_path / "other").import_(tmp_path / "stream", damaged=damaged)
    assert names(copied) == ["quadrants_10"] == os.listdir(tmp_path / "other")
    assert "sha256 is" in damaged["resnet"] and "stream.json says" in damaged["quadrants_9"]


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "long"])
def test_files_that_are_no_files_are_named_and_hide_nothing(catalogue: Catalogue, tmp_path: Path, kind: str) -> None:
    card, weights = (catalogue.folder / "resnet" / name for name in ("card.json", "model.safetensors"))
    if kind == "long":
        card.write_text(json.dumps("x" * 2_100_000))
    else:
        weights.rename(tmp_path / "weights")
    if kind == "fifo":
        os.mkfifo(weights)
    elif kind == "link":
        weights.symlink_to(tmp_path / "weights")
    elif kind == "folder":
        weights.mkdir()
    message = {"fifo": "a FIFO", "link": "a link out of its folder", "folder": "a folder", "long": "at most 2,097,152"}
    for problems in (catalogue.unreadable, catalogue.verify()):
        assert list(problems) == ["resnet"] and message[kind] in problems["resnet"]
    assert len(catalogue.experts) == 2 == len(catalogue.find())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format_version=2), "format_version must be 1"),
        (lambda s: s.update(experts={}), "experts must list objects"),
        (lambda s: s["experts"][0].pop("card_sha256"), "experts must list objects"),
        (lambda s: s["experts"][0].update(name="../catalogue/resnet"), "plain, visible folder name"),
        (lambda s: s["experts"][0].update(name="gone"), "gone: card.json is missing"),
        (lambda s: s["experts"][0].update(card_sha256="0"), "stream.json says '0'"),
        (lambda s: s["experts"].append(s["experts"][0]), "must not repeat a name"),
        (lambda s: s["experts"].clear(), "no expert in"),
    ],
)
def test_a_stream_with_a_wrong_order_is_refused(
    catalogue: Catalogue, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    catalogue.export(tmp_path / "stream")
    edit_json(tmp_path / "stream" / "stream.json", change)
    with pytest.raises(ValueError, match=message):
        ExpertStream(tmp_path / "stream")
    with pytest.raises(ValueError, match=message):
        Catalogue(tmp_path / "other").import_(tmp_path / "stream")


def test_a_card_changed_after_the_export_is_noticed(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.export(tmp_path / "stream")
    edit_json(tmp_path / "stream" / "resnet" / "card.json", lambda card: card.update(classes=[5, 4]))
    with pytest.raises(ValueError, match=r"resnet/card\.json: sha256 is"):
        ExpertStream(tmp_path / "stream")
    assert list(Catalogue(tmp_path / "stream").verify()) == ["stream.json"]


def test_export_overwrites_nothing_but_an_export(catalogue: Catalogue, tmp_path: Path) -> None:
    target = tmp_path / "stream"
    catalogue.export(target)
    with pytest.raises(FileExistsError, match="exists already"):
        catalogue.export(target, ["resnet"])
    assert len(catalogue.export(target, ["resnet"], overwrite=True)) == 1
    (target / "resnet" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"also holds resnet/notes\.txt"):
        catalogue.export(target, overwrite=True)
    (tmp_path / "home").mkdir()
    with pytest.raises(FileExistsError, match=r"not a folder with stream\.json"):
        catalogue.export(tmp_path / "home", overwrite=True)
    with pytest.raises(ValueError, match="must not hold the experts themselves"):
        catalogue.export(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="must not repeat a name, got resnet"):
        catalogue.export(tmp_path / "twice", ["resnet", "resnet"])
    with pytest.raises(ValueError, match=r"no expert 'x' in .* which has quadrants_9, quadrants_10, resnet"):
        catalogue.export(tmp_path / "unknown", ["x"])
    with pytest.raises(ValueError, match="there is no expert to write"):
        catalogue.export(tmp_path / "none", [])
    assert sorted(os.listdir(tmp_path)) == ["catalogue", "home", "stream"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for ask in (Catalogue.find, Catalogue.verify, len):
        with pytest.raises(ValueError, match="no such folder"):
            ask(Catalogue(tmp_path / "x"))


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "catalogue.py"))
    printed = capsys.readouterr().out
    assert "high-digits: 61706 parameters" in printed and "2 experts, problems: {}" in printed


def test_a_folder_of_experts_is_no_expert(tmp_path: Path) -> None:
    (tmp_path / "expert_01").mkdir()
    (tmp_path / "expert_01" / "card.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"the folder holds experts, the first is .*expert_01"):
        Expert.load(tmp_path)
