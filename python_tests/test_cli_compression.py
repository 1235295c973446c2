"""`exml-fast prune` and `quantize`: what they write, how they go on, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import same
from typer.testing import CliRunner

import exml_fast as xf
from exml_fast.cli.app import app
from exml_fast.models import create
from exml_fast.storage import load_json, load_tensors
from exml_fast.transfer import load_quantized
from exml_fast.transfer.pruning.prune import FINE_TUNING

pytest.importorskip("torch_pruning")
pytest.importorskip("torchao")
SPEC = xf.InputSpec(3, (16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHORT: dict[str, tuple[Any, ...]] = {
    "prune": (
        "--set", "steps=2", "--set", "batch_size=8", "--set", "filters=8", "--steps", 3, "--tuning", "batch_size=8",
    ),
    "quantize": (
        "--bits", 4, "--steps", 3, "--set", "batch_size=8", "--set", "calibration=16", "--set", "sensitivity=8",
    ),
}  # fmt: skip


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert whose logits are classes 2, 0 and 1."""
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create("cifar_resnet", depth=8, num_classes=3)
    arguments = {"depth": 8, "num_classes": 3}
    card = xf.continual.Card("cifar_resnet", arguments, (2, 0, 1), (2, 0, 1), ("two", "zero", "one"), SPEC)
    xf.Expert(model, card).save(folder)
    return folder


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "few.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(file, x_train=images, y_train=np.tile([0, 1, 2], 8), x_test=images, y_test=np.tile([0, 1, 2], 8))
    return file


def test_a_pruned_expert_is_written_and_shown(teacher: Path, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call(
        "prune", teacher, *SHORT["prune"], "--images", "natural-fields", "--data", npz, "--report", "--json",
        "--export", "pt", "--export", "pt2", "--out", out,
    )  # fmt: skip
    assert code == 0, text
    summary: dict[str, Any] = json.loads(text.splitlines()[-1])
    small = xf.Expert.load(out / "network")
    assert small.units == (2, 0, 1) and small.card.architecture == "slimmed"
    assert summary["left"]["filters"] <= 0.8
    before, after = summary["networks"]["before"], summary["networks"]["pruned"]
    assert after["bytes"] < before["bytes"] and set(after["milliseconds"]) == {"1", "64"}
    data = xf.data.load(str(npz))
    assert after["accuracy"] == pytest.approx(
        100 * xf.evaluation.accuracy(small.model, data.test, SPEC, small.units), abs=5
    )
    assert torch.load(out / "network.pt", weights_only=True)["kind"] == "pruned" and (out / "network.pt2").is_file()
    page = (out / "report" / "index.html").read_text("utf-8")
    for heading in (
        "Accuracy, size and time",
        "Accuracy against time, 1 image",
        "Layers",
        "Channels before",
        "removed",
    ):
        assert heading in page
    stored = load_json(out / "results.json")
    assert stored["settings"]["images"] == "natural-fields" and str(npz.parent) not in json.dumps(stored["settings"])
    assert not (out / "checkpoints").exists()
    # The command is the library's call.
    pruned = xf.prune(
        xf.Expert.load(teacher), xf.data.NaturalFields(), 0.2, steps=2, batch_size=8, filters=8,
        fine_tuning=FINE_TUNING.replace(steps=3, batch_size=8),
    )  # fmt: skip
    found = {name: value.contiguous() for name, value in pruned.model.state_dict().items()}
    assert same(found, small.model.state_dict())


def test_latencies_are_measured_for_the_images_that_are_asked(teacher: Path, tmp_path: Path) -> None:
    table = tmp_path / "latency.json"
    code, text = call(
        "prune", teacher, *SHORT["prune"], "--images", "noise", "--target", "latency", "--ratio", "0.01",
        "--latency-table", table, "--latency-images", 3, "--no-speed", "--out", tmp_path / "out",
    )  # fmt: skip
    # Whether the share is in reach depends on what was measured.
    assert code == 0 or "no more filters can be removed" in text
    assert {key.split()[2] for key in load_json(table)} == {"3"}


def test_an_int8_network_is_written_and_shown(teacher: Path, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = call(
        "quantize", teacher, "--images", f"real={npz}", "--float-layers", 1, "--set", "calibration=16", "--set",
        "sensitivity=8", "--no-speed", "--report", "--json", "--out", out, "--data", npz,
    )  # fmt: skip
    assert code == 0, text
    summary: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert len(summary["float_layers"]) == 1 and summary["bits"] == 8
    assert summary["networks"]["int8"]["bytes"] == sum(
        tensor.nbytes for tensor in load_tensors(out / "network" / "model.safetensors").values()
    )
    network = load_quantized(out / "network")
    with torch.no_grad():
        assert network(torch.zeros(3, 3, 16, 16)).shape == (3, 3)
    page = (out / "report" / "index.html").read_text("utf-8")
    for heading in ("Divergence when one layer alone is quantised", "Bits", "the networks disagree|agree on"):
        assert any(part in page for part in heading.split("|"))
    assert load_json(out / "results.json")["settings"]["images"] == f"real={npz.name}"


@pytest.mark.parametrize("command", ["prune", "quantize"])
def test_an_interrupted_run_goes_on(
    command: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exml_fast.cli import progress

    words = (command, teacher, *SHORT[command], "--images", "noise", "--no-speed")
    assert call(*words, "--out", tmp_path / "whole")[0] == 0
    report = progress.Reporter.__call__

    def interrupt(self: Any, stage: str, *rest: Any, **more: Any) -> None:
        if stage in ("learn", "quantize"):
            raise KeyboardInterrupt
        report(self, stage, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(progress.Reporter, "__call__", interrupt)
        code, text = call(*words, "--out", tmp_path / "part")
    assert code == 130 and f"exml-fast {command} --out {tmp_path / 'part'} --resume" in text
    code, text = call(command, "--out", tmp_path / "part", "--resume")
    assert code == 0 and "network in" in text
    whole, part = (load_tensors(tmp_path / name / "network" / "model.safetensors") for name in ("whole", "part"))
    assert same(whole, part)


def test_eight_bits_run_on_cpus_alone(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exml_fast.cli.compression.parse_device", str)  # on a machine without a GPU
    code, text = call("quantize", teacher, "--images", "noise", "--device", "cuda", "--out", tmp_path / "out")
    assert code == 2 and "--device must be cpu with 8 bits" in text and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune",), "MODEL is missing"),
        (("quantize",), "MODEL is missing"),
        (("prune", "TEACHER"), "--images is missing"),
        (("prune", "TEACHER", "--images", "noise", "--ratio", "1"), "--ratio must be between 0 and 1"),
        (("prune", "TEACHER", "--images", "noise", "--target", "memory"), "--target must be one of"),
        (("prune", "TEACHER", "--images", "noise", "--set", "colour=3"), "colour"),
        (("quantize", "TEACHER", "--images", "noise", "--bits", "3"), "bits must be one of"),
        (("quantize", "TEACHER", "--images", "noise", "--export", "pickle"), "--export must be one of pt, pt2, onnx"),
        (("quantize", "TEACHER", "--images", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_named(words: tuple[str, ...], message: str, teacher: Path, tmp_path: Path) -> None:
    given = [str(teacher) if word == "TEACHER" else word for word in words]
    code, text = call(*given, "--out", tmp_path / "out")
    assert code == 2 and message in text
    assert not (tmp_path / "out" / "run.json").exists()
