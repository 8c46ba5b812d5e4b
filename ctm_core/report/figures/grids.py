"""Pictures of samples: the same noises through every cell, as rows of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from ctm_core.evaluation.metrics import names
from ctm_core.report.figures.style import COLORS, TEACHER, plain
from ctm_core.report.statistics import Summary
from ctm_core.runtime.untrusted import printable

Images = NDArray[np.uint8]

INK = "#222222"
GREY = "#666666"


class Strip(NamedTuple):
    """One row of a picture: a cell's name, its samples (N, C, H, W) and its score."""

    model: str
    cell: str
    images: Images
    score: Summary | None


class DenoisingPath(NamedTuple):
    """The states of a few samples on their way through one cell's sampler."""

    gamma: float
    states: Images  #: (2n, M, C, H, W), in turn before and after each jump
    levels: Sequence[float]  #: noise level of each


def by_class(labels: Sequence[int], count: int) -> list[int]:
    """Indices of ``count`` samples, class after class as evenly as the samples allow.

    Without labels, the first ``count``.
    """
    if not labels:
        return list(range(count))
    classes = pd.Series(labels)
    rank = classes.groupby(classes).cumcount()
    even = sorted(range(len(labels)), key=lambda i: (rank[i], labels[i]))[:count]
    return sorted(even, key=lambda i: (labels[i], rank[i]))


def headings(labels: Sequence[int], classes: Sequence[str]) -> list[str]:
    """The name of each label's class; its number where ``classes`` has no name for it."""
    known = dict(enumerate(classes))
    return [printable(known.get(label, str(label))) for label in labels]


