"""Charts as SVG, with colours for light and dark pages, and strips of images as PNG.

Points and bars carry their values in ``data-tip``, matrices in ``data-grid``; the script of the page shows them.

Every chart raises ImportError if matplotlib is missing.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exml_fast.reading import printable
from exml_fast.report.tips import MOST_CELLS, grid_of, mark, with_tips
from exml_fast.storage import PathLike, atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = [
    "accuracy_lines",
    "class_strips",
    "curves",
    "group_rows",
    "heatmap",
    "overlaid",
    "save_curves",
    "save_overlaid",
    "save_scatter",
    "save_similarity",
    "scatter",
    "stage_bars",
]

# Matplotlib draws in these colours. In the SVG they are replaced by CSS variables of the page.
INK, FAINT, PAPER = "#010203", "#010204", "#010205"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", PAPER: "var(--paper)"}
SERIES = ("#3b7dd8", "#d9822b", "#3a9d78", "#b0579f", "#8a7a2f", "#6b6bd6", "#c0453f", "#5b8c9a")
ACCENT = SERIES[0]
# A matrix with more rows is drawn without numbers in its cells.
WRITTEN_ROWS = 12
MAX_TICKS = 20
# A line of more points has small markers.
MAX_MARKERS = 60
# Greatest length of a name in a chart.
NAME = 60


def accuracy_lines(
    lines: Mapping[str, Sequence[float]], references: Mapping[str, float], alt: str, ceiling: Sequence[float] = ()
) -> str:
    """Draw the accuracy after each expert as SVG.

    Args:
        lines: for each strategy the accuracy after each expert, in percent.
        references: accuracies in percent, drawn as dashed horizontal lines.
        alt: alternative text.
        ceiling: share of the test images whose class has been seen after each expert, in percent; drawn dotted.
    """
    figure, axes = _figure(5.2, 3.1)
    count = max([len(v) for v in lines.values()], default=1)
    if ceiling:
        axes.plot(range(1, len(ceiling) + 1), ceiling, color=FAINT, lw=1.2, ls=":", label="classes seen so far")
    for (name, values), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        (line,) = axes.plot(range(1, len(values) + 1), values, color=colour, lw=2, marker="o", ms=4.5, label=name)
        mark(line, [f"{name}, {i} of {count} experts: {v:.2f} %" for i, v in enumerate(values, 1)])
    for name, value in references.items():
        mark(axes.axhline(value, color=INK, lw=1, ls="--", label=name), [f"{name}: {value:.2f} %"])
    axes.set(xlabel="experts seen", ylabel="test accuracy, %", ylim=(0, 103), xticks=range(1, count + 1))
    axes.set_xlim(0.7, count + 0.3)
    axes.grid(axis="y", color=FAINT, lw=0.4, alpha=0.5)
    entries = len(axes.get_legend_handles_labels()[0])
    columns = 2 if entries > 1 else 1
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK
    )
    return _svg(figure, alt)


def stage_bars(seconds: Mapping[str, Mapping[str, float]], alt: str) -> str:
    """Draw one bar for each run, stacked from the seconds of its stages, as SVG."""
    stages = list(dict.fromkeys(stage for parts in seconds.values() for stage in parts))
    figure, axes = _figure(5.2, 1.1 + 0.38 * len(seconds))
    start = [0.0] * len(seconds)
    names = list(seconds)
    for stage, colour in zip(stages, _colours(len(stages)), strict=True):
        widths = [seconds[name].get(stage, 0.0) for name in names]
        bars = axes.barh(range(len(names)), widths, left=start, height=0.62, color=colour, label=stage)
        for bar, name, width in zip(bars, names, widths, strict=True):
            mark(bar, [f"{name}, {stage}: {width:.1f} s"])
        start = [a + b for a, b in zip(start, widths, strict=True)]
    longest = max([*start, 1e-9])
    for i, total in enumerate(start):
        axes.text(total + 0.015 * longest, i, f"{total:.1f} s", va="center", fontsize=8.5, color=INK)
    axes.set(xlabel="seconds", xlim=(0, longest * 1.16), yticks=range(len(names)))
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    return _svg(figure, alt)


def heatmap(
    matrix: Tensor, names: Sequence[str], alt: str, axes_labels: tuple[str, str] = ("", ""), written: str = "{:.0f}"
) -> str:
    """Draw a matrix (K, K) of numbers of at least 0 as SVG, darker for more. Small matrices show their numbers."""
    return _svg(_heatmap(matrix, names, axes_labels, written), alt, grid_of(matrix, names, axes_labels, written))


def save_similarity(path: PathLike, similarity: Tensor, names: Sequence[str]) -> None:
    """Draw class similarities as a picture (Nayak 2021, Fig. 1).

    Args:
        path: of the picture, whose suffix (png, svg, pdf) chooses the format.
        similarity: (K, K), finite.
        names: of the K classes.

    Raises:
        ValueError: for another shape, or a similarity that holds NaN or infinity.
    """
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1] or len(names) != len(similarity):
        raise ValueError(
            f"similarity must be (K, K) with K names, got {tuple(similarity.shape)} and {len(names)} names"
        )
    if bad := (~similarity.isfinite()).any(1).nonzero()[:, 0].tolist():
        raise ValueError(f"similarity must be finite, rows {bad} hold NaN or infinity; class_similarity computes it")
    _save(path, _heatmap(similarity, names, ("", ""), "{:.2f}"))


Lines = Mapping[str, Sequence[tuple[float, float]]]


def curves(lines: Lines, alt: str, axes_labels: tuple[str, str], logarithmic: bool = False) -> str:
    """Draw lines through the points (x, y) of each name as SVG, with a logarithmic x axis if wanted."""
    return _svg(_curves(lines, axes_labels, logarithmic), alt)


def save_curves(path: PathLike, lines: Lines, axes_labels: tuple[str, str], logarithmic: bool = False) -> None:
    """Draw :func:`curves` as a picture, in the format of the path's suffix (png, svg, pdf)."""
    _save(path, _curves(lines, axes_labels, logarithmic))


