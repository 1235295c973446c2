"""The class-incremental tables and figures on digits, by command, and their settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, save_npz
from small_presets import call, options

from exml_fast.continual import Expert
from exml_fast.continual.class_incremental import METHODS, incremental, learner, tasks_of
from exml_fast.models import create
from exml_fast.reproduction.incremental_settings import IncrementalSettings, changes_of, usual_network
from exml_fast.reproduction.incremental_study import IncrementalStudy
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import names, read_preset
from exml_fast.reproduction.runner import check, load_preset, run
from exml_fast.reproduction.tasks import TASKS
from exml_fast.storage import load_json, save_json

PRESETS = [name for name in names() if read_preset(name)["task"] == "incremental"]
SHORT: dict[str, Any] = {"settings.epochs": 1, "settings.batch_size": 16}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def test_every_figure_of_the_issue_has_a_preset() -> None:
    figures = {f"lardizzone2020/figure{number}" for number in (*range(1, 8), 10)}
    others = {"yin2020/table7", "nayak2021/figure8", "ye2022/table3", "ye2022/figure5"}
    assert set(PRESETS) == figures | others


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_run_on_other_data_without_the_paper_s_figures(name: str, npz: str, tmp_path: Path) -> None:
    found = read_preset(name)
    assert found["data"] == "cifar100"
    protocols = [f"b2-{1 + k % 2}" for k in range(len(found["protocols"]))][:2]
    preset = load_preset(name, {"data": npz, "protocols": protocols} | SHORT)
    assert "paper" not in preset
    check(preset)
    # The paper's cells are among those that the preset computes.
    study = IncrementalStudy(IncrementalSettings(npz, {"x": {"method": "icarl"}}, ("b2-2",)), tmp_path)
    assert len(study.class_names("b2-2")) == 4
    rows = [f"cifar100/{row}" for row in found["methods"]]
    several = len(found["protocols"]) > 1
    for cell in found.get("paper", {}):
        title, figure = cell.rsplit("/", 1)
        row, _, protocol = title.rpartition(", ") if several else (title, "", found["protocols"][0])
        assert row in rows and protocol in found["protocols"], cell
        wanted = "group" if figure == "combined" or figure.startswith("task") else figure
        assert wanted in found["figures"], cell


def test_a_figure_by_command(npz: str, tmp_path: Path) -> None:
    changes = SHORT | {"data": npz, "protocols": ["b2-2"], "maps": [1, 3], "settings.total": 16}
    summary = json.loads(
        call(
            "reproduce", "lardizzone2020/figure4", "--out", tmp_path, "--seeds", 1, "--json", "--report",
            *options(changes),
        ).stdout
    )  # fmt: skip
    cells = [row["cell"] for row in summary["rows"]]
    assert cells == [f"quadrants/{row}/last" for row in ("iCaRL", "Random exemplars", "No data augmentation")]
    assert all(row["reduced"] and "settings.epochs 1 instead of 70" in row["note"] for row in summary["rows"])
    assert summary["details"]["data"] == {"name": "quadrants", "classes": 4, "training images": 160, "test images": 40}
    found = summary["details"]["learners"]["iCaRL"]
    assert found["real_exemplars"] == 16 and found["bytes"] == 16 * 32 * 32 and len(found["accuracy"]) == 3
    assert found["accuracy"][-1] == pytest.approx(summary["rows"][0]["ours"], abs=1e-2)
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    for text in (
        "Features after task 3, Random exemplars", "Confusion matrix, iCaRL", "Accuracy on all classes so far, b2-2",
        "iCaRL: exemplars", "One network learns classes task by task",
    ):  # fmt: skip
        assert text in page
    assert (tmp_path / "report" / "features-after-task-3-icarl.png").is_file()
    folder = tmp_path / "parts" / "seed_0" / "iCaRL" / "b2-2" / "network"
    assert len(Expert.load(folder).units) == 4


def test_cells_of_all_figures_and_a_part_that_is_missing(npz: str, tmp_path: Path) -> None:
    methods = {"a/b": {"method": "lwf"}, "c": {"method": "skd-inverted", "images": 8, "recipe_steps": 2}}
    changes = SHORT | {
        "data": npz, "methods": methods, "protocols": ["b2-2", "b2-1"], "settings.rounds": 2,
        "figures": ["average", "last", "each", "current", "group"],
    }  # fmt: skip
    preset = load_preset("ye2022/table3", changes)
    rows, outcome = run(preset, tmp_path, seeds=(5,))
    ours = {row["cell"]: row["ours"] for row in rows}
    start = "quadrants/a/b, b2-2"
    each = [ours[f"{start}/{count} classes"] for count in (2, 3, 4)]
    assert ours[f"{start}/average"] == pytest.approx(sum(each) / 3, abs=1e-2)
    assert ours[f"{start}/last"] == each[-1]
    groups = [ours[f"{start}/task {number}"] for number in (1, 2, 3)]
    assert ours[f"{start}/combined"] == pytest.approx(sum(groups) / 3, abs=1e-2)
    # Two of the four classes are in the first task.
    assert ours[f"{start}/last"] == pytest.approx((2 * groups[0] + groups[1] + groups[2]) / 4, abs=1e-2)
    assert {"Accuracy on the current task, b2-1", "Accuracy on all classes so far, b2-2"} <= set(outcome.lines)
    assert all(matrix.sum(1).allclose(torch.ones(4).double()) for matrix in outcome.matrices.values())
    assert "c, b2-1: images of earlier classes" in outcome.samples
    # One first network for both protocols and both methods.
    folder = tmp_path / "parts" / "seed_5"
    assert len(list((folder / "first").iterdir())) == 1
    (folder / "outcome.json").unlink()
    noted = load_json(folder / "a-b" / "b2-2" / "learned.json")
    tasks = [task | {"accuracy": share} for task, share in zip(noted["tasks"], (0.0, 0.0, 0.75), strict=True)]
    save_json(folder / "a-b" / "b2-2" / "learned.json", noted | {"tasks": tasks})
    shutil.rmtree(folder / "c" / "b2-1")
    again = {row["cell"]: row["ours"] for row in run(preset, tmp_path, seeds=(5,))[0]}
    assert again["quadrants/a/b, b2-2/average"] == 25.0
    assert {cell: value for cell, value in again.items() if cell.startswith("quadrants/c")} == {
        cell: value for cell, value in ours.items() if cell.startswith("quadrants/c")
    }


def test_a_paper_s_figures_are_dropped_with_other_tasks() -> None:
    name = "lardizzone2020/figure1"
    assert "paper" in load_preset(name, {"settings.epochs": 70, "data": "somewhere/cifar100.npz"})
    for key, value in (
        ("protocols", ["b0-5"]), ("architecture", "resnet18_cifar"), ("arguments.depth", 20), ("held_out", 5),
        ("methods.iCaRL.method", "icarl-mlp"), ("data", "tiny_imagenet100.npz"),
    ):  # fmt: skip
        assert "paper" not in load_preset(name, {key: value}), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods.iCaRL.method": "icral"}, "did you mean 'icarl'"),
        ({"methods.iCaRL.totl": 5}, "did you mean 'total'"),
        ({"methods.iCaRL": {"total": 5}}, "methods.iCaRL: method is missing"),
        ({"methods": {}}, "methods must be"),
        ({"methods": {"first": {"method": "lwf"}}}, "methods: 'first' must be a name"),
        ({"methods": {"a/b": {"method": "lwf"}, "a-b": {"method": "lwf"}}}, "methods: 'a/b' must be a name"),
        ({"settings.total": 3}, "total must be at least the number of classes, 4"),
        ({"protocols": ["b0-5"]}, "for 4 classes"),
        ({"protocols": ["tasks"]}, "protocol must be 'bB-T'"),
        ({"protocol": "b0-2"}, "did you mean 'protocols'"),
        ({"figures": ["best"]}, "figures"),
        ({"held_out": 40}, "held_out must be less than the 40 images"),
        ({"architecture": "lenet6"}, "lenet6"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str, npz: str) -> None:
    usual = {"data": npz, "protocols": ["b2-2"]} | SHORT
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check(load_preset("lardizzone2020/figure1", usual | changes))


def test_settings_of_all_methods_leave_what_makes_a_method() -> None:
    study = IncrementalSettings(
        "digits", {"a": {"method": "icarl-mlp", "total": 7}, "b": {"method": "icarl"}, "c": {"method": "lwf"}},
        settings={"total": 9, "classifier": "svm", "epochs": 2},
    )  # fmt: skip
    assert changes_of(study, "a") == {"total": 7, "epochs": 2}
    assert changes_of(study, "b") == {"total": 9, "classifier": "svm", "epochs": 2}
    assert changes_of(study, "c") == {"epochs": 2}


def test_the_usual_network_suits_the_images() -> None:
    spec = quadrants().spec
    assert usual_network(spec, None, {}) == ("lenet5", {"batch_norm": True})
    assert usual_network(spec, "lenet5", {}) == ("lenet5", {})
    import dataclasses

    colour = dataclasses.replace(spec, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert usual_network(colour, None, {}) == ("cifar_resnet", {"depth": 32})
    assert usual_network(dataclasses.replace(colour, size=(224, 224)), None, {})[0] == "torchvision/resnet18"


@pytest.mark.parametrize("name", ["oracle-distill", "oracle-classify"])
def test_an_oracle_learns_from_real_images_of_old_classes(name: str) -> None:
    data = quadrants()
    torch.manual_seed(0)
    network = create("lenet5", num_classes=4, in_channels=1, batch_norm=True)
    pupil = learner(
        name, network, data.spec, epochs=12, batch_size=16, total=20, augmentation={}, precision="float32",
        clip_after_first=0.0,
    )  # fmt: skip
    calls = []
    result = incremental(pupil, tasks_of(data, "b2-2", None), data.test, after=lambda r: calls.append(len(r.tasks)))
    assert calls == [1, 2, 3] and METHODS[name].real
    assert result.last > 0.7
    assert pupil.nbytes == 20 * 32 * 32 and pupil.samples is not None
    # Four images of each class that was known before the last task.
    assert pupil.samples.labels.bincount().tolist() == [4, 4, 4]


def test_maps_and_summary_survive_a_file(tmp_path: Path) -> None:
    outcome = Outcome(summary="Said.", points={"map": {"a, pale": torch.rand(2, 2), "a": torch.rand(1, 2)}})
    outcome.overlaid.add("map")
    outcome.save(tmp_path)
    assert Outcome.load(tmp_path).overlaid == {"map"} and Outcome.load(tmp_path).summary == "Said."
    assert "incremental" in TASKS and isinstance(Context(tmp_path, 0, None, "cpu", None), Context)


def test_classifiers_of_one_icarl_share_its_network(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs the extra eval")
    rows = {"NME": {"method": "icarl"}, "k-NN": {"method": "icarl-k-nearest"}, "logits": {"method": "icarl-hybrid1"}}
    settings = IncrementalSettings(npz, rows, ("b2-2",), settings={"epochs": 2, "batch_size": 16, "total": 12})
    stages: list[str] = []

    def progress(stage: str, *_: Any) -> None:
        stages.append(stage)

    shared = IncrementalStudy(settings, tmp_path / "shared", progress=progress)
    found = {each.row: each for each in shared.run()}
    assert {stage.split(",")[0] for stage in stages} == {"NME"}
    for row, table in rows.items():
        alone = IncrementalSettings(npz, {row: table}, ("b2-2",), settings=settings.settings)
        (expected,) = IncrementalStudy(alone, tmp_path / row).run()
        assert [task.accuracies for task in found[row].tasks] == [task.accuracies for task in expected.tasks]
        assert found[row].average == expected.average
        assert torch.equal(found[row].confusion, expected.confusion)
        assert found[row].method == table["method"]
        assert Expert.load(shared.place(row, "b2-2") / "network").units == tuple(
            c for task in shared.tasks("b2-2") for c in task.classes
        )
        assert sorted(path.name for path in shared.place(row, "b2-2").iterdir()) == [
            "learned.json", "network", "pictures.safetensors"
        ]  # fmt: skip
