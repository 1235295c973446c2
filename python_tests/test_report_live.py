"""The page of a running command: its parts, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_report import parse

from exml_fast.report.live import LivePage


def test_the_page_follows_the_run(tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    with LivePage(path, "A <run>", "exml-fast invert", every=0.0) as live:
        assert "It has begun." in path.read_text() and "data-refresh" in path.read_text()
        live("first", 1, 1, {})
        for step in range(301):
            live("invert <b>", step, 400, {"loss": 400.0 - step, "bn": float("nan")})
        live.images("invert <b>", 300, 400, lambda: torch.rand(3, 1, 8, 8))
        live("invert <b>", 301, 400, {"loss": 99.0})
        page = path.read_text()
    tags = parse(page)
    assert "A &lt;run&gt;" in page and "invert &lt;b&gt;" in page and "301 of 400" in page and "left" in page
    assert [a["value"] for tag, a in tags if tag == "progress"] == ["301"]
    assert sum(tag == "polyline" for tag, _ in tags) == 1, "a term that is not finite has no curve"
    tips = [a["data-tip"] or "" for _, a in tags if "data-tip" in a]
    assert tips[-1] == "loss, step 301: 99" and len(tips) <= 40
    assert "step 300 of 400" in page and "data:image/png;base64," in page and "first" in page
    assert "the results are being written" in path.read_text()


@pytest.mark.parametrize(
    ("error", "text"), [(KeyboardInterrupt(), "It was interrupted."), (RuntimeError("a <reason>"), "a &lt;reason&gt;")]
)
def test_the_page_says_why_the_run_ended(tmp_path: Path, error: BaseException, text: str) -> None:
    path = tmp_path / "index.html"
    with pytest.raises(type(error)), LivePage(path, "t", "c") as live:
        live("invert", 1, 2, {"loss": 1.0})
        raise error
    assert text in path.read_text() and "data-refresh=" not in path.read_text()


def test_a_page_without_a_report_stays(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    with LivePage(path, "t", "c", followed=False):
        pass
    assert "It has finished." in path.read_text() and "data-refresh=" not in path.read_text()
