"""What presets about one teacher may hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, save_npz
from small_presets import STUDENT, TINY, call, options

from exml_fast.continual import Card, Expert
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.reproduction import preset as presets
from exml_fast.reproduction.lab import Lab, sampled
from exml_fast.reproduction.outcome import Context
from exml_fast.reproduction.preset import names, shortened
from exml_fast.reproduction.runner import check, load_preset
from exml_fast.reproduction.tasks import STREAM_TASKS, TASKS, Task
from exml_fast.storage import load_json, load_tensors


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def test_every_preset_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("lab", "adapt", "delegator", "incremental_study", "prune"):
        monkeypatch.setattr(f"exml_fast.reproduction.{room}.load", lambda name, root: quadrants())
    assert {"nayak2021/table1", "nayak2021/table4-cifar10", "digits/zskd"} <= set(names())
    for name in names():
        preset = load_preset(name)
        if preset["task"] in STREAM_TASKS:
            continue
        preset.get("sweep", {})["sizes"] = [100]  # there are 160 quadrants
        preset.get("adaptation", {}).update(source_images=100, target_images=100)
        if preset["task"] == "delegator":
            preset["classes"] = 4
            preset["teacher"] |= {"architecture": "lenet5", "arguments": {}}  # for one channel
        if preset["task"] == "prune":
            preset["teacher"] |= {"architecture": "lenet5", "arguments": {}}
        if preset["task"] == "incremental":
            preset["protocols"] = [f"b2-{1 + k}" for k in range(min(2, len(preset["protocols"])))]
        task = TASKS[preset["task"]]
        task.check(preset)
        if not isinstance(task, Task):
            continue
        lab = Lab(preset, task.settings, Context(tmp_path, 0, None, "cpu", None))
        if lab.recipe.name == "data_impressions/nayak":
            # The papers' 20, but for one that says why not.
            assert lab.recipe.classification.betas in ((1.0, 0.1), (0.01, 0.1))
            assert lab.recipe.classification.temperature == (4 if name == "nayak2021/table1" else 20)
        else:
            assert name == "calibrated/cifar10-zskd"
        if name.startswith("nayak"):
            assert "figure" in name or preset["paper"]
            # The paper gives no steps for Table 5; those of ADDA's code are many more than the default.
            assert bool(shortened(preset)) == ("table5" in name)


def test_bad_presets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preset 'nayak2021/table9'"):
        load_preset("nayak2021/table9")
    with pytest.raises(ValueError, match=r"'lr' is no table to set 'teacher\.lr\.first' in, but 0\.002"):
        load_preset("nayak2021/table1", {"teacher.lr.first": 3})
    (tmp_path / "a.toml").write_text("task = 'fly'")
    with pytest.raises(ValueError, match="task must be one of"):
        load_preset(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("task =")
    with pytest.raises(ValueError, match=r"b\.toml"):
        load_preset(tmp_path / "b.toml")
    for change, message in (
        ({"impresions.count": 3}, "'impresions' is not known to task 'zskd'"),
        ({"impressions.betas": [0.0]}, "betas"),
        ({"impressions.bn": 1.0}, "runs no BatchNorm layer"),
        ({"impressions.compete": 1.0}, "impressions: compete must be 0"),
        ({"impressions.steps": "many"}, "steps must be an integer"),
        ({"sweep": {"sizes": [100]}}, "sweep: steps is missing"),
        ({"impressions.count": 0}, "impressions: count must be at least 1, got 0"),
        ({"impressions.colour": 1}, "unknown field 'colour'"),
        ({"distillation.steps": 0}, "steps"),
    ):
        with pytest.raises(ValueError, match=message):
            TASKS["zskd"].check(load_preset("digits/zskd", change))
    with pytest.raises(ValueError, match="'attack' is not known to task 'zskd'"):
        TASKS["zskd"].check(load_preset("digits/zskd") | {"attack": {}})


def test_bad_presets_are_named_before_they_run(tmp_path: Path) -> None:
    text = Path(presets.__file__).parent.joinpath("presets/digits/zskd.toml").read_text()
    for change, message in (
        (text.replace("count = ", "number = "), "impressions: unknown field 'number'"),
        (text.replace("[distillation]", "[training]"), "preset: 'training' is not known to task 'zskd'"),
        (text.replace("architecture", "network"), "unknown field 'network'"),
        (
            text + "\n[published]\n'impressions.number' = 3\n",
            "has 'impressions.number', which is not a number in the preset",
        ),
        (
            text + "\n[published]\n'impressions.recipe' = 3\n",
            "has 'impressions.recipe', which is not a number in the preset",
        ),
        (text + "\n[paper]\nZSKD = 'a'\n", "paper must be a table of numbers, got {'ZSKD': 'a'}"),
        ("published = 3\n" + text, "published must be a table of numbers, got 3"),
        (text + "\n[sweep]\nsteps = 5\n", "sweep: sizes is missing"),
        (text + "\n[sweep]\nsizes = 5\n", "sweep: sizes must be a list, got 5"),
        (text + "\n[sweep]\nsteps = 5\nsizes = [100000]\n", "sweep.sizes must hold one of at most"),
        ("compare = 'False'\n" + text, "preset: compare must be true or false, got 'False'"),
    ):
        (tmp_path / "bad.toml").write_text(change)
        with pytest.raises(ValueError, match=re.escape(message)):
            check(load_preset(tmp_path / "bad.toml"))
    with pytest.raises(ValueError, match="task cannot be changed"):
        load_preset("digits/zskd", {"task": "perturb"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack.step": 0.5}, "attack: step must be at most epsilon"),
        ({"attack.distillation.step": 0.5}, "attack.distillation: step must be at most epsilon"),
        ({"attack.distillation.training_steps": 1}, "attack.distillation: unknown field 'training_steps'"),
        ({"attack.distillation": 5}, "attack.distillation must be a table of epsilon, step, steps, got 5"),
        ({"attack.epsilon": "a"}, "attack: epsilon must be a number, got 'a'"),
        ({"attack.test_images": -440}, "attack: test_images must be at least 1, got -440"),
        ({"teacher": 5}, "teacher: expected a table of"),
        ({"teacher.lr": "abc"}, "teacher: lr must be a number, got 'abc'"),
        ({"teacher": {"expert": "x"}}, "teacher.expert: task 'robustness' trains its teachers"),
        ({"teacher.architecture": "foo"}, "foo"),
        ({"student.arguments.activation": "foo"}, "foo"),
        ({"student.architecture": "lenet5", "student.arguments": {"num_classes": 3}}, "student must give 4 logits"),
        ({"impressions.count": 18}, "impressions.count must be a multiple of the 4 classes, got 18"),
        ({"impressions.precision": "int8"}, "impressions: precision must be one of"),
        ({"impressions.similarity_layer": "nowhere"}, "nowhere"),
        ({"distillation.temperature": -1}, "distillation: temperature must be positive, got -1"),
        ({"attack.bound": 0.1}, "attack: unknown field 'bound'"),
        ({"teacher.step": 3}, "teacher: unknown field 'step' (did you mean 'steps'?)"),
        ({"teacher.steps": 0}, "teacher: steps must be at least 1, got 0"),
        ({"student.steps": 3}, "student: unknown field 'steps'; expected one of architecture, arguments"),
        ({"distillation.mix": 1.0}, "distillation: unknown field 'mix' (did you mean 'mixup'?)"),
        ({"distillation.augmentation": {"shfit": 1}}, "distillation.augmentation: unknown field 'shfit'"),
        ({"distillation.augmentation": 3}, "distillation.augmentation must be a table of"),
    ],
)
def test_bad_settings_of_a_preset_are_named_before_anything_is_trained(
    change: dict[str, Any], message: str, npz: str, tmp_path: Path
) -> None:
    changes = TINY | STUDENT | change
    result = call("transfer", "robustness", "--data", npz, "--out", tmp_path, *options(changes), code=2)
    assert message in result.output
    assert not list(tmp_path.glob("parts/*/teacher"))


def test_a_network_of_ones_own_is_the_teacher(npz: str, tmp_path: Path) -> None:
    call("transfer", "zskd", "--data", npz, "--out", tmp_path / "first", *options(TINY | STUDENT))
    own = tmp_path / "first" / "parts" / "seed_0" / "teacher"
    arguments = ["--data", npz, "--teacher", own, "--json", *options(STUDENT | {"impressions.count": 16})]
    rows = json.loads(call("transfer", "zskd", "--out", tmp_path / "second", *arguments).stdout)["rows"]
    first = load_json(tmp_path / "first" / "results.json")["rows"]
    assert rows[0] == first[0] | {"reduced": rows[0]["reduced"], "note": rows[0]["note"]}  # Teacher-CE
    assert not (tmp_path / "second" / "parts" / "seed_0" / "teacher").exists()
    digits = ["--data", "digits", "--teacher", own, "--out", tmp_path / "third"]
    message = "in their order; its logits are of classes [0, 1, 2, 3]"
    assert message in call("transfer", "zskd", *digits, code=2).output
    both = options({"teacher.expert": str(own)})
    message = "teacher.expert is a trained network: leave out architecture"
    assert message in call("transfer", "zskd", *arguments[:2], *both, "--out", tmp_path / "third", code=2).output
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("units", [(0, 1, 2, 3), (1, 0, 2, 3)])
def test_a_teacher_of_another_input(units: tuple[int, ...], npz: str, tmp_path: Path) -> None:
    """Impressions, student and test images are of its size and normalisation, its logits in the data's order."""
    spec, arguments = InputSpec(3, (40, 40), (0.4, 0.5, 0.6), (0.25, 0.2, 0.3)), {"depth": 8, "num_classes": 4}
    torch.manual_seed(0)
    model = create("cifar_resnet", **arguments)
    card = Card("cifar_resnet", arguments, units, units, tuple("abcd"), spec, {})
    Expert(model, card).save(tmp_path / "own")
    changes = STUDENT | {"impressions.count": 8, "impressions.steps": 2, "student.architecture": "cifar_resnet"}
    changes |= {"student.arguments": {"depth": 8}}
    given = ["--data", npz, "--teacher", tmp_path / "own", "--out", tmp_path / "out", *options(changes)]
    if units != (0, 1, 2, 3):
        assert "its logits are of classes [1, 0, 2, 3]" in call("transfer", "zskd", *given, code=2).output
        return
    call("transfer", "zskd", *given)
    student = Expert.load(tmp_path / "out" / "parts" / "seed_0" / "student")
    assert student.input_spec == spec
    assert load_tensors(tmp_path / "out/parts/seed_0/impressions/images.safetensors")["images"].shape == (8, 3, 40, 40)


def test_samples_are_drawn_without_repetition() -> None:
    part = sampled(quadrants().train, 100, torch.Generator().manual_seed(0))
    assert len(part) == 100 and len(part.images.flatten(1).unique(dim=0)) == 100
    with pytest.raises(ValueError, match="between 1 and 160"):
        sampled(quadrants().train, 200, torch.Generator())
