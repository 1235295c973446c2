"""Presets, rows, the commands on the quadrants with tiny settings, and the page."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_experts import quadrants, save_npz
from typer.testing import CliRunner

from exml_fast.cli.app import app
from exml_fast.continual import Card, Expert
from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.report.charts import save_similarity
from exml_fast.reproduction import preset as presets
from exml_fast.reproduction.lab import Lab, sampled
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import names, shortened
from exml_fast.reproduction.runner import check, load_preset, rows_of, run
from exml_fast.reproduction.tasks import STREAM_TASKS, TASKS
from exml_fast.storage import load_json, load_tensors

TINY = {"teacher.steps": 40, "teacher.batch_size": 32, "impressions.count": 16, "impressions.steps": 3}
STUDENT = {"distillation.steps": 3, "distillation.batch_size": 8}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def options(changes: dict[str, Any]) -> list[str]:
    return [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def test_every_preset_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("lab", "adapt"):
        monkeypatch.setattr(f"exml_fast.reproduction.{room}.load", lambda name, root: quadrants())
    assert {"nayak2021/table1", "nayak2021/table4-cifar10", "digits/zskd"} <= set(names())
    for name in names():
        preset = load_preset(name)
        if preset["task"] in STREAM_TASKS:
            continue
        preset.get("sweep", {})["sizes"] = [100]  # there are 160 quadrants
        preset.get("adaptation", {}).update(source_images=100, target_images=100)
        TASKS[preset["task"]].check(preset)
        lab = Lab(preset, TASKS[preset["task"]].settings, Context(tmp_path, 0, None, "cpu", None))
        if lab.recipe.name == "data_impressions/nayak":
            # The papers' 20, but for one that says why not.
            assert lab.recipe.betas in ((1.0, 0.1), (0.01, 0.1))
            assert lab.recipe.temperature == (4 if name == "nayak2021/table1" else 20)
        else:
            assert name == "calibrated/cifar10-zskd"
        if name.startswith("nayak"):
            assert ("figure" in name or preset["paper"]) and not shortened(preset)


def test_presets_know_the_papers_figures() -> None:
    assert load_preset("nayak2021/table1")["paper"]["ZSKD"] == 98.77
    assert load_preset("nayak2021/table4-mnist")["paper"]["robust Student/pgd A_adv"] == 54.38
    assert load_preset("nayak2021/table5-usps-mnist")["paper"]["Ours/Avg"] == 89.15
    assert load_preset("nayak2021/table7-fashion-mnist")["paper"]["Ours"] == 96.37


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


def test_rows_compare_with_the_paper_and_say_what_is_shorter() -> None:
    preset = {"impressions": {"count": 10}, "published": {"impressions.count": 20}, "paper": {"a": 5.0}}
    rows = rows_of(preset, [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}])
    assert rows[0] == {
        "cell": "a", "paper": 5.0, "ours": 2.0, "std": 1.414, "seeds": 2, "values": [1.0, 3.0], "reduced": True,
        "note": "impressions.count 10 instead of 20",
    }  # fmt: skip
    assert rows[1]["paper"] is None and rows[1]["std"] == 0.0
    preset["impressions"]["count"] = 20
    assert not rows_of(preset, [{"a": 1.0}])[0]["reduced"]


def test_a_change_to_less_is_said() -> None:
    no_length = {"perturbation.real_images": False, "perturbation.samples": 1, "teacher.lr": 1e-9}
    assert shortened(load_preset("nayak2021/table7-mnist", no_length)) == []
    few = {"attack.test_images": 5}
    assert shortened(load_preset("nayak2021/table4-mnist", few)) == ["attack.test_images 5 instead of all"]
    changes = {"teacher.steps": 1, "distillation.steps": 90000, "impressions.count": 10, "impressions.lr": 0.001}
    assert shortened(load_preset("nayak2021/table1", changes)) == [
        "teacher.steps 1 instead of 14000", "impressions.count 10 instead of 24000",
    ]  # fmt: skip


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


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    group = (torch.rand(2, 1, 4, 4), torch.tensor([0, -1]))
    written = Outcome(
        {"a": 1.0}, {"train": 2.0}, {"n": 3}, {"images/of": group}, {"line": {"x": [(0.0, 1.0), (1.0, 2.0)]}},
        {"line": ("x", "y")}, {"line"}, {"t-SNE/a": {"b": torch.rand(3, 2)}, "t-SNE": {"a/b": torch.rand(3, 2)}},
        {"similar": torch.eye(2)}, ["p", "q"],
    )  # fmt: skip
    written.save(tmp_path)
    read = Outcome.load(tmp_path)
    assert all(map(torch.equal, read.samples.pop("images/of"), written.samples.pop("images/of")))
    for title, name in (("t-SNE", "a/b"), ("t-SNE/a", "b")):
        assert torch.equal(read.points.pop(title)[name], written.points.pop(title)[name])
    assert torch.equal(read.matrices.pop("similar"), written.matrices.pop("similar"))
    assert read.lines.pop("line") == {"x": [[0.0, 1.0], [1.0, 2.0]]} and written.lines.pop("line")
    assert tuple(read.axes.pop("line")) == written.axes.pop("line")
    assert read == written


def test_what_another_preset_left_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def fake(preset: dict[str, Any], context: Context) -> Outcome:
        found.append((context.folder / "teacher").is_file())
        (context.folder / "teacher").touch()
        if len(found) in (1, 3):
            raise KeyboardInterrupt
        return Outcome(values={"x": 1.0})

    monkeypatch.setitem(TASKS, "fake", SimpleNamespace(run=fake, check=lambda *_: None))
    for preset in ({"task": "fake"}, {"task": "fake"}, {"task": "fake", "steps": 2}, {"task": "fake"}):
        with contextlib.suppress(KeyboardInterrupt):
            run(preset, tmp_path)
    assert found == [False, True, False, False]


def test_finished_seeds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(preset: dict[str, Any], context: Context) -> Outcome:
        calls.append(context.seed)
        if context.seed == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return Outcome(values={"x": float(context.seed)})

    monkeypatch.setitem(TASKS, "fake", SimpleNamespace(run=fake, check=lambda *_: None))
    with pytest.raises(KeyboardInterrupt):
        run({"task": "fake"}, tmp_path, seeds=(0, 1))
    rows, _ = run({"task": "fake"}, tmp_path, seeds=(0, 1))
    assert calls == [0, 1, 1] and rows[0]["values"] == [0.0, 1.0]
    run({"task": "fake", "changed": 1}, tmp_path, seeds=(0,))
    assert calls[-1] == 0 and len(calls) == 4


def test_zskd_by_command(npz: str, tmp_path: Path) -> None:
    changes = TINY | STUDENT | {"compare": True, "sweep": {"sizes": [8, 16, 999], "steps": 2}}
    preset = tmp_path / "mine.toml"
    text = Path(presets.__file__).parent.joinpath("presets/digits/zskd.toml").read_text()
    preset.write_text(
        "compare = true\n"
        + text.replace('data = "digits"', f"data = '{npz}'")
        + "\n[sweep]\nsizes = [8, 16, 999]\nsteps = 2\n\n[paper]\nZSKD = 98.77\n"
    )
    out = tmp_path / "out"
    arguments = ["--preset", preset, "--out", out, "--report", "--json", "--seeds", 2]
    arguments += options({k: v for k, v in changes.items() if k not in ("sweep", "compare")})
    summary = json.loads(call("transfer", "zskd", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    assert {"Teacher-CE", "ZSKD", "Student-CE", "Student-KD", "Class Impressions", "Data samples, 16"} <= set(rows)
    assert "Data samples, 999" not in rows and rows["ZSKD"]["paper"] == 98.77 and rows["ZSKD"]["seeds"] == 2
    assert load_json(out / "results.json")["rows"] == summary["rows"]
    assert Expert.load(out / "parts" / "seed_1" / "student").model is not None
    page = (out / "report" / "index.html").read_text()
    assert "98.77" in page and page.count("<svg") == 2 and "Class impressions" in page
    assert summary["details"]["impressions"]["images"] == 16
    call("transfer", "zskd", "--out", out, "--resume")


def test_a_mistake_leaves_a_finished_run_alone(npz: str, tmp_path: Path) -> None:
    arguments = ["transfer", "zskd", "--data", npz, "--out", tmp_path, *options(TINY | STUDENT)]
    call(*arguments)
    before = (tmp_path / "results.json").read_bytes()
    for mistake, message in (
        (("--set", "teacher.lr=-1"), "teacher: lr must be positive, got -1"),
        (("--device", "gpu"), "--device must be cpu, cuda or cuda:<n>, got 'gpu'"),
        (("--seed", -1), "--seed"),
        (("--set", "impressions.compete=1.0"), "impressions: compete must be 0"),
        (("--teacher", tmp_path), "--teacher takes a trained network: leave out --set teacher.steps"),
    ):
        assert message in call(*arguments, *mistake, code=2).output
        assert (tmp_path / "results.json").read_bytes() == before and (tmp_path / "parts/seed_0/teacher").is_dir()
    for source, message in (
        (("--teacher", tmp_path), "card.json"),
        (("--teacher", tmp_path / "parts/seed_0/teacher"), "which the run would replace: give another --out"),
    ):
        short = [*arguments[:6], *source, *options(STUDENT | {"impressions.count": 16})]
        assert message in call(*short, code=2).output
        assert (tmp_path / "results.json").read_bytes() == before and (tmp_path / "parts/seed_0/teacher").is_dir()
    # Also without the commands: a preset that cannot run, or a folder of another making.
    with pytest.raises(ValueError, match="teacher: lr must be"):
        run(load_preset("digits/zskd", {"teacher.lr": -1}), tmp_path)
    assert (tmp_path / "parts/seed_0/teacher").is_dir()
    (tmp_path / "parts/seed_0/preset.json").unlink()
    with pytest.raises(ValueError, match="seed_0 holds files that no run of a preset made"):
        run(load_preset("digits/zskd"), tmp_path)
    assert "seed_0 holds files that no run of a preset made" in call(*arguments, code=2).output
    assert (tmp_path / "parts/seed_0/teacher").is_dir() and (tmp_path / "results.json").read_bytes() == before


def test_other_data_and_other_teachers_stand_beside_no_papers_figures() -> None:
    for changes, there in (
        ({"data": "data/mnist.npz"}, True), ({"teacher.lr": 0.1}, True), ({"data": "usps"}, False),
        ({"teacher": {"expert": "mine"}}, False), ({"student.architecture": "lenet5"}, False),
        ({"adaptation.target": "svhn"}, False),
    ):  # fmt: skip
        assert ("paper" in load_preset("nayak2021/table5-mnist-usps", changes)) == there


def test_an_interrupted_run_goes_on_as_it_was_typed(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "rows.json", tmp_path / "out"
    arguments = ["digits/zskd", "--out", out, "--results", results, "--seeds", 1, "--report"]
    arguments += options(TINY | STUDENT | {"data": npz})
    monkeypatch.setattr("sys.argv", ["exml-fast", "reproduce", *map(str, arguments)])
    with monkeypatch.context() as patch:
        patch.setattr("exml_fast.reproduction.lab.zskd", interrupted)
        call("reproduce", *arguments, code=130)
    assert not results.exists()
    monkeypatch.setattr("sys.argv", ["exml-fast", "reproduce", "--out", str(out), "--resume"])
    for _ in range(2):  # the second finds everything done
        call("reproduce", "--out", out, "--resume")
        written = load_json(results)
        assert written["command"].startswith("exml-fast reproduce digits/zskd") and written == load_json(
            out / "results.json"
        )
        assert {"teacher", "impressions", "zskd"} <= set(written["seconds"])
        assert written["details"]["impressions"]["images"] == 16
        assert (out / "report" / "index.html").read_text().count("<img") == 4


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    assert "--resume needs --out" in call("reproduce", "--resume", code=2).output
    bad = call("reproduce", "digits/zskd", "--out", tmp_path / "out", "--results", tmp_path, code=2).output
    assert f"--results must be a file, {tmp_path} is a folder" in bad and not (tmp_path / "out").exists()
    bad = call("reproduce", "digits/zskd", "--out", tmp_path, "--set", "impressions.count", code=2).output
    assert "--set must be NAME=VALUE, got 'impressions.count'" in bad
    (tmp_path / "run.json").write_text('{"version": 1, "command": "reproduce", "settings": {}}')
    bad = call("reproduce", "digits/zskd", "--out", tmp_path, "--seeds", 2, "--resume", code=2).output
    assert "leave out --seeds, NAME" in bad


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


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


def test_robustness_by_command(npz: str, tmp_path: Path) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    changes = TINY | STUDENT | {"attack.steps": 2, "attack.training_steps": 3, "attack.test_images": 10}
    summary = json.loads(
        call("transfer", "robustness", "--data", npz, "--out", tmp_path, "--json", *options(changes)).stdout
    )
    cells = [row["cell"] for row in summary["rows"]]
    assert len(cells) == 35 and "robust Student/pgd A_adv" in cells and "robust Student under attack/A_nat" in cells
    for name in ("student_of_the_non-robust_teacher", "student_of_the_robust_teacher", "student_under_attack"):
        assert Expert.load(tmp_path / "parts" / "seed_0" / name).card.architecture == "lenet5_half"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack.step": 0.5}, "attack: step must be at most epsilon"),
        ({"attack.distillation.step": 0.5}, "attack.distillation: step must be at most epsilon"),
        ({"attack.distillation.training_steps": 1}, "attack.distillation: unknown field 'training_steps'"),
        ({"attack.distillation": 5}, "attack.distillation must be a table of epsilon, step, steps, got 5"),
        ({"attack.epsilon": "a"}, "attack: epsilon must be a number, got 'a'"),
        ({"attack.test_images": -440}, "attack: test_images must be at least 1, got -440"),
        ({"teacher": 5}, "teacher must be a table of"),
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


def test_adaptation_by_command(npz: str, tmp_path: Path) -> None:
    changes = TINY | {
        "adaptation.steps": 3, "adaptation.target": npz, "adaptation.source_images": 100,
        "adaptation.target_images": 50, "adaptation.tsne": 12, "adaptation.batch_size": 8,
        "rehearsal.steps": 3, "rehearsal.batch_size": 8,
    }  # fmt: skip
    arguments = ["--data", npz, "--out", tmp_path, "--json", "--report", *options(changes)]
    summary = json.loads(call("transfer", "adapt", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    for name in ("Ours", "Rehearsal"):
        average = sum(rows[f"{name}/C{c}"]["ours"] for c in range(1, 5)) / 4
        assert rows[f"{name}/Avg"]["ours"] == pytest.approx(average, abs=0.01)  # the classes are of equal size
    assert rows["Ours/Avg"]["reduced"] and "impressions.steps 3 instead of 1500" in rows["Ours/Avg"]["note"]
    assert (tmp_path / "report" / "index.html").read_text().count("<svg") == 3
    pictures = {file.name for file in (tmp_path / "report").glob("*.png")}
    names = {"before-adaptation", "after-adaptation", "after-rehearsal"}
    assert pictures == {"images.png", *(f"t-sne-of-the-features-{name}.png" for name in names)}


def test_what_adaptation_lacks_is_named(npz: str, tmp_path: Path) -> None:
    data = dict(np.load(npz))
    few = data | {name: data[name][data["y_test"] != 3] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **few)
    for changes, message in (
        ({"adaptation.target": str(tmp_path / "few.npz")}, "adaptation.target has no test images of classes [3]"),
        ({"adaptation.target_images": 161}, "adaptation.target_images must be at most 160, got 161"),
        ({"adaptation.source_images": 161}, "adaptation.source_images must be at most 160, got 161"),
        ({"adaptation.target": "digits"}, "adaptation.target has 10 classes"),
    ):
        changes = (
            TINY | {"adaptation.target": npz, "adaptation.source_images": 9, "adaptation.target_images": 9} | changes
        )
        given = ["--data", npz, "--out", tmp_path / "out", *options(changes)]
        assert message in call("transfer", "adapt", *given, code=2).output
        assert not (tmp_path / "out").exists()


def test_perturbations_of_odd_sizes_are_refused(npz: str, tmp_path: Path) -> None:
    data = dict(np.load(npz))
    np.savez(tmp_path / "odd.npz", **data | {name: data[name][:, :30, :30] for name in ("x_train", "x_test")})
    changes = TINY | {"teacher.architecture": "cifar_resnet", "teacher.arguments": {"depth": 8}}
    given = ["--data", tmp_path / "odd.npz", "--out", tmp_path / "out", *options(changes)]
    assert "multiples of 8" in call("transfer", "perturb", *given, code=2).output
    assert not (tmp_path / "out").exists()


def test_perturbation_by_reproduce(npz: str, tmp_path: Path) -> None:
    changes = TINY | {"data": npz, "perturbation.steps": 3, "perturbation.batch_size": 8, "perturbation.samples": 2}
    changes |= {"perturbation.epsilons": [0.01, 0.9], "teacher.steps": 60, "perturbation.real_images": True}
    results = tmp_path / "rows.json"
    arguments = ["--seeds", 1, "--out", tmp_path / "out", "--results", results, "--report", *options(changes)]
    output = call("reproduce", "digits/perturb", *arguments).output
    rows = {row["cell"]: row["ours"] for row in load_json(results)["rows"]}
    names = {"Ours", "Real images", "Random signs", "PGD for each image"}
    assert names <= set(rows) and "Random signs" in output
    assert {f"{name} at ε = {epsilon}" for name in names for epsilon in (0.01, 0.9)} <= set(rows)
    attack = "PGD for each image"
    assert rows[f"{attack} at ε = 0.01"] < rows[attack] < rows[f"{attack} at ε = 0.9"]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert page.count("<svg") == 1 and page.count('alt="Perturbations, ±ε drawn as white and black"') == 2
    made = load_tensors(tmp_path / "out" / "parts" / "seed_0" / "perturbations.safetensors")["perturbations"]
    assert made.shape == (2, 1, 32, 32) and 0 < made.abs().max() <= 0.2
    assert "nayak2021/table7-mnist" in call("reproduce").stdout
    refused = [*arguments[:2], "--out", tmp_path / "no", *options(changes | {"perturbation.epsilons": [0.1, 2.0]})]
    assert "epsilons[1] must be at most 1, got 2.0" in call("reproduce", "digits/perturb", *refused, code=2).output


def test_the_wrong_task_is_named(tmp_path: Path) -> None:
    result = call("transfer", "perturb", "--preset", "digits/zskd", "--out", tmp_path / "x", code=2)
    assert "is for `exml-fast transfer zskd`" in result.output and not (tmp_path / "x").exists()


def test_samples_are_drawn_without_repetition() -> None:
    part = sampled(quadrants().train, 100, torch.Generator().manual_seed(0))
    assert len(part) == 100 and len(part.images.flatten(1).unique(dim=0)) == 100
    with pytest.raises(ValueError, match="between 1 and 160"):
        sampled(quadrants().train, 200, torch.Generator())


def test_similarity_as_a_picture(tmp_path: Path) -> None:
    save_similarity(tmp_path / "c.png", torch.eye(3), ["a", "b", "c"])
    assert (tmp_path / "c.png").stat().st_size > 1000
    broken = torch.eye(3)
    broken[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"rows \[1\] hold NaN"):
        save_similarity(tmp_path / "d.png", broken, ["a", "b", "c"])
    with pytest.raises(ValueError, match="K names"):
        save_similarity(tmp_path / "d.png", torch.eye(3), ["a"])
