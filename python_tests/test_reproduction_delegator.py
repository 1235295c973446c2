"""The knowledge delegator's tables on the quadrants, by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_experts import save_npz
from small_presets import call, options

from exml_fast.continual import Expert
from exml_fast.generators import Generator
from exml_fast.reproduction.delegator import Delegated
from exml_fast.reproduction.outcome import Context
from exml_fast.reproduction.runner import check, load_preset, run
from exml_fast.storage import load_json, save_json

SHORT: dict[str, Any] = {
    "classes": 3, "tsne": 0, "teacher.architecture": "lenet5", "teacher.arguments": {"activation": "relu"},
    "teacher.steps": 20, "teacher.precision": "float32", "delegation.steps": 2, "delegation.batch_size": 8,
    "delegation.width": 2, "delegation.latent_size": 4, "delegation.precision": "float32", "delegation.features": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "tiny_imagenet100.npz"))


def changes(npz: str, **more: Any) -> dict[str, Any]:
    return {"data": npz, "ablations": {"SKD w/o L_cat": {"category": 0.0}}} | SHORT | more


def test_table_1_by_command(npz: str, tmp_path: Path) -> None:
    given = {name: value for name, value in changes(npz).items() if name != "ablations"}
    arguments = ["--out", tmp_path, "--seeds", 1, "--json", "--report", *options(given)]
    summary = json.loads(call("reproduce", "ye2022/table1", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    assert list(rows) == ["CIFAR-100/T0", "CIFAR-100/S0", "CIFAR-100/gap"]
    assert rows["CIFAR-100/gap"]["ours"] == pytest.approx(
        rows["CIFAR-100/T0"]["ours"] - rows["CIFAR-100/S0"]["ours"], abs=2e-3
    )
    note = rows["CIFAR-100/S0"]["note"]
    assert "delegation.steps 2 instead of 15000" in note and note.endswith(
        "Tiny-ImageNet at 32×32 instead of CIFAR-100"
    )
    assert rows["CIFAR-100/S0"]["reduced"] and summary["details"]["data"]["classes"] == 3
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Images of the generator, S0" in page and "Losses, S0" in page


def test_figures_of_other_networks_stand_alone(npz: str) -> None:
    assert "paper" not in load_preset("ye2022/table1", {"teacher.architecture": "lenet5"})
    same = load_preset("ye2022/table1", {"data": "folder/cifar100.npz"})
    assert "paper" in same and "note" not in same
    kept = load_preset("ye2022/table1", {"data": npz})
    assert kept["paper"]["CIFAR-100/gap"] == 0.22


def test_table_2_has_a_row_for_each_ablation_and_resumes_cell_by_cell(npz: str, tmp_path: Path) -> None:
    preset = load_preset("ye2022/table2", changes(npz))
    rows, outcome = run(preset, tmp_path)
    cells = ["CIFAR-100/T0", "CIFAR-100/S0", "CIFAR-100/gap", "CIFAR-100/SKD w/o L_cat"]
    assert [row["cell"] for row in rows] == cells
    folder = tmp_path / "parts" / "seed_0"
    assert Expert.load(folder / "S0" / "student").units == (0, 1, 2)
    made = Generator.load(folder / "SKD w-o L_cat" / "generator")
    assert made.card is not None and made.card.training["settings"]["loss"]["category"] == 0
    assert {"teacher", "S0", "SKD w/o L_cat"} <= set(outcome.seconds)
    # A cell that is there is not computed again; one that is missing is.
    (folder / "outcome.json").unlink()
    save_json(folder / "S0" / "found.json", load_json(folder / "S0" / "found.json") | {"accuracy": 12.5})
    shutil.rmtree(folder / "SKD w-o L_cat")
    again, _ = run(preset, tmp_path)
    assert {row["cell"]: row["ours"] for row in again} == {row["cell"]: row["ours"] for row in rows} | {
        "CIFAR-100/S0": 12.5, "CIFAR-100/gap": pytest.approx(rows[0]["ours"] - 12.5, abs=2e-3)
    }  # fmt: skip


def test_the_first_classes_of_the_order_and_held_out_images(npz: str, tmp_path: Path) -> None:
    def data(**more: Any) -> Any:
        return Delegated(
            load_preset("ye2022/table1", changes(npz, **more)), Context(tmp_path, 0, None, "cpu", None)
        ).data

    plain = data()
    assert len(plain.class_names) == 3 and sorted(plain.train.labels.unique().tolist()) == [0, 1, 2]
    held = data(held_out=5)
    assert held.test.labels.bincount().tolist() == [5, 5, 5]
    assert len(held.train) == len(plain.train) - 15 and len(plain.test) != len(held.test)
    assert data(class_order=5).class_names != data(class_order=4).class_names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 5}, "classes must be at most the 4 of"),
        ({"held_out": 1000}, "held_out must be less than the"),
        ({"delegation.latent_size": 0}, "delegation: latent_size must be at least 1"),
        ({"ablations": {"a": {"categry": 0.0}}}, "ablations.a: unknown field 'categry'"),
        ({"ablations": {"a": 3}}, "ablations.a must be a table with some of"),
        ({"teacher": {"expert": "mine"}}, "task 'delegator' trains its teacher"),
        ({"teacher": {"architecture": "cifar_resnet"}}, "teacher: the network does not take images"),
        ({"clases": 3}, "'clases' is not known to task 'delegator'"),
    ],
)
def test_bad_presets_are_named(npz: str, change: dict[str, Any], message: str) -> None:
    base = {name: value for name, value in changes(npz).items() if name.split(".")[0] not in change}
    with pytest.raises(ValueError, match=message):
        check(load_preset("ye2022/table1", base | change))
