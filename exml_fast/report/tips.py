"""Values for the reader's pointer and keyboard: a text for each point of a chart, a table for each matrix.

Matplotlib writes the id of an artist into the SVG, with special characters escaped. :func:`mark` puts the texts there,
and :func:`with_tips` moves them to the shapes as ``data-tip``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from exml_fast.reading import printable

__all__ = ["MOST_CELLS", "grid_of", "mark", "with_tips"]

# A line with more points, or a matrix with more cells, has no texts: the page would grow too large.
MOST_CELLS = 10_000
LENGTH = 200
MARK, LINE = "tips:", "\n"
GROUP = re.compile(r"<(/?)g\b")


def mark(artist: Any, texts: Sequence[str]) -> None:
    """Give a line or a scatter a text for each point, or another shape its one text."""
    artist.set_gid(MARK + LINE.join(printable(text, LENGTH).replace(LINE, " ") for text in texts))


def grid_of(matrix: Tensor, names: Sequence[str], axes_labels: tuple[str, str], written: str) -> str:
    """A matrix (K, K) as JSON: "names", "axes", and "values" as texts. Empty for a large matrix."""
    if matrix.numel() > MOST_CELLS:
        return ""
    shown = [printable(str(name), LENGTH) for name in names[: len(matrix)]]
    values = [[written.format(value) for value in row] for row in matrix.double().tolist()]
    return json.dumps({"names": shown, "axes": list(axes_labels), "values": values}, ensure_ascii=False)


def with_tips(svg: str) -> str:
    """The SVG with the texts of :func:`mark` as ``data-tip`` of the shapes that they describe."""
    head = re.compile(rf'<g id="{MARK}([^"]*)">')
    parts, place = [], 0
    while found := head.search(svg, place):
        parts += [svg[place : found.start()], "<g>"]
        end = _end_of_group(svg, found.end())
        parts.append(_tipped(svg[found.end() : end], found[1].split(LINE)))
        place = end
    return "".join([*parts, svg[place:]])


def _end_of_group(svg: str, place: int) -> int:
    """The place of the end tag of the group whose content begins at ``place``."""
    depth = 1
    for found in GROUP.finditer(svg, place):
        depth += -1 if found[1] else 1
        if depth == 0:
            return found.start()
    return len(svg)


def _tipped(content: str, texts: list[str]) -> str:
    shape = "<use " if len(texts) == content.count("<use ") else "<path " if len(texts) == 1 else None
    if shape is None:  # points outside the axes are not drawn
        return content
    first, *rest = content.split(shape)
    return first + "".join(
        f'{shape}data-tip="{text}" {part}' if text is not None else shape + part
        for text, part in zip([*texts, *[None] * len(rest)], rest, strict=False)
    )
