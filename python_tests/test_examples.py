"""The examples run; for an example that needs weights the settings are checked."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import exml_fast

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def blocks(page: str, word: str) -> list[str]:
    """The Python examples of the page that contain ``word``."""
    found = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / page).read_text(), re.DOTALL)
    return [block for block in found if word in block]


@pytest.mark.parametrize(("page", "word"), [("docs/tour.md", "BNStatistics"), ("docs/engine.md", "FrozenTeacher")])
def test_the_examples_of_the_engine_in_the_pages_run(page: str, word: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    images = torch.randn(4, 3, 16, 16)
    (code,) = blocks(page, word)
    names = {
        "xf": exml_fast, "model": model, "spec": exml_fast.InputSpec(3, (16, 16), (0.5,) * 3, (0.2,) * 3),
        "images": images, "labels": torch.arange(4), "criterion": nn.CrossEntropyLoss(), "bn": model[1],
        "activation": model[0](images),
    }  # fmt: skip
    exec(code, names)
    assert names["logits"].shape == (4, 8)
    (layer,) = names["layers"]
    torch.testing.assert_close(layer.mean, model[0](images).mean((0, 2, 3)), rtol=0.05, atol=0.01)
    assert layer.target_mean.equal(model[1].running_mean)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_what_an_example_names_exists(path: Path) -> None:
    """Also in the examples that are too slow for every run."""
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] == "exml_fast":
                    modules[name.asname or "exml_fast"] = exml_fast
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exml_fast"):
            for name in node.names:
                found = getattr(importlib.import_module(str(node.module)), name.name)
                if isinstance(found, ModuleType):
                    modules[name.asname or name.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)


def test_efficientnet_lite0_has_valid_settings() -> None:
    found = runpy.run_path(str(EXAMPLES / "efficientnet_lite0.py"))
    assert found["SPEC"].bounds()[0].flatten().tolist() == [-1, -1, -1] and len(found["CLASSES"]) == 14


def test_images_are_chosen_by_class_and_number() -> None:
    choose = runpy.run_path(str(EXAMPLES / "efficientnet_lite0.py"))["chosen_images"]
    labels = torch.tensor([1, 130, 301, 1, 130, 301])
    assert choose(SimpleNamespace(labels=labels), "130:1,1:0") == [4, 0]


@pytest.mark.slow
def test_a_student_learns_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "adaptive_deep_inversion.py"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("student: ") and float(last.split()[1].rstrip("%")) > 80
    assert (tmp_path / "dreamed_digits.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("knowledge_delegator", 80),
        ("zero_shot_distillation", 80),
        ("universal_perturbation", 40),
        ("source_free_adaptation", 65),
        ("one_photograph", 70),
    ],
)
def test_students_learn_digits_without_digits(
    name: str, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(re.search(r"([\d.]+)%", last)[1]) > least


@pytest.mark.slow
def test_adversarial_training_of_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    runpy.run_path(str(EXAMPLES / "robustness.py"))
    plain, robust, student, under_attack = (
        float(line.split("pgd ")[1].rstrip("%")) for line in capsys.readouterr().out.splitlines() if "pgd" in line
    )
    assert robust > plain + 10 and student > plain + 10 and under_attack > student


def test_a_stream_is_learned_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "learn_from_experts.py"))
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("stopped") and len(lines) == 2 and last.startswith("average")
    assert (tmp_path / "buffer" / "buffer.images").is_file()


@pytest.mark.slow
def test_class_incremental_methods_are_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "class_incremental.py"))
    lines = capsys.readouterr().out.splitlines()
    last = {line.split()[0]: float(re.search(r"last ([\d.]+)%", line)[1]) for line in lines}  # type: ignore[index]
    assert last["fine-tuning"] < last["icarl"] <= last["joint"] and last["fine-tuning"] < last["analytic"]


@pytest.mark.slow
def test_small_networks_still_read_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    pytest.importorskip("torchao")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "compression.py"))
    lines = capsys.readouterr().out.splitlines()
    found = [float(match[1]) for line in lines if (match := re.search(r"([\d.]+)%", line))]
    before, pruned, int8, learned = found
    assert pruned > 80 and int8 > before - 1 and learned > before - 5
    assert (tmp_path / "pruned.pt").is_file() and (tmp_path / "int8" / "card.json").is_file()


@pytest.mark.slow
def test_random_images_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "random_images.py"))
    ensemble, ex_model = (float(line.split()[-1].rstrip("%")) for line in capsys.readouterr().out.splitlines())
    assert ex_model > 80 and ex_model > ensemble - 5
