"""The page: its parts, and that it refers to no other file."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from exml_fast.report import Learning, Report, Row, Samples, Similarities, render, write_picture, write_report
from exml_fast.report.charts import accuracy_lines, curves, heatmap, save_similarity, scatter, stage_bars
from exml_fast.report.film import Film


def make_report(classes: int = 4, channels: int = 1) -> Report:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(3)
    images = torch.rand(len(labels), channels, 8, 8, generator=generator)
    return Report(
        title="Title <of> it",
        summary="What was done.",
        command="exml-fast demo --out 'a & b'",
        settings={"Data": "digits", "Distillation": {"lr": 0.1, "reset": False}, "Seeds": [0, 1], "Nothing": None},
        machine={"cpu": "a processor", "gpu": None},
        class_names=[f"class {c}" for c in range(classes)],
        rows=[
            Row("Model Inversion", "strategy", 51.25, 1.5, 12.0, 800.0, "images"),
            Row("Ensemble Avg.", "baseline", 33.0),
            Row("Joint training", "joint", 98.0, None, 4.0, 700.0),
        ],
        samples=[Samples("Real images", images, labels), Samples("Model Inversion", 1 - images, labels)],
        learning=Learning({"Model Inversion": [20.0, 51.25]}, {"Joint training": 98.0}, [50.0, 100.0]),
        confusions={"Model Inversion": torch.eye(classes) * 9 + 1},
        similarities={"Expert 1": Similarities(torch.rand(classes, classes, generator=generator))},
        seconds={"Experts": {"train experts": 3.0}, "Model Inversion": {"generate": 8.0, "distil": 4.0}},
    )


class Tags(HTMLParser):
    """Collects every start tag with its attributes; fails on an end tag without a start tag."""

    VOID = frozenset({"meta", "img", "br", "link", "path", "use", "image"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(page: str) -> list[tuple[str, dict[str, str | None]]]:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags.found


SECTIONS = ["accuracy", "samples", "results", "confusion", "similarity", "time", "reading", "settings"]


def sections_of(tags: list[tuple[str, dict[str, str | None]]]) -> list[str | None]:
    return [attributes.get("id") for tag, attributes in tags if tag in ("section", "details")]


def test_page_has_all_parts_and_refers_to_no_file() -> None:
    page = render(make_report())
    tags = parse(page)
    assert sections_of(tags) == SECTIONS
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert page.count("<script>") == 1 and not re.search(r"innerHTML|eval\(|fetch\(|XMLHttp", page)
    for tag, attributes in tags:
        assert tag not in ("link", "iframe") and not (tag == "script" and attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)


def test_pictures_have_alternative_texts() -> None:
    tags = parse(render(make_report()))
    images = [attributes for tag, attributes in tags if tag == "img"]
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(images) == 2 * 4 and all(a["alt"] for a in images)
    assert len(drawings) == 4 and all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_image_strips_hold_the_images() -> None:
    tags = parse(render(make_report(channels=3)))
    source = next(a["src"] for tag, a in tags if tag == "img")
    assert source is not None
    picture = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
    assert picture.mode == "RGB" and picture.size == (10, 3 * 9 + 1)


def test_table_and_text_are_escaped() -> None:
    page = render(make_report())
    assert "Title &lt;of&gt; it" in page and "a &amp; b" in page
    assert "51.25 ± 1.50" in page and "33.00" in page
    assert "lr 0.1, reset false" in page


def test_neutral_colours_follow_the_scheme() -> None:
    page = render(make_report())
    assert "#010203" not in page and "var(--ink)" in page and "prefers-color-scheme: dark" in page


def test_many_classes() -> None:
    page = render(make_report(classes=150))
    assert sum(tag == "img" for tag, _ in parse(page)) == 2 * 10


def test_empty_parts_are_left_out() -> None:
    report = Report("t", "s", "c", {}, {}, ["a"], [Row("x", "baseline", 1.0)])
    assert sections_of(parse(render(report))) == ["results", "reading", "settings"]


def test_write_report(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report" / "index.html", make_report())
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_picture_of_all_groups(tmp_path: Path) -> None:
    samples = make_report().samples
    picture = Image.open(write_picture(tmp_path / "samples.png", samples, each=2, scale=3))
    assert picture.size == (3 * (2 * 4 * 9 + 1), 3 * (2 * 9 + 1))


def test_the_page_mentions_stretched_contrast() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    group = Samples("grey", torch.linspace(0.4, 0.6, 64).view(1, 1, 8, 8), labels, stretch=True)
    assert float(group.shown().min()) == 0 and float(group.shown().max()) == 1
    page = render(Report("t", "s", "c", {}, {}, ["a"], [], samples=[group]))
    assert "contrast stretched" in page


def test_bad_parts_are_named() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        Row("x", "other", 1.0)
    with pytest.raises(ValueError, match="samples 'real'"):
        Samples("real", torch.zeros(2, 1, 4, 4), torch.zeros(3))


def test_similarity_as_a_picture(tmp_path: Path) -> None:
    save_similarity(tmp_path / "c.png", torch.eye(3), ["a", "b", "c"])
    assert (tmp_path / "c.png").stat().st_size > 1000
    broken = torch.eye(3)
    broken[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"similarity must be finite, rows \[1\] hold NaN"):
        save_similarity(tmp_path / "d.png", broken, ["a", "b", "c"])
    with pytest.raises(ValueError, match="K names"):
        save_similarity(tmp_path / "d.png", torch.eye(3), ["a"])


def tips_of(svg: str) -> list[str]:
    return [a["data-tip"] or "" for _, a in parse(svg) if "data-tip" in a]


def test_points_and_bars_say_their_values() -> None:
    lines = accuracy_lines({"a": [20.0, 51.25], "b <&>": [1.0, 2.0]}, {"Joint": 98.0}, "alt", [50.0, 100.0])
    assert tips_of(lines) == [
        "a, 1 of 2 experts: 20.00 %", "a, 2 of 2 experts: 51.25 %",
        "b <&>, 1 of 2 experts: 1.00 %", "b <&>, 2 of 2 experts: 2.00 %", "Joint: 98.00 %",
    ]  # fmt: skip
    assert tips_of(curves({"c": [(1, 2), (3, 4.5)]}, "alt", ("x", "y"))) == ["c: x 1, y 2", "c: x 3, y 4.5"]
    bars = stage_bars({"run": {"generate": 8.0, "distil": 4.0}}, "alt")
    assert tips_of(bars) == ["run, generate: 8.0 s", "run, distil: 4.0 s"]
    assert tips_of(scatter({"d": torch.rand(3, 2)}, "alt")) == ["d"] * 3


def test_a_matrix_carries_its_values() -> None:
    svg = heatmap(torch.tensor([[90.0, 10.0], [0.0, 100.0]]), ["cat", "<dog>"], "alt", ("true", "predicted"))
    grid = next(a["data-grid"] for tag, a in parse(svg) if tag == "svg")
    assert grid is not None and json.loads(grid) == {
        "names": ["cat", "<dog>"], "axes": ["true", "predicted"], "values": [["90", "10"], ["0", "100"]],
    }  # fmt: skip
    assert "data-grid" not in heatmap(torch.rand(101, 101), [str(i) for i in range(101)], "alt")


def test_a_film_keeps_few_frames_of_the_first_batch() -> None:
    film = Film(most_images=2, most_frames=5)
    for _batch in range(2):
        for step in range(0, 101, 5):
            film.images("invert", step, 100, lambda step=step: torch.full((3, 1, 8, 8), step / 100))
    steps = [step for step, _ in film.frames["invert"]]
    assert steps[0] == 0 and steps[-1] == 100 and len(steps) <= 6
    assert all(images.shape == (2, 1, 8, 8) and images.max() == step / 100 for step, images in film.frames["invert"])
    big = Film()
    big.images("invert", 1, 1, lambda: torch.rand(1, 3, 200, 100))
    assert big.frames["invert"][0][1].shape == (1, 3, 96, 48)
    report = dataclasses.replace(make_report(), film=film)
    captions = [f"invert, step {step}" for step in steps]
    page = render(report)
    assert all(caption in page for caption in captions) and "data:image/jpeg" in big.pictures()[0][1]


def test_the_verdict_comes_first() -> None:
    page = render(dataclasses.replace(make_report(), verdict="Five experts, <no> data."))
    assert page.index("Five experts, &lt;no&gt; data.") < page.index("What was done.") < page.index("<svg")


STRANGE = [
    "$x^$",
    r"\1 \g<0>",
    "\ud800",
    "\u202egnp.exe",
    "x" * 10_000,
    "<script>alert(1)</script>",
    "a\x00b\x1bc",
    "",
    "_x",
]


@pytest.mark.parametrize("name", STRANGE)
def test_any_name_is_shown(tmp_path: Path, name: str) -> None:
    report = make_report()
    report = dataclasses.replace(
        report, title=name, summary=name, command=name, settings={name: name},
        class_names=[f"{name}{c}" for c in range(4)], rows=[Row(name, "strategy", 51.25, None, 1.0, 1.0, name)],
        samples=[Samples(name, group.images, group.labels) for group in report.samples],
        learning=Learning({name: [20.0, 51.25]}, {f"{name}!": 98.0}, [50.0, 100.0]),
        confusions={name: torch.eye(4) + 1}, similarities={name: Similarities(torch.rand(4, 4))},
        seconds={name: {name: 3.0}}, verdict=name,
        leading={name: curves({name: [(0.0, 1.0), (1.0, 2.0)]}, name, (name, name))},
    )  # fmt: skip
    page = write_report(tmp_path / "page.html", report).read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    assert all(not name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert "alert(1)</script>" not in page and not any(c in page for c in "\u202e\x00\x1b")
    save_similarity(tmp_path / "similarity.png", torch.rand(4, 4), report.class_names)
    with Image.open(tmp_path / "similarity.png") as picture:
        assert picture.width * picture.height < 10**7