def tiles(images: Images, side: int) -> Images:
    """Samples (N, C, H, W) side by side: (side, N * (side + gap) - gap, 3), gaps white.

    Each pixel becomes a square of ``side // H`` pixels, so nothing is blurred.
    """
    count, channels, height, _ = images.shape
    factor = max(1, side // height)
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    if channels == 1:
        large = large.repeat(3, axis=1)
    gap = max(1, side // 24)
    row = np.full((large.shape[2], count * (large.shape[3] + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(large):
        start = i * (image.shape[2] + gap)
        row[:, start : start + image.shape[2]] = image.transpose(1, 2, 0)
    return row


class Sheet:
    """A figure on which places are inches from the upper left corner."""

    def __init__(
        self, width: float, height: float, title: str, size: float = 11, edge: float = 0.1
    ) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        self.text(edge, edge + 0.02, title, fontsize=size, color="black", va="top", weight="bold")

    def text(self, x: float, y: float, text: str, **looks: Any) -> None:
        """Write a text, by default centred on ``y``."""
        default: dict[str, Any] = {"fontsize": 8.5, "color": INK, "va": "center"}
        self.figure.text(x / self.width, 1 - y / self.height, text, **default | looks)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is at (x, y)."""
        left, bottom = x / self.width, 1 - (y + height) / self.height
        return self.figure.add_axes((left, bottom, width / self.width, height / self.height))

    def images(self, images: Images, x: float, y: float, side: float) -> None:
        """Images side by side, each ``side`` wide and high."""
        axes = self.axes(x, y, len(images) * side, side)
        axes.imshow(tiles(images, round(side * 200)), interpolation="nearest", aspect="auto")
        axes.set_axis_off()

    def classes(self, names: Sequence[str], x: float, y: float, side: float) -> None:
        """Each class over its columns, once for each run of equal names, shortened to fit."""
        start = 0
        looks: dict[str, Any] = {"ha": "center", "va": "bottom", "color": GREY}
        for name, run in groupby(names):
            count = len(list(run))
            shown = _fitting(name, count * side - 0.05, size := 8)
            middle = x + (start + count / 2) * side
            self.text(middle, y, shown, fontsize=size, parse_math=False, **looks)
            start += count


def _fitting(text: str, width: float, size: float) -> str:
    """As much of ``text`` as ``width`` inches hold."""
    for length in range(len(text), 0, -1):
        shown = text if length == len(text) else f"{text[:length]}…"
        drawn = TextPath((0, 0), shown.replace("$", r"\$"), size=size)
        if drawn.get_extents().width <= 72 * width:
            return shown
    return text[:1]


def denoising_paths(kept: Sequence[DenoisingPath], title: str) -> Figure | None:
    """For each gamma, above what each jump starts from, below where it lands; None without any.

    Of the samples in a file the first is drawn.
    """
    if not kept:
        return None
    jumps = len(kept[0].levels) // 2
    tile = 0.55
    left, top, pitch, line = 0.85, 0.6, tile + 0.28, tile + 0.16
    block = 2 * line + 0.12
    sheet = Sheet(max(left + jumps * pitch + 0.1, 4.2), top + len(kept) * block + 0.1, title)
    for index, path in enumerate(kept):
        y = top + index * block + 0.12
        sheet.text(0.1, y, f"γ = {path.gamma:g}", fontsize=7.5, weight="bold")
        for row, what in enumerate(("starts at", "lands at")):
            upper = y + row * line + 0.16
            sheet.text(0.1, upper + tile / 2, what, fontsize=7.5, color=GREY)
            for k in range(jumps):
                x, state = left + k * pitch, 2 * k + row
                sheet.images(path.states[state, :1], x, upper, tile)
                looks = {"ha": "center", "va": "baseline", "fontsize": 6.5, "color": GREY}
                sheet.text(x + tile / 2, upper - 0.02, f"{path.levels[state]:.3g}", **looks)
    return sheet.figure


def sample_grid(
    strips: Sequence[Strip],
    classes: Sequence[str],
    title: str,
    *,
    tile: float = 0.34,
    below: Sequence[str] = (),
) -> Figure:
    """Rows of samples beside their cells' names; every column starts from one noise and class.

    ``classes`` names the class of each column, or is empty; ``tile`` is the side of an image in
    inches, ``below`` a text for each column.
    """
    count = len(strips[0].images)
    left, right, top = 1.75, 0.75, 0.62
    gap = 0.12  # between models
    breaks = sum(a.model != b.model for a, b in pairwise(strips))
    height = top + len(strips) * (tile + 0.03) + breaks * gap + (0.28 if below else 0.1)
    sheet = Sheet(left + count * tile + right, height, title)
    sheet.classes(classes, left, top - 0.08, tile)
    scores = left + count * tile + 0.08
    if any(strip.score for strip in strips):
        sheet.text(scores, top - 0.08, "FD", fontsize=8, color=GREY, va="bottom")
    y = top
    for before, strip in zip([None, *strips], strips, strict=False):  # the last is before none
        is_first = before is None or before.model != strip.model
        y += 0.03 + gap * (is_first and before is not None)
        sheet.images(strip.images, left, y, tile)
        if is_first:
            sheet.text(0.1, y + tile / 2, strip.model, weight="bold")
        sheet.text(left - 0.08, y + tile / 2, strip.cell, ha="right")
        if strip.score is not None:
            sheet.text(scores, y + tile / 2, strip.score.text(strip.score.mean))
        y += tile
    for column, text in enumerate(below):
        middle = left + (column + 0.5) * tile
        sheet.text(middle, y + 0.04, text, ha="center", va="top", fontsize=8, color=GREY)
    return sheet.figure


def hero(strips: Sequence[Strip], classes: Sequence[str], title: str, metric: str) -> Figure:
    """The result at a glance: samples, and beside each row its score on a common axis."""
    count = len(strips[0].images)
    tile, left, plot, top, bottom = 0.42, 1.45, 3.1, 0.78, 0.62
    pitch = tile + 0.14
    width = left + count * tile + 0.25 + plot + 0.15
    sheet = Sheet(width, top + len(strips) * pitch + bottom, title, size=12, edge=0.12)
    sheet.classes(classes, left, top - 0.06, tile)
    for index, strip in enumerate(strips):
        y = top + index * pitch + 0.07
        sheet.images(strip.images, left, y, tile)
        color = TEACHER if strip.model == "teacher" else COLORS[0]
        sheet.text(0.12, y + tile / 2 - 0.09, strip.model, color=color, weight="bold")
        sheet.text(0.12, y + tile / 2 + 0.1, strip.cell, color=GREY)
    _scores(sheet.axes(width - plot - 0.15, top, plot, len(strips) * pitch), strips, metric)
    return sheet.figure


def _scores(axes: Axes, strips: Sequence[Strip], metric: str) -> None:
    """One dot and interval per row, its number printed over it."""
    shown = [strip.score for strip in strips if strip.score is not None]
    ends = [end for score in shown for end in score.ends]
    for row, strip in enumerate(strips):
        if strip.score is None:
            continue
        color = TEACHER if strip.model == "teacher" else COLORS[0]
        mean, interval = strip.score.mean, strip.score.interval
        if interval is not None:
            axes.plot(interval, [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([mean], [row], "o", color=color, markersize=6)
        high = ends and mean > (min(ends) * max(ends)) ** 0.5 if min(ends) > 0 else False
        axes.annotate(
            str(strip.score),
            (mean, row),
            xytext=(6 if high else -6, 8),
            textcoords="offset points",
            ha="right" if high else "left",
            va="bottom",
            fontsize=8.5,
            color=INK,
        )
    axes.set_ylim(len(strips) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    for spine in ("left", "top", "right"):
        axes.spines[spine].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_xlabel(f"{names.label(metric)}: {names.direction(metric)} is better", fontsize=8.5)
    if ends and min(ends) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(ends) / 1.5, max(ends) * 1.5)
        axes.xaxis.set_major_formatter(plain())
        axes.xaxis.set_minor_formatter(NullFormatter())
