"""Rows and page of a class-incremental study, from results without any training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_experts import quadrants, save_npz

from exml_fast.data import Split
from exml_fast.report import Report, render
from exml_fast.report.charts import overlaid, save_overlaid
from exml_fast.reproduction.incremental_learned import FeatureMap, Learned, TaskFigures
from exml_fast.reproduction.incremental_page import (
    accuracy_chart,
    feature_plane,
    rows_of_learned,
    sheets,
    verdict_of,
    write_incremental_page,
)
from exml_fast.reproduction.incremental_settings import IncrementalSettings
from exml_fast.reproduction.incremental_study import IncrementalStudy

ORIGIN = {"command": "exml-fast incremental", "commit": "c", "date": "d", "machine": {"cpu": "a processor"}}
METHODS = {"iCaRL": {"method": "icarl"}, "skd": {"method": "skd", "epochs": 80}, "LwF": {"method": "lwf"}}


def feature_map(seed: int) -> FeatureMap:
    generator = torch.Generator().manual_seed(seed)
    real, kept = torch.randn(12, 6, generator=generator), torch.randn(4, 6, generator=generator)
    return FeatureMap(real, torch.tensor([0, 1] * 6), kept, torch.tensor([0, 0, 1, 1]))


def learned(row: str, protocol: str = "b2-2", first: float = 0.9) -> Learned:
    """Of three tasks of two classes, one and one."""
    images = Split(quadrants().train.images[:8], torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    tasks = [
        TaskFigures(2, first, [first], {"learn": 3.0, "other": 1.0}, 10.0, 0, 0),
        TaskFigures(3, 0.6, [0.65, 0.5], {"learn": 1.0}, 30.0, 10, 100),
        TaskFigures(4, 0.3, [0.1, 0.0, 1.0], {"synthesis": 0.5, "learn": 0.5}, 20.0, 5, 2_000_000),
    ]
    return Learned(
        row, METHODS[row]["method"], protocol, tasks,
        real_exemplars=8 if row == "iCaRL" else 0, synthetic=None if row == "skd" else 0,
        confusion=torch.eye(4, dtype=torch.int64) * 9 + 1, exemplars=images if row == "iCaRL" else None,
        old=images if row == "skd" else None, maps={1: feature_map(1)} if row == "iCaRL" else {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> IncrementalStudy:
    folder = tmp_path_factory.mktemp("study")
    settings = IncrementalSettings(str(save_npz(folder / "quadrants.npz")), METHODS, ("b2-2", "b2-1"))
    return IncrementalStudy(settings, folder)


def test_figures_of_a_learner() -> None:
    found = learned("iCaRL")
    assert found.average == pytest.approx(0.6) and found.last == 0.3
    assert found.nbytes == 2_000_000 and found.seconds == 6.0 and found.peak_mb == 30.0
    assert found.stages == {"learn": 4.5, "other": 1.0, "synthesis": 0.5}
    assert [task.current for task in found.tasks] == [0.9, 0.5, 1.0]


def test_a_row_holds_the_mean_over_the_seeds(study: IncrementalStudy) -> None:
    icarl, skd = rows_of_learned(
        study, [[learned("iCaRL", first=0.9), learned("skd")], [learned("iCaRL", first=0.6), learned("skd")]]
    )
    assert icarl["values"] == [60.0, 50.0] and icarl["average"] == 55.0
    assert icarl["std"] == pytest.approx(7.071, abs=1e-3) and icarl["seeds"] == 2
    assert icarl["accuracy_after_each_task"] == [75.0, 60.0, 30.0] and icarl["last"] == 30.0
    assert icarl["accuracy_on_each_new_task"] == [75.0, 50.0, 100.0]
    assert icarl["seconds_per_task"] == [4.0, 1.0, 1.0] and icarl["peak_mb"] == 30.0
    assert (icarl["bytes"], icarl["kept_bytes"], icarl["working_bytes"]) == (2_000_000, 5, 2_000_000)
    assert icarl["reduced"] and "15 epochs a task" in icarl["note"] and icarl["data"] == "quadrants"
    assert not skd["reduced"] and skd["note"] == "Ye 2022, III.C" and skd["synthetic"] is None
    (alone,) = rows_of_learned(study, [[learned("LwF")]])
    assert alone["std"] is None and alone["real_exemplars"] == alone["synthetic"] == 0


def test_the_page_shows_every_part(study: IncrementalStudy, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra eval")
    found = [learned(row, protocol) for protocol in ("b2-2", "b2-1") for row in METHODS]
    rows = rows_of_learned(study, [found])
    page = write_incremental_page(tmp_path / "index.html", study, found, rows, ORIGIN, {"epochs": 15})
    text = page.read_text("utf-8")
    for part in (
        "Class-incremental learning of quadrants", "Accuracy after each task, b2-1", "Accuracy after each task, b2-2",
        "iCaRL, b2-2: exemplars", "skd, b2-1: images of earlier classes", "Training images",
        "iCaRL, b2-1: features after task 1", "new in each step", "2.00", "Each task", "Confusion matrix of LwF, b2-2",
    ):  # fmt: skip
        assert part in text, part
    assert "LwF, b2-2: exemplars" not in text and "LwF, b2-2: features" not in text
    # The accuracy comes first, and the page refers to no other file.
    assert text.index("Accuracy after each task") < text.index("Accuracy, time and memory") < text.index("Confusion")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > picture.height > 0


def test_sheets_are_in_the_order_of_the_classes(study: IncrementalStudy) -> None:
    real, kept = sheets(study, [learned("iCaRL")], {("iCaRL", "b2-2"): "iCaRL"})
    order = [c for task in study.tasks("b2-2") for c in task.classes]
    assert real.labels.tolist() == [place for place in range(4) for _ in range(4)]
    expected = study.data.train.images[study.data.train.labels == order[2]][:4]
    assert torch.equal(real.images[8:12], study.data.spec.fit(expected))
    assert kept.name == "iCaRL: exemplars" and kept.images.min() >= 0 and kept.images.max() <= 1


def test_a_plane_has_points_of_each_class(study: IncrementalStudy) -> None:
    pytest.importorskip("sklearn", reason="needs the extra eval")
    plane = feature_plane(study, learned("iCaRL"), 1)
    assert list(plane) == study.class_names("b2-2")[:2]
    assert [(len(real), len(kept)) for real, kept in plane.values()] == [(6, 2), (6, 2)]


def test_a_chart_of_pale_and_dark_points(tmp_path: Path) -> None:
    groups = {"cat": (torch.rand(5, 2), torch.rand(2, 2)), "dog": (torch.rand(3, 2), torch.zeros(0, 2))}
    drawn = overlaid(groups, "a <map>")
    assert drawn.count("<use") == 5 + 2 + 3 + 2  # the points, and one of each class in the legend
    assert "cat" in drawn and 'aria-label="a &lt;map&gt;"' in drawn
    save_overlaid(tmp_path / "map.png", groups)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 100


def test_accuracies_are_drawn_by_number_of_classes() -> None:
    drawn = accuracy_chart([learned("iCaRL"), learned("LwF"), learned("skd", "b2-1")], "b2-2")
    assert "iCaRL: 30.0 % at the end; LwF: 30.0 % at the end" in drawn and "skd" not in drawn


def test_leading_pictures_come_before_the_tables() -> None:
    text = render(
        Report(
            "title", "summary", "command", {}, {}, [], tables={"Numbers": [{"a": 1}]}, leading={"Lines": "<svg></svg>"}
        )
    )
    assert text.index("Lines") < text.index("Numbers") and "Lines" not in render(Report("t", "s", "c", {}, {}, []))


def test_what_was_reached_survives_a_file(tmp_path: Path) -> None:
    from exml_fast.storage import save_tensors

    for row in METHODS:
        written = learned(row)
        written.save(tmp_path / row)
        for number, found in written.maps.items():
            save_tensors(tmp_path / row / f"map_{number:02d}.safetensors", vars(found))
        read = Learned.load(tmp_path / row)
        plain = [name for name in vars(read) if name not in ("confusion", "exemplars", "old", "maps")]
        assert [getattr(read, name) for name in plain] == [getattr(written, name) for name in plain]
        assert torch.equal(read.confusion, written.confusion) and list(read.maps) == list(written.maps)
        for name in ("exemplars", "old"):
            before, after = getattr(written, name), getattr(read, name)
            assert (before is None) == (after is None)
            assert before is None or (torch.equal(before.images, after.images) and before.labels.equal(after.labels))
        assert all(torch.equal(read.maps[k].kept, written.maps[k].kept) for k in read.maps)


def test_the_verdict_names_the_best_learners() -> None:
    rows = [
        {"name": name, "method": method, "protocol": "b2-2", "average": average}
        for name, method, average in (("iCaRL", "icarl", 80.0), ("LwF", "lwf", 50.0), ("All", "joint", 90.0))
    ]
    assert verdict_of([*rows, {**rows[1], "protocol": "b2-1", "average": 99.0}]) == (
        "Best: iCaRL, 80.0 % average incremental accuracy; best without real images of earlier classes: LwF, 50.0 % "
        "average incremental accuracy; all images at once: All, 90.0 % average incremental accuracy."
    )
