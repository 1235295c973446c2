"""The page in a real browser: no error of the console at three widths, by pointer and by keyboard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Chromium, find
from PIL import Image
from test_report import make_report

from exml_fast.report import write_report
from exml_fast.report.film import Film

PATH = find()
pytestmark = pytest.mark.skipif(PATH is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    folder = tmp_path_factory.mktemp("browser")
    film = Film()
    for step in range(4):
        film.images("invert", step, 3, lambda: torch.rand(4, 1, 8, 8))
    table = [{"Name": name, "Value": value} for name, value in (("b", "1,200"), ("a", "–"), ("c", "90.5"))]
    report = dataclasses.replace(make_report(classes=10), verdict="A verdict.", film=film, tables={"More": table})
    with Chromium(folder / "profile", PATH or "") as browser:
        browser.open(write_report(folder / "index.html", report))
        yield browser
    assert browser.errors == []


@pytest.fixture(autouse=True)
def wide(browser: Chromium) -> None:
    browser.resize(1200)
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = false))")
    browser.evaluate("document.activeElement.blur()")


def tip(browser: Chromium) -> str | None:
    return browser.evaluate(
        "(() => { const t = document.querySelector('#tip'); return t.hidden ? null : t.textContent })()"
    )


@pytest.mark.parametrize("width", [400, 800, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_the_screen(browser: Chromium, tmp_path: Path, width: int, dark: bool) -> None:
    browser.resize(width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width and picture.height > 900
        background = picture.convert("RGB").getpixel((2, 2))
    assert (sum(background) < 200) == dark  # type: ignore[arg-type]
    assert browser.errors == []


def test_points_by_pointer_and_by_keyboard(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('#accuracy svg').focus()")
    browser.press("ArrowRight")
    assert tip(browser) == "Model Inversion, 1 of 2 experts: 20.00 %"
    browser.press("ArrowRight")
    assert tip(browser) == "Model Inversion, 2 of 2 experts: 51.25 %"
    browser.press("Escape")
    assert tip(browser) is None
    box = "document.querySelector('#accuracy [data-tip]').getBoundingClientRect()"
    browser.move(browser.evaluate(f"{box}.x"), browser.evaluate(f"{box}.y"))
    assert tip(browser) == "Model Inversion, 1 of 2 experts: 20.00 %"
    browser.move(1, 1)
    assert tip(browser) is None


def test_cells_of_a_matrix(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('#confusion').open = true")
    browser.evaluate("document.querySelector('#confusion svg').focus()")
    browser.press("ArrowRight", 2)
    browser.press("ArrowDown")
    assert tip(browser) == "true class class 1, predicted class class 1: 53"


def column(browser: Chromium) -> list[str]:
    cells = "[...document.querySelectorAll('[aria-label=More] tbody td:last-child')].map((cell) => cell.textContent)"
    return browser.evaluate(cells)


def test_a_column_sorts_its_table(browser: Chromium) -> None:
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    browser.click("[aria-label=More] th:last-child button")
    assert column(browser) == ["90.5", "1,200", "–"]
    browser.press("Enter")
    assert column(browser) == ["1,200", "90.5", "–"]
    browser.click("[aria-label=More] th:first-child button")
    assert column(browser) == ["–", "1,200", "90.5"]
    assert browser.evaluate("document.querySelectorAll('[aria-label=More] [aria-sort]').length") == 1


def test_images_are_enlarged(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('.strips img').focus()")
    browser.press("Enter")
    shown = "document.querySelector('dialog').open && document.querySelector('dialog p').textContent"
    assert browser.evaluate(shown) == "Real images: images of class class 0"
    browser.press("ArrowRight")
    assert browser.evaluate(shown) == "Real images: images of class class 1"
    browser.press("Escape")
    assert browser.evaluate(shown) is False
    browser.click(".strips img")
    browser.click("dialog button:last-child")
    assert browser.evaluate(shown) is False


def test_an_inversion_step_by_step(browser: Chromium) -> None:
    shown = "[...document.querySelectorAll('.film figcaption')].filter((c) => c.offsetHeight).map((c) => c.textContent)"
    browser.evaluate("document.querySelector('.film input').focus()")
    assert browser.evaluate(shown) == ["invert, step 3"]
    browser.press("Home")
    assert browser.evaluate(shown) == ["invert, step 0"]
    browser.press("ArrowRight")
    assert browser.evaluate(shown) == ["invert, step 1"]


def test_everything_is_reached_by_tab(browser: Chromium) -> None:
    browser.evaluate("document.body.focus()")
    reached = []
    for _ in range(40):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.tagName"))
    assert {"svg", "IMG", "INPUT", "BUTTON", "SUMMARY"} <= set(reached)


def test_all_tables_at_once(browser: Chromium) -> None:
    browser.click(".tools button")
    assert browser.evaluate("[...document.querySelectorAll('details')].every((fold) => fold.open)")
