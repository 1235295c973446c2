"""Tasks about streams: tables by rows, the sweep, shared experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_experts import save_npz
from small_presets import call, options, published_for_quadrants

from exml_fast.reproduction.stream import experts_folder
from exml_fast.reproduction.study_settings import ExpertSettings, Settings
from exml_fast.storage import load_json

TINY = {"experts.epochs": 2, "distillation.steps": 20, "distillation.buffer_size": 40, "inversion.steps": 2}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz")


def test_a_table_by_rows_beside_the_paper(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exml_fast.reproduction.study_rows.published", published_for_quadrants)
    mnist = npz.with_name("mnist.npz")
    mnist.write_bytes(npz.read_bytes())
    changes = options(TINY | {"data": str(mnist)})
    chosen = ["--rows", "mnist/NC,mnist/Joint", "--strategies", "model-inversion,replay", "--seeds", 2]
    out, results = tmp_path / "out", tmp_path / "rows.json"
    arguments = [*chosen, *changes, "--out", out, "--results", results, "--report"]
    printed = call("reproduce", "carta2022/table2", *arguments).output
    stored = load_json(results)
    rows = {row["cell"]: row for row in stored["rows"]}
    assert len(rows) == 12 and {row["seeds"] for row in rows.values()} == {2}
    ours = rows["MNIST/NC/Model Inversion ED"]
    assert ours["paper"] == 43.23 and ours["reduced"] and "20 of 30000 distillation steps" in ours["note"]
    assert rows["MNIST/Joint/Oracle"]["paper"] == 93.71 and "2 of 100 epochs" in rows["MNIST/Joint/Oracle"]["note"]
    assert "43.23" in printed and "* reduced: " in printed
    assert set(stored["details"]) == {"mnist/NC", "mnist/Joint"}
    page = (out / "report" / "index.html").read_text()
    assert "43.23" in page and '<a href="mnist-NC/index.html">mnist/NC</a>' in page
    for row, similarities in (("mnist-NC", 2), ("mnist-Joint", 1)):
        of_row = (out / "report" / row / "index.html").read_text()
        for table in ("Accuracy by experience", "Images of each class in the final buffer", "Time and memory by stage"):
            assert table in of_row
        assert of_row.count('aria-label="Class similarities of Expert') == similarities
    # Whatever is finished is not computed again.
    (out / "parts" / "mnist-NC" / "parts" / "replay-seed_1.json").unlink()
    times = {file: file.stat().st_mtime_ns for file in out.glob("parts/*/parts/*.json")}
    again = load_json(out / "run.json")
    (out / "run.json").write_text(json.dumps(again | {"finished": False}))
    call("reproduce", "--out", out, "--resume")
    assert load_json(out / "results.json")["rows"][1]["values"] == rows["MNIST/NC/Replay ED"]["values"]
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_the_sweep_draws_a_line_a_strategy(npz: Path, tmp_path: Path) -> None:
    changes = TINY | {"data": str(npz), "experts.architecture": "lenet5", "variant": "mnist", "sizes": [20, 10]}
    del changes["distillation.buffer_size"]
    arguments = ("--strategies", "replay", "--seeds", 1, "--out", tmp_path, "--report", "--json", *options(changes))
    rows = json.loads(call("reproduce", "carta2022/figure3", *arguments).stdout)["rows"]
    assert [row.get("buffer_size") for row in rows if row["kind"] == "strategy"] == [10, 20]
    assert [row["name"] for row in rows if row["kind"] == "baseline"] == [
        "Oracle", "Param. Avg.", "Re-Basin", "RegMean", "ZipIt",
    ]  # fmt: skip
    assert not any("images" in row["note"] for row in rows if row["kind"] == "strategy")
    assert (tmp_path / "buffer_sizes.png").stat().st_size > 1000
    assert "Test accuracy by buffer size" in (tmp_path / "report" / "index.html").read_text()
    assert len(list((tmp_path / "experts").iterdir())) == 1, "the sizes share their experts"


def test_bad_rows_and_strategies_are_named(tmp_path: Path) -> None:
    for arguments, message in (
        (("carta2022/table2", "--rows", "mnist/XX"), "no row 'mnist/XX', expected some of mnist/Joint,mnist/NC"),
        (("carta2022/table2", "--strategies", "magic"), "strategies must be one of"),
        (("carta2022/table2", "--set", "distillation.rate=1"), "unknown field 'rate'"),
        (("carta2022/mnist-nc", "--rows", "mnist/NC"), "has no rows"),
        (("nayak2021/table1", "--strategies", "replay"), "this one is of task 'zskd'"),
    ):
        assert message in call("reproduce", *arguments, "--out", tmp_path / "x", code=2).output
    assert not (tmp_path / "x").exists()


def test_multi_task_and_new_classes_share_their_experts_and_others_do_not(npz: Path, tmp_path: Path) -> None:
    one, two = Settings(data=str(npz)), Settings(data=str(npz), scenario="multi-task", strategies=("replay",))
    other = Settings(data=str(npz), experts=ExpertSettings(lr=0.1))
    assert experts_folder(one) == experts_folder(two) != experts_folder(other)
