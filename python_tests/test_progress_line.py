"""The progress that is shown unless the caller says otherwise."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from small_networks import CE, SPEC
from small_networks import network as small_network

import exml_fast as xf
from exml_fast.progress import ProgressOption, callback_of, reports_progress, silent
from exml_fast.progress_line import ProgressLine, duration, is_watched


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Shown:
    """What was written to stderr, as if it were a terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    monkeypatch.setattr("exml_fast.progress.is_watched", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    return Shown(capsys)


def invert(**options: Any) -> xf.Result:
    return xf.invert(small_network(), recipe=CE, spec=SPEC, per_class=1, **options)


def test_a_terminal_shows_the_terms_and_leaves_one_line(terminal: Shown) -> None:
    shown = invert()
    written = terminal.getvalue()
    assert "invert  [####################] 20/20  ce " in written and "  loss " in written
    assert written.split("\r")[-1].startswith("invert ") and written.endswith(" s\n") and written.count("\n") == 1
    assert shown.images.equal(invert(progress=False).images)
    assert terminal.getvalue() == written, "progress=False shows nothing"


def test_elsewhere_it_is_shown_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    invert()
    assert capsys.readouterr().err == ""
    invert(progress=True)
    assert "20/20" in capsys.readouterr().err


def test_a_callback_is_called_instead(terminal: Shown) -> None:
    calls = list[tuple[str, int]]()
    invert(progress=lambda stage, step, *_: calls.append((stage, step)))
    assert calls == [("invert", 20)] and terminal.getvalue() == ""
    with pytest.raises(ValueError, match="progress must be True, False, None or a function, got 3"):
        invert(progress=3)


def test_calls_within_a_call_are_silent(terminal: Shown) -> None:
    @reports_progress
    def outer(*, progress: ProgressOption = None) -> None:
        report = callback_of(progress)
        assert report is not None
        report("outer", 1, 1, {})
        invert()

    outer()
    assert "outer" in terminal.getvalue() and "invert" not in terminal.getvalue()
    before = terminal.getvalue()
    with silent():
        invert()
    assert terminal.getvalue() == before
    with pytest.raises(ZeroDivisionError):
        reports_progress(lambda *, progress=None: 1 / 0)()
    invert()
    assert "invert" in terminal.getvalue(), "an error ends the silence"


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    notebook = ModuleType("IPython")
    notebook.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert is_watched()
    notebook.get_ipython = lambda: SimpleNamespace()  # type: ignore[attr-defined]
    assert not is_watched()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_watched()
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_watched()


def test_the_time_left_is_that_of_the_stage(monkeypatch: pytest.MonkeyPatch, terminal: Shown) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    line = ProgressLine()
    for second, stage, step in ((10, "invert", 20), (20, "learn", 50), (30, "invert", 20), (50, "learn", 100)):
        now[0] = second
        line(stage, step, 200, {"loss": 0.5})
    texts = [text.strip() for text in terminal.getvalue().split("\r") if text.strip()]
    assert texts[0].endswith("20/200  loss 0.5  1:30 left"), "180 steps at 2 a second"
    assert texts[1].endswith("50/200  loss 0.5  30.0 s left")
    assert texts[3].endswith("100/200  loss 0.5  40.0 s left"), "100 steps in 40 seconds, the images' 10 included"
    line.close()
    assert terminal.getvalue().endswith("invert 20.0 s, learn 30.0 s\n")


def test_durations() -> None:
    assert [duration(s) for s in (8.26, 125, 3725)] == ["8.3 s", "2:05", "1:02:05"]
