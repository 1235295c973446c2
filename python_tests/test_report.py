"""The page: its parts, and that it refers to no other file."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from exml_fast.report import Learning, Report, Row, Samples, Similarities, render, write_picture, write_report
from exml_fast.report.charts import save_similarity


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


def test_page_has_all_parts_and_refers_to_no_file() -> None:
    page = render(make_report())
    tags = parse(page)
    sections = [attributes.get("id") for tag, attributes in tags if tag == "section"]
    assert sections == ["results", "reading", "samples", "accuracy", "confusion", "similarity", "time", "settings"]
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe")
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
    sections = [a.get("id") for tag, a in parse(render(report)) if tag == "section"]
    assert sections == ["results", "reading", "settings"]


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
        seconds={name: {name: 3.0}},
    )  # fmt: skip
    page = write_report(tmp_path / "page.html", report).read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert not any(tag == "script" and not attributes for tag, attributes in tags.found)
    assert "alert(1)</script>" not in page and not any(c in page for c in "\u202e\x00\x1b")
    save_similarity(tmp_path / "similarity.png", torch.rand(4, 4), report.class_names)
    with Image.open(tmp_path / "similarity.png") as picture:
        assert picture.width * picture.height < 10**7
