"""Outcomes are read as they were written."""

from __future__ import annotations

from pathlib import Path

import torch

from exml_fast.reproduction.outcome import Outcome


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    group = (torch.rand(2, 1, 4, 4), torch.tensor([0, -1]))
    written = Outcome(
        {"a": 1.0}, {"train": 2.0}, {"n": 3}, {"images/of": group}, {"line": {"x": [(0.0, 1.0), (1.0, 2.0)]}},
        {"line": ("x", "y")}, {"line"}, {"t-SNE/a": {"b": torch.rand(3, 2)}, "t-SNE": {"a/b": torch.rand(3, 2)}},
        {"similar": torch.eye(2)}, ["p", "q"],
    )  # fmt: skip
    written.save(tmp_path)
    read = Outcome.load(tmp_path)
    assert all(map(torch.equal, read.samples.pop("images/of"), written.samples.pop("images/of")))
    for title, name in (("t-SNE", "a/b"), ("t-SNE/a", "b")):
        assert torch.equal(read.points.pop(title)[name], written.points.pop(title)[name])
    assert torch.equal(read.matrices.pop("similar"), written.matrices.pop("similar"))
    assert read.lines.pop("line") == {"x": [[0.0, 1.0], [1.0, 2.0]]} and written.lines.pop("line")
    assert tuple(read.axes.pop("line")) == written.axes.pop("line")
    assert read == written
