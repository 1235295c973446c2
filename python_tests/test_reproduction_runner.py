"""Rows, and what is kept of an earlier run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.runner import rows_of, run
from exml_fast.reproduction.tasks import TASKS


def test_rows_compare_with_the_paper_and_say_what_is_shorter() -> None:
    preset = {"impressions": {"count": 10}, "published": {"impressions.count": 20}, "paper": {"a": 5.0}}
    rows = rows_of(preset, [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}])
    assert rows[0] == {
        "cell": "a", "paper": 5.0, "ours": 2.0, "std": 1.414, "seeds": 2, "values": [1.0, 3.0], "reduced": True,
        "note": "impressions.count 10 instead of 20",
    }  # fmt: skip
    assert rows[1]["paper"] is None and rows[1]["std"] == 0.0
    preset["impressions"]["count"] = 20
    assert not rows_of(preset, [{"a": 1.0}])[0]["reduced"]


def test_what_another_preset_left_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def fake(preset: dict[str, Any], context: Context) -> Outcome:
        found.append((context.folder / "teacher").is_file())
        (context.folder / "teacher").touch()
        if len(found) in (1, 3):
            raise KeyboardInterrupt
        return Outcome(values={"x": 1.0})

    monkeypatch.setitem(TASKS, "fake", SimpleNamespace(run=fake, check=lambda *_: None))
    for preset in ({"task": "fake"}, {"task": "fake"}, {"task": "fake", "steps": 2}, {"task": "fake"}):
        with contextlib.suppress(KeyboardInterrupt):
            run(preset, tmp_path)
    assert found == [False, True, False, False]


def test_finished_seeds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(preset: dict[str, Any], context: Context) -> Outcome:
        calls.append(context.seed)
        if context.seed == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return Outcome(values={"x": float(context.seed)})

    monkeypatch.setitem(TASKS, "fake", SimpleNamespace(run=fake, check=lambda *_: None))
    with pytest.raises(KeyboardInterrupt):
        run({"task": "fake"}, tmp_path, seeds=(0, 1))
    rows, _ = run({"task": "fake"}, tmp_path, seeds=(0, 1))
    assert calls == [0, 1, 1] and rows[0]["values"] == [0.0, 1.0]
    run({"task": "fake", "changed": 1}, tmp_path, seeds=(0,))
    assert calls[-1] == 0 and len(calls) == 4
