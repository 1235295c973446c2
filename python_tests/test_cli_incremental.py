"""`exml-fast incremental`: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_presets import call

from exml_fast.continual import Expert
from exml_fast.continual.class_incremental import METHODS, incremental, learner, tasks_of
from exml_fast.data import load
from exml_fast.models import create
from exml_fast.reproduction.incremental_learned import Learned
from exml_fast.storage import load_json

SHORT = ("--protocol", "b4-3", "--epochs", 1, "--threads", 1)
EXEMPLARS = ("--set", "total=40")
SYNTHETIC = ("--set", "images=20", "--set", "recipe_steps=2")


def test_learners_share_a_first_network_and_the_page_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exml_fast.reproduction.incremental_study.MAP_IMAGES", 4)
    out = tmp_path / "out"
    methods = ("fine-tuning", "lwf", "deep-inversion", "icarl", "analytic")
    options = [word for name in methods for word in ("--method", name)]
    summary: dict[str, Any] = json.loads(
        call(
            "incremental", *options, *SHORT, *EXEMPLARS, *SYNTHETIC, "--out", out, "--report", "--json"
        ).stdout.splitlines()[-1]
    )
    rows = {row["method"]: row for row in summary["rows"]}
    assert list(rows) == list(methods)
    seed = out / "learners" / "seed_0"
    # Cross-entropy and binary cross-entropy make two first networks.
    costs = [load_json(file)["seconds"] for file in (seed / "first").glob("*/cost.json")]
    assert len(costs) == 2 and min(costs) > 0
    firsts = {rows[name]["accuracy_after_each_task"][0] for name in ("fine-tuning", "lwf", "deep-inversion")}
    assert len(firsts) == 1
    for name in methods:
        row = rows[name]
        assert row["average"] == pytest.approx(sum(row["accuracy_after_each_task"]) / 4, abs=1e-2)
        assert row["last"] == row["accuracy_after_each_task"][-1] and row["data"] == "digits" and row["reduced"]
        assert len(row["seconds_per_task"]) == 4 and min(row["seconds_per_task"]) > 0
        expert = Expert.load(seed / name / "b4-3" / "network")
        assert expert.units == tuple(c for task in tasks_of(load("digits"), "b4-3") for c in task.classes)
    image = 32 * 32
    assert (rows["icarl"]["bytes"], rows["icarl"]["real_exemplars"], rows["icarl"]["synthetic"]) == (40 * image, 40, 0)
    assert (rows["deep-inversion"]["bytes"], rows["deep-inversion"]["synthetic"]) == (20 * image, 20)
    assert rows["deep-inversion"]["kept_bytes"] == rows["deep-inversion"]["real_exemplars"] == 0
    assert rows["fine-tuning"]["bytes"] == 0
    page = (out / "report" / "index.html").read_text("utf-8")
    for heading in (
        "Accuracy after each task", "icarl: exemplars", "deep-inversion: images of earlier classes", "Confusion",
        "icarl: features after task 4", "Accuracy, time and memory", "of these kept, MB",
    ):  # fmt: skip
        assert heading in page
    assert (out / "report" / "samples.png").is_file()
    found = Learned.load(seed / "deep-inversion" / "b4-3")
    assert found.old is not None and found.old.labels.max() < 9 and found.old.images.dtype == torch.uint8
    assert found.confusion.sum() == len(load("digits").test)


def test_a_method_alone_is_the_library_s(tmp_path: Path) -> None:
    shift = ("--set", 'augmentation={"shift": 2}')
    call("incremental", "--method", "icarl", *SHORT, *EXEMPLARS, *shift, "--seed", 3, "--out", tmp_path)
    data = load("digits")
    torch.manual_seed(3)
    network = create("lenet5", num_classes=10, in_channels=1, batch_norm=True)
    torch.set_num_threads(1)
    pupil = learner("icarl", network, data.spec, tasks=3, seed=3, epochs=1, total=40, augmentation={"shift": 2})
    result = incremental(pupil, tasks_of(data, "b4-3", 1993 + 3), data.test)
    (row,) = load_json(tmp_path / "results.json")["rows"]
    assert row["accuracy_after_each_task"] == [round(100 * task.accuracy, 3) for task in result.tasks]
    assert row["std"] is None and row["values"] == [row["average"]]


def test_an_interrupted_run_goes_on_to_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--method", "lwf", "--method", "lwf-mc", *SHORT, "--seeds", 2]
    call("incremental", *options, "--out", tmp_path / "whole")
    out, stages = tmp_path / "out", []

    def stopping(self: Any, stage: str, *_: object) -> None:
        if stage not in stages:
            stages.append(stage)
        if stage == "lwf-mc, task 3: learn":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("exml_fast.cli.progress.Reporter.__call__", stopping)
        stopped = call("incremental", *options, "--out", out, code=130)
    assert "--resume" in stopped.output
    with monkeypatch.context() as patch:
        patch.setattr("exml_fast.cli.progress.Reporter.__call__", lambda self, stage, *_: stages.append(stage))
        stages.clear()
        call("incremental", "--out", out, "--resume")
    assert "lwf, task 1: learn" in stages  # of the second seed
    assert stages[0] == "lwf-mc, task 3: learn"
    kinds = ("average", "values", "std", "last", "accuracy_after_each_task")
    both = [load_json(folder / "results.json")["rows"] for folder in (tmp_path / "whole", out)]
    for whole, resumed in zip(*both, strict=True):
        assert {kind: whole[kind] for kind in kinds} == {kind: resumed[kind] for kind in kinds}
        assert whole["seeds"] == 2 and whole["std"] is not None
    for part in ("lwf", "lwf-mc"):
        state = [
            Expert.load(tmp_path / folder / "learners" / "seed_0" / part / "b4-3" / "network").model.state_dict()
            for folder in ("whole", "out")
        ]
        assert all(torch.equal(a, state[1][name]) for name, a in state[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "icral"), "did you mean 'icarl'"),
        (("--method", "icarl", "--method", "icarl"), "once"),
        (("--protocol", "half"), "protocol must be 'bB-T'"),
        (("--protocol", "b50-5"), "for 10 classes"),
        (("--protocol", "b0-11"), "for 10 classes"),
        (("--protocol", "b0-5", "--protocol", "b0-5"), "protocols must differ"),
        (("--set", "total=9"), "total must be at least the number of classes, 10"),
        (("--set", "totl=9"), "did you mean 'total'"),
        (("--set", "lwf.lambda_old=1"), "'lwf' must be one of the methods, icarl"),
        (("--set", "icarl.losses=bce"), "losses"),
        (("--method", "icarl-mlp", "--set", "classifier=svm"), "classifier is what makes icarl-mlp"),
        (("--architecture", "cifar_resnet"), "does not take the images"),
        (("--method", "deep-inversion", "--argument", "batch_norm=false"), "runs no BatchNorm layer"),
        (("--data", "/nowhere.npz"), "nowhere"),
        (("--held-out", 1000), "held_out"),
        (("--epochs", 0), "--epochs"),
    ],
)
def test_wrong_options_are_named_before_any_step(options: tuple[object, ...], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = call("incremental", *options, "--out", out, code=2).output
    assert message in " ".join(text.split()).replace("│ ", "")
    assert not out.exists()


def test_settings_for_one_method_and_held_out_images(tmp_path: Path) -> None:
    call(
        "incremental", "--method", "icarl", "--method", "icarl-random", *SHORT, "--held-out", 5,
        "--set", "total=40", "--set", "icarl-random.total=20", "--out", tmp_path,
    )  # fmt: skip
    rows = {row["method"]: row for row in load_json(tmp_path / "results.json")["rows"]}
    assert rows["icarl"]["real_exemplars"] == 40 and rows["icarl-random"]["real_exemplars"] == 20
    found = Learned.load(tmp_path / "learners" / "seed_0" / "icarl" / "b4-3")
    assert found.confusion.sum(1).unique().tolist() == [5]


def test_help_names_the_methods() -> None:
    text = " ".join(call("incremental", "--help").output.replace("│", " ").split())
    assert "--protocol" in text and "dual-distillation" in text.replace(" ", "") and len(METHODS) > 20
    assert "incremental" in call("--help").output