def _curves(lines: Lines, axes_labels: tuple[str, str], logarithmic: bool) -> Figure:
    figure, axes = _figure(5.2, 3.1)
    for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        x, y = zip(*points, strict=True)
        few = len(x) <= MAX_MARKERS
        (line,) = axes.plot(x, y, color=colour, lw=2, marker="o", ms=4.5 if few else 1.5, label=name)
        if len(x) <= MOST_CELLS:
            mark(line, [f"{name}: {axes_labels[0]} {a:.6g}, {axes_labels[1]} {b:.4g}" for a, b in points])
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    if logarithmic:
        axes.set_xscale("log")
        places = sorted({x for points in lines.values() for x, _ in points})
        if len(places) > MAX_TICKS:
            places = [10.0**k * d for k in range(-3, 7) for d in (1, 2, 5) if places[0] <= 10.0**k * d <= places[-1]]
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.set_xticks([], minor=True)
    axes.grid(axis="y", color=FAINT, lw=0.4, alpha=0.5)
    # The legend is above the plot, so that it covers no line.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def scatter(groups: Mapping[str, Tensor], alt: str) -> str:
    """Draw the points (N, 2) of each group as SVG, on axes without units."""
    return _svg(_scatter(groups), alt)


def save_scatter(path: PathLike, groups: Mapping[str, Tensor]) -> None:
    """Draw :func:`scatter` as a picture, in the format of the path's suffix (png, svg, pdf)."""
    _save(path, _scatter(groups))


def _scatter(groups: Mapping[str, Tensor]) -> Figure:
    figure, axes = _figure(4.4, 4.4)
    for (name, points), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        x, y = points.double().T.tolist()
        mark(axes.scatter(x, y, s=6, color=colour, label=name, linewidths=0), [name] * len(x))
    axes.set(xticks=[], yticks=[])
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


Overlaid = Mapping[str, tuple[Tensor, Tensor]]


def overlaid(groups: Overlaid, alt: str) -> str:
    """Draw the points (N, 2) of each group pale, and over them those (M, 2) that stand out, as SVG."""
    return _svg(_overlaid(groups), alt)


def save_overlaid(path: PathLike, groups: Overlaid) -> None:
    """Draw :func:`overlaid` as a picture, in the format of the path's suffix (png, svg, pdf)."""
    _save(path, _overlaid(groups))


