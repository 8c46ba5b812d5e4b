"""Pictures of samples: the same noises through every cell, as rows of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from ctm_core.evaluation.metrics import names
from ctm_core.report.figures.style import COLORS, TEACHER
from ctm_core.report.statistics import Summary

__all__ = ["Strip", "by_class", "hero", "sample_grid", "tiles"]

Images = NDArray[np.uint8]

INK = "#222222"
GREY = "#666666"


@dataclass(frozen=True)
class Strip:
    """One row of a picture: a cell's name, its samples (N, C, H, W) and its score."""

    model: str
    cell: str
    images: Images
    score: Summary | None


def by_class(labels: Sequence[int], count: int) -> list[int]:
    """Indices of ``count`` samples, class after class as evenly as the samples allow.

    Without labels, the first ``count``.
    """
    if not labels:
        return list(range(count))
    seen: dict[int, int] = {}
    rank = []
    for label in labels:
        rank.append(seen.get(label, 0))
        seen[label] = seen.get(label, 0) + 1
    even = sorted(range(len(labels)), key=lambda i: (rank[i], labels[i]))[:count]
    return sorted(even, key=lambda i: (labels[i], rank[i]))


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


def sample_grid(strips: Sequence[Strip], labels: Sequence[int], title: str, metric: str) -> Figure:
    """Rows of samples under their cells' names; every column starts from one noise.

    Parameters
    ----------
    labels
        Class of each column; none for unconditional models.
    """
    count = len(strips[0].images)
    tile, left, right, top = 0.34, 1.75, 0.75, 0.62
    gap = 0.12  # between models
    breaks = sum(a.model != b.model for a, b in pairwise(strips))
    width = left + count * tile + right
    height = top + len(strips) * (tile + 0.03) + breaks * gap + 0.1
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.12 / height, title, fontsize=11, va="top", weight="bold")
    heading = 1 - (top - 0.08) / height
    _columns(figure, labels, left / width, tile / width, heading)
    if any(strip.score for strip in strips):
        at = (left + count * tile + 0.08) / width
        figure.text(at, heading, "FD", fontsize=8, color=GREY, va="bottom")
    y = height - top
    for index, strip in enumerate(strips):
        if index and strip.model != strips[index - 1].model:
            y -= gap
        y -= tile + 0.03
        box = (left / width, y / height, count * tile / width, tile / height)
        _strip(figure, strip, box, tile)
        middle = (y + tile / 2) / height
        if not index or strip.model != strips[index - 1].model:
            _text(figure, 0.1 / width, middle, strip.model, weight="bold")
        _text(figure, (left - 0.08) / width, middle, strip.cell, ha="right")
        if strip.score is not None:
            x = (left + count * tile + 0.08) / width
            _text(figure, x, middle, strip.score.text(strip.score.mean))
    return figure


def hero(strips: Sequence[Strip], labels: Sequence[int], title: str, metric: str) -> Figure:
    """The result at a glance: samples, and beside each row its score on a common axis."""
    count = len(strips[0].images)
    tile, left, plot, top, bottom = 0.42, 1.45, 3.1, 0.78, 0.62
    pitch = tile + 0.14
    width = left + count * tile + 0.25 + plot + 0.15
    height = top + len(strips) * pitch + bottom
    figure = Figure(figsize=(width, height))
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=12, va="top", weight="bold")
    _columns(figure, labels, left / width, tile / width, 1 - (top - 0.06) / height)
    for index, strip in enumerate(strips):
        y = height - top - (index + 1) * pitch + 0.07
        box = (left / width, y / height, count * tile / width, tile / height)
        _strip(figure, strip, box, tile)
        middle = y + tile / 2
        color = TEACHER if strip.model == "teacher" else COLORS[0]
        _text(figure, 0.12 / width, (middle + 0.09) / height, strip.model, color, "bold")
        _text(figure, 0.12 / width, (middle - 0.1) / height, strip.cell, GREY)
    box = (
        (width - plot - 0.15) / width,
        bottom / height,
        plot / width,
        len(strips) * pitch / height,
    )
    _scores(figure.add_axes(box), strips, metric)
    return figure


def _scores(axes: Axes, strips: Sequence[Strip], metric: str) -> None:
    """One dot and interval per row, its number printed over it."""
    shown = [strip.score for strip in strips if strip.score is not None]
    ends = [end for score in shown for end in (score.interval or (score.mean, score.mean))]
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _strip(
    figure: Figure, strip: Strip, box: tuple[float, float, float, float], tile: float
) -> None:
    axes = figure.add_axes(box)
    axes.imshow(tiles(strip.images, round(tile * 200)), interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _columns(figure: Figure, labels: Sequence[int], left: float, width: float, y: float) -> None:
    """The class over its columns, once for each run of equal labels."""
    start = 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[start]:
            x = left + (start + i) / 2 * width
            figure.text(x, y, str(labels[start]), ha="center", va="bottom", fontsize=8, color=GREY)
            start = i


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    color: str = INK,
    weight: str = "normal",
    ha: str = "left",
) -> None:
    figure.text(x, y, text, color=color, weight=weight, ha=ha, va="center", fontsize=8.5)
