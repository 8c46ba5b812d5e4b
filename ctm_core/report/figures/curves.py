"""Lines: FD against NFE, FD against gamma, and losses against steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import (
    JUMP_SAMPLER,
    ODE_SAMPLER,
    sampler_label,
    samplers,
)
from ctm_core.evaluation.metrics import names
from ctm_core.report.figures.style import (
    COLORS,
    MARKERS,
    TEACHER,
    by_model,
    legend,
    log_if_positive,
    nfe_axis,
)
from ctm_core.report.scores import Row
from ctm_core.report.statistics import Summary

__all__ = [
    "NOT_DRAWN",
    "TERMS",
    "Curve",
    "draw_line",
    "fd_against_gamma",
    "fd_against_nfe",
    "label_panels",
    "panels",
    "several_gammas",
    "smoothed",
    "training",
]

#: Loss terms of one training: name -> (steps, values).
Curve = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
Points = dict[float, Summary]

PANEL = (3.4, 3.1)
#: Logged beside the losses, yet no quantity that training should lower or raise.
NOT_DRAWN = ("step", "images_per_second", "k")
TERMS = {
    "loss": "students: total loss",
    "ctm": "students: consistency loss",
    "dsm": "students: denoising loss",
    "lambda_dsm": "students: weight λ of denoising",
}


# -- FD -----------------------------------------------------------------------------------------


def fd_against_nfe(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """A panel for each student: one line per gamma, the teacher's solver in black.

    Parameters
    ----------
    rows
        Rows of one experiment and protocol, each model at one step.
    """
    values = _values(rows, metric)
    students = [model for model in values if model != "teacher"] or ["teacher"]
    figure, grid = panels(students, title)
    counts = {cell.nfe for cells in values.values() for cell in cells}
    colors = _gamma_colors(values)
    for axes, model in zip(grid, students, strict=True):
        _teacher(axes, values.get("teacher", {}))
        if model != "teacher":
            for (sampler, gamma), points in _by_gamma(values[model]).items():
                index = list(colors).index(gamma)
                marker = MARKERS[index % len(MARKERS)]
                line = "-" if sampler == JUMP_SAMPLER else "--"
                label = _line_label(sampler, gamma)
                draw_line(axes, points, colors[gamma], marker, label, line)
        nfe_axis(axes, sorted(counts))
        log_if_positive(axes, _extent(values))
        axes.set_title(model)
    legend(figure, grid)
    label_panels(grid, metric)
    return figure


def fd_against_gamma(rows: Sequence[Row], metric: str, title: str) -> Figure | None:
    """A panel for each student that has several gammas: one line per NFE; None without any."""
    values = _values(rows, metric)
    students = [model for model in values if _gammas(values[model])]
    if not students:
        return None
    figure, grid = panels(students, title)
    shown: list[float] = []
    levels = sorted({cell.nfe for model in students for cell in _gammas(values[model])})
    ticks = {c.gamma for model in students for c in _gammas(values[model]) if c.gamma is not None}
    for axes, model in zip(grid, students, strict=True):
        cells = values[model]
        for index, nfe in enumerate(levels):
            points = {
                cell.gamma: summary
                for cell, summary in cells.items()
                if cell.nfe == nfe and cell.gamma is not None and cell.sampler == JUMP_SAMPLER
            }
            if not points:
                continue
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            draw_line(axes, points, color, marker, f"NFE {nfe}")
            shown += [end for s in points.values() for end in (s.interval or (s.mean, s.mean))]
        for model_name, cell, line in _levels(values, model):
            summary = values[model_name][cell]
            color = TEACHER if model_name == "teacher" else "#777777"
            label = f"teacher, NFE {cell.nfe}" if model_name == "teacher" else f"NFE {cell.nfe}"
            axes.axhline(summary.mean, color=color, linestyle=line, linewidth=1.2, label=label)
            shown.append(summary.mean)
        axes.set_xticks(sorted(ticks), [f"{gamma:g}" for gamma in sorted(ticks)])
        axes.set_xlabel("γ  (0: exact jumps, 1: fresh noise)")
        axes.set_title(model)
    for axes in grid:
        log_if_positive(axes, shown)
    legend(figure, grid)
    label_panels(grid, metric)
    return figure


def several_gammas(rows: Sequence[Row], model: str) -> bool:
    """Whether a model has some NFE with two gammas or more."""
    return len(_gammas({row.cell for row in rows if row.model == model})) > 0


def _values(rows: Sequence[Row], metric: str) -> dict[str, dict[Cell, Summary]]:
    """Summaries by model and cell, the teacher first."""
    values: dict[str, dict[Cell, Summary]] = {}
    for row in rows:
        if metric in row.metrics:
            values.setdefault(row.model, {})[row.cell] = row.metrics[metric]
    return values


def _gammas(cells: Iterable[Cell]) -> list[Cell]:
    """Cells whose NFE occurs with two gammas or more."""
    marked = [cell for cell in cells if cell.gamma is not None and cell.sampler == JUMP_SAMPLER]
    return [cell for cell in marked if sum(other.nfe == cell.nfe for other in marked) > 1]


def _by_gamma(
    cells: Mapping[Cell, Summary],
) -> dict[tuple[str, float | None], dict[float, Summary]]:
    """NFE -> summary for each (sampler, gamma); all gammas share their cell at NFE 1."""
    lines: dict[tuple[str, float | None], dict[float, Summary]] = {}
    for cell in cells:
        if cell.gamma is not None:
            lines.setdefault((cell.sampler, cell.gamma), {})
    for cell, summary in cells.items():
        keys = [key for key in lines if key[0] == cell.sampler and cell.gamma in (None, key[1])]
        for key in keys or [(cell.sampler, cell.gamma)]:
            lines.setdefault(key, {})[cell.nfe] = summary
    return lines


def _line_label(sampler: str, gamma: float | None) -> str:
    label = sampler_label(sampler)
    if gamma is None:
        return label or "NFE 1"
    return f"γ = {gamma:g}" + (f" ({label})" if label else "")


def _gamma_colors(values: Mapping[str, Mapping[Cell, Summary]]) -> dict[float | None, str]:
    """One colour for each gamma of the figure, the same in every panel."""
    found = {cell.gamma for model, cells in values.items() if model != "teacher" for cell in cells}
    gammas: list[float] = sorted(gamma for gamma in found if gamma is not None)
    # None is for a student that has NFE 1 alone, thus no gamma to name.
    named: list[float | None] = [*gammas, None]
    return {gamma: COLORS[i % len(COLORS)] for i, gamma in enumerate(named)}


def _levels(
    values: Mapping[str, Mapping[Cell, Summary]], model: str
) -> list[tuple[str, Cell, str]]:
    """Cells without gamma to compare with: the student's at NFE 1, the teacher's finest solve."""
    single = [(model, cell, ":") for cell in values[model] if cell.nfe == 1]
    solves = [cell for cell in values.get("teacher", {}) if cell.sampler == ODE_SAMPLER]
    finest = max(solves, key=lambda cell: cell.nfe, default=None)
    return single[:1] + ([("teacher", finest, "--")] if finest else [])


def _teacher(axes: Axes, cells: Mapping[Cell, Summary]) -> None:
    looks = itertools.cycle([("-", "X"), (":", "x"), ("-.", "+")])
    for sampler, (line, marker) in zip(samplers(jumps=False), looks, strict=False):
        points: Points = {c.nfe: s for c, s in cells.items() if c.sampler == sampler}
        if points:
            label = f"teacher, {sampler_label(sampler)}"
            draw_line(axes, points, TEACHER, marker, label, line)
            finest = points[max(points)].mean
            axes.axhline(finest, color=TEACHER, linestyle=(0, (1, 3)), linewidth=1.0)


def draw_line(
    axes: Axes, points: Points, color: str, marker: str, label: str, line: str = "-"
) -> None:
    """Means as a line, intervals as error bars and as a band; ``points`` maps x to summaries."""
    x = sorted(points)
    mean = [points[at].mean for at in x]
    axes.plot(x, mean, line, color=color, marker=marker, label=label)
    ends = [points[at].interval for at in x]
    known = [(at, end) for at, end in zip(x, ends, strict=True) if end is not None]
    if not known:
        return
    low, high = [end[0] for _, end in known], [end[1] for _, end in known]
    at = [place for place, _ in known]
    middle = [points[place].mean for place in at]
    below = [m - end for m, end in zip(middle, low, strict=True)]
    above = [end - m for m, end in zip(middle, high, strict=True)]
    axes.errorbar(at, middle, yerr=[below, above], fmt="none", ecolor=color, capsize=2.5, lw=1)
    axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _extent(values: Mapping[str, Mapping[Cell, Summary]]) -> list[float]:
    summaries = itertools.chain.from_iterable(cells.values() for cells in values.values())
    return [end for s in summaries for end in (s.interval or (s.mean, s.mean))]


def panels(names: Sequence[str], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each name, three in a row, on common axes."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    width = PANEL[0] * columns + 1.3
    figure = Figure(figsize=(width, PANEL[1] * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid.flat[: len(names)]:
        axes.tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    return figure, list(grid.flat[: len(names)])


def label_panels(grid: Sequence[Axes], metric: str) -> None:
    """Name the metric on the panels of the first column."""
    for axes in grid:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(names.label(metric))


# -- training -----------------------------------------------------------------------------------


def training(curves: Mapping[tuple[str, int], Curve], title: str) -> Figure:
    """A panel for each loss term; every value faint, their running mean strong.

    Parameters
    ----------
    curves
        Keyed by (model, training seed), the teacher first.
    """
    panels: dict[tuple[bool, str], list[tuple[str, int]]] = {}
    for key, curve in curves.items():
        for term in curve:
            # The teacher's loss is another quantity than its students' total.
            panels.setdefault((key[0] != "teacher", term), []).append(key)
    names = [
        TERMS.get(term, term.replace("_", " ")) if is_student else f"teacher: {term}"
        for is_student, term in panels
    ]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (PANEL[0] * columns + 1.2, 2.5 * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    looks = by_model(list(dict.fromkeys(model for model, _ in curves)))
    # The grid may have more places than there are panels.
    for axes, name, ((_, term), keys) in zip(grid.flat, names, panels.items(), strict=False):
        shown: list[float] = []
        named: set[str] = set()
        for model, seed in keys:
            steps, values = curves[model, seed][term]
            axes.plot(steps, values, color=looks[model]["color"], alpha=0.22, linewidth=0.7)
            label = None if model in named else model
            axes.plot(steps, smoothed(values), label=label, **looks[model])
            named.add(model)
            shown += values.tolist()
        log_if_positive(axes, shown)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("optimiser step")
    legend(figure, list(grid.flat[: len(panels)]))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    return figure


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential running mean over about a tenth of the values, without a bias at the start.

    With decay d it is :math:`m_n = \\sum_i d^{n-i} v_i / \\sum_i d^{n-i}`.
    """
    decay = 1.0 - 1.0 / max(5.0, len(values) / 10)
    total, weight = 0.0, 0.0
    means = np.empty_like(values, dtype=np.float64)
    for i, value in enumerate(values):
        total, weight = decay * total + float(value), decay * weight + 1.0
        means[i] = total / weight
    return means