def _overlaid(groups: Overlaid) -> Figure:
    figure, axes = _figure(4.4, 4.4)
    for (name, (pale, dark)), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        x, y = pale.double().T.tolist()
        axes.scatter(x, y, s=8, color=colour, alpha=0.25, linewidths=0)
        x, y = dark.double().T.tolist()
        axes.scatter(x, y, s=14, color=colour, label=name, linewidths=0.4, edgecolors=INK)
    axes.set(xticks=[], yticks=[])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _heatmap(matrix: Tensor, names: Sequence[str], axes_labels: tuple[str, str], written: str) -> Figure:
    import numpy as np
    from matplotlib.colors import to_rgb

    figure, axes = _figure(4.4, 4.4)
    values = matrix.double()
    strength = (values / values.max().clamp_min(1e-12)).numpy()
    colours = np.zeros((*strength.shape, 4))
    colours[..., :3] = to_rgb(ACCENT)
    colours[..., 3] = strength
    axes.imshow(colours, interpolation="nearest")
    count = len(values)
    step = -(-count // MAX_TICKS)
    ticks = list(range(0, count, step))
    axes.set(xticks=ticks, yticks=ticks, xlabel=axes_labels[1], ylabel=axes_labels[0])
    long = max(len(names[i]) for i in ticks) > 3
    axes.set_xticklabels([names[i] for i in ticks], rotation=90 if long else 0)
    axes.set_yticklabels([names[i] for i in ticks])
    axes.tick_params(length=0)
    if count <= WRITTEN_ROWS:
        for row in range(count):
            for column in range(count):
                value = float(values[row, column])
                if value:
                    text = written.format(value)
                    bright = strength[row, column] > 0.6
                    colour = "white" if bright else INK
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(True)
    return figure


def _image_strip(images: Tensor) -> str:
    """Images (N, C, H, W) in [0, 1] as the data URI of a PNG, one below the other, one pixel apart."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    grid = make_grid(images.detach().float().clamp(0, 1).cpu(), nrow=1, padding=1, pad_value=0.5)
    buffer = io.BytesIO()
    picture = to_pil_image(grid)
    if images.shape[1] == 1:
        picture = picture.convert("L")
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def group_rows(groups: Sequence[tuple[Tensor, Tensor]], classes: Sequence[int], each: int) -> Image:
    """Draw one row for each group: ``each`` images of each class. A group is (N, C, H, W) in [0, 1] and labels (N,)."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    cells = []
    for images, labels in groups:
        for c in classes:
            mine = images[labels == c][:each].float()
            blank = torch.ones(each - len(mine), *images.shape[1:])
            cells.append(torch.cat([mine, blank]))
    return to_pil_image(make_grid(torch.cat(cells), nrow=each * len(classes), padding=1, pad_value=1.0))


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report needs matplotlib: pip install 'exml_fast[report]'") from error
    style: Any = {"font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style["axes.edgecolor"] = FAINT
    style["text.parse_math"] = False
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
    return figure, axes


def _plain(figure: Figure) -> None:
    """Names come from strangers: they are no formulas, and have a limited length and printable characters only."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        ticks: Any = axis.get_major_formatter()
        if isinstance(ticks, FuncFormatter):  # the one of given labels
            ticks.func = functools.partial(_short_label, ticks.func)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(printable(text.get_text(), NAME))


def _short_label(label: Any, value: float, position: int | None = None) -> str:
    return printable(label(value, position), NAME)


def _save(path: PathLike, figure: Figure) -> None:
    _plain(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight", facecolor="white", dpi=150)


def _svg(figure: Figure, alt: str, grid: str = "") -> str:
    """Inline SVG that refers to no file, in the font of the page, with neutral colours as CSS variables.

    ``grid`` is the JSON of :func:`grid_of`.
    """
    import matplotlib

    alt = printable(alt)
    _plain(figure)
    buffer = io.StringIO()
    # Matplotlib derives ids from the element and this salt, so that ids of two charts on a page do not collide.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": alt, "text.color": INK, "font.family": "sans-serif"}
    style["text.parse_math"] = False
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.03, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'\bid="((?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend)[^"]*)"', "", text)
    more = f' data-grid="{escape(grid, quote=True)}"' if grid else ""
    return with_tips(text).replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"{more}', 1)


def class_strips(images: Tensor, labels: Tensor, classes: Sequence[int], each: int) -> list[tuple[int, str]]:
    """For each class that occurs: the class, and a strip of its first ``each`` images as a data URI."""
    strips = []
    for c in classes:
        chosen = torch.nonzero(labels == c)[:each, 0]
        if len(chosen):
            strips.append((c, _image_strip(images[chosen])))
    return strips
