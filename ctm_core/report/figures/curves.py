"""Lines: FD against NFE, FD against gamma, and losses against steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctm_core.config.sampler_traits import JUMP_SAMPLER, ODE_SAMPLER, sampler_label, samplers
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

#: Loss terms of one training, each indexed by step.
Curve = Mapping[str, "pd.Series[float]"]

PANEL = (3.4, 3.1)
#: Logged beside the losses, but nothing that training should lower or raise.
NOT_DRAWN = ("step", "images_per_second", "k")
TERMS = {
    "loss": "students: total loss",
    "ctm": "students: consistency loss",
    "dsm": "students: denoising loss",
    "lambda_dsm": "students: weight λ of denoising",
}


def points(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """One line for each row that has the metric: model, step, cell, mean and interval."""
    lines = []
    for row in rows:
        if metric in row.metrics:
            score = row.metrics[metric]
            known = {"mean": score.mean, "low": score.low, "high": score.high}
            lines.append({"model": row.model, "step": row.step, **row.cell._asdict(), **known})
    columns = ["model", "step", "sampler", "nfe", "gamma", "mean", "low", "high"]
    numbers = dict.fromkeys(["gamma", "mean", "low", "high"], float)
    return pd.DataFrame(lines, columns=columns).astype(numbers)


def extent(*drawn: pd.DataFrame) -> list[float]:
    """All means and ends of intervals."""
    return pd.concat(drawn)[["mean", "low", "high"]].melt()["value"].dropna().tolist()


# -- FD -----------------------------------------------------------------------------------------


def fd_against_nfe(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """A panel for each student: one line per gamma, the teacher's solver in black.

    Parameters
    ----------
    rows
        Rows of one experiment and protocol, each model at one step.
    """
    values = points(rows, metric)
    is_teacher = values["model"] == "teacher"
    teacher, students = values[is_teacher], values[~is_teacher]
    models = list(students["model"].unique()) or ["teacher"]
    # A student that has NFE 1 alone has no gamma; it takes the next colour.
    gammas = sorted(students["gamma"].dropna().unique())
    figure, grid = panels(models, title)
    for axes, model in zip(grid, models, strict=True):
        _teacher(axes, teacher)
        for sampler, gamma, line in _by_gamma(students[students["model"] == model]):
            index = len(gammas) if gamma is None else gammas.index(gamma)
            looks = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            dash = "-" if sampler == JUMP_SAMPLER else "--"
            draw_line(axes, "nfe", line, *looks, _line_label(sampler, gamma), dash)
        nfe_axis(axes, sorted(values["nfe"].unique()))
        log_if_positive(axes, extent(values))
        axes.set_title(model)
    legend(figure, grid)
    label_panels(grid, metric)
    return figure


def _by_gamma(cells: pd.DataFrame) -> Iterator[tuple[str, float | None, pd.DataFrame]]:
    """Cells of one model by sampler and gamma; all gammas share their cell at NFE 1."""
    for sampler, own in cells.groupby("sampler"):
        for gamma in own["gamma"].dropna().unique():
            yield str(sampler), gamma, own[own["gamma"].isna() | (own["gamma"] == gamma)]
        if own["gamma"].isna().all():
            yield str(sampler), None, own


def _line_label(sampler: str, gamma: float | None) -> str:
    label = sampler_label(sampler)
    if gamma is None:
        return label or "NFE 1"
    return f"γ = {gamma:g}" + (f" ({label})" if label else "")


def _teacher(axes: Axes, teacher: pd.DataFrame) -> None:
    looks = itertools.cycle([("-", "X"), (":", "x"), ("-.", "+")])
    for sampler, (line, marker) in zip(samplers(jumps=False), looks, strict=False):
        solves = teacher[teacher["sampler"] == sampler].sort_values("nfe")
        if not solves.empty:
            label = f"teacher, {sampler_label(sampler)}"
            draw_line(axes, "nfe", solves, TEACHER, marker, label, line)
            finest = solves["mean"].iloc[-1]
            axes.axhline(finest, color=TEACHER, linestyle=(0, (1, 3)), linewidth=1.0)


def fd_against_gamma(rows: Sequence[Row], metric: str, title: str) -> Figure | None:
    """A panel for each student that has several gammas: one line per NFE; None without any."""
    values = points(rows, metric)
    several = with_several_gammas(values)
    if several.empty:
        return None
    models = list(several["model"].unique())
    ticks = sorted(several["gamma"].unique())
    figure, grid = panels(models, title)
    drawn = []
    for axes, model in zip(grid, models, strict=True):
        own = values[values["model"] == model]
        for index, nfe in enumerate(sorted(several["nfe"].unique())):
            line = own[
                (own["nfe"] == nfe) & (own["sampler"] == JUMP_SAMPLER) & own["gamma"].notna()
            ]
            if not line.empty:
                looks = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
                draw_line(axes, "gamma", line, *looks, f"NFE {nfe}")
                drawn.append(line)
        # To compare with: the student at NFE 1, and the teacher's finest solve.
        single = own[own["nfe"] == 1][:1]
        solves = values[(values["model"] == "teacher") & (values["sampler"] == ODE_SAMPLER)]
        finest = solves.sort_values("nfe")[-1:]
        for level, label, color, dash in (
            (single, "NFE", "#777777", ":"),
            (finest, "teacher, NFE", TEACHER, "--"),
        ):
            for nfe, mean in zip(level["nfe"], level["mean"], strict=True):
                name = f"{label} {nfe}"
                axes.axhline(mean, color=color, linestyle=dash, linewidth=1.2, label=name)
            drawn.append(level[["mean"]])
        axes.set_xticks(ticks, [f"{gamma:g}" for gamma in ticks])
        axes.set_xlabel("γ  (0: exact jumps, 1: fresh noise)")
        axes.set_title(model)
    for axes in grid:
        log_if_positive(axes, extent(*drawn))
    legend(figure, grid)
    label_panels(grid, metric)
    return figure


def with_several_gammas(values: pd.DataFrame) -> pd.DataFrame:
    """The points whose model has two gammas or more at their NFE."""
    jumps = values[(values["sampler"] == JUMP_SAMPLER) & values["gamma"].notna()]
    return jumps[jumps.groupby(["model", "nfe"])["gamma"].transform("size") > 1]


def draw_line(
    axes: Axes, x: str, line: pd.DataFrame, color: str, marker: str, label: str, dash: str = "-"
) -> None:
    """Means of some :func:`points` against a column; intervals as error bars and as a band."""
    line = line.sort_values(x)
    axes.plot(line[x], line["mean"], dash, color=color, marker=marker, label=label)
    known = line.dropna(subset=["low", "high"])
    if known.empty:
        return
    at, mean, low, high = known[x], known["mean"], known["low"], known["high"]
    errors = [mean - low, high - mean]
    axes.errorbar(at, mean, yerr=errors, fmt="none", ecolor=color, capsize=2.5, lw=1)
    axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def panels(
    names: Sequence[str],
    title: str,
    size: tuple[float, float] = PANEL,
    margin: tuple[float, float] = (1.3, 0.4),
    common_axes: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each name, three in a row."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(
        figsize=(size[0] * columns + margin[0], size[1] * rows + margin[1]), layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharex=common_axes, sharey=common_axes, squeeze=False)
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
    terms: dict[str, list[tuple[str, pd.Series[float]]]] = {}
    for (model, _), curve in curves.items():
        for term, values in curve.items():
            # The teacher's loss is another quantity than its students' total.
            student = TERMS.get(term, term.replace("_", " "))
            name = f"teacher: {term}" if model == "teacher" else student
            terms.setdefault(name, []).append((model, values))
    figure, grid = panels(list(terms), title, (PANEL[0], 2.5), (1.2, 0.7), common_axes=False)
    looks = by_model(list(dict.fromkeys(model for model, _ in curves)))
    for axes, (name, lines) in zip(grid, terms.items(), strict=True):
        for model, values in lines:
            axes.plot(values, color=looks[model]["color"], alpha=0.22, linewidth=0.7)
            axes.plot(smoothed(values), label=model, **looks[model])
        log_if_positive(axes, pd.concat([values for _, values in lines]))
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("optimiser step")
    legend(figure, grid)
    return figure


def smoothed(values: pd.Series[float]) -> pd.Series[float]:
    """Exponential running mean over about a tenth of the values, without a bias at the start.

    With decay d it is :math:`m_n = \\sum_i d^{n-i} v_i / \\sum_i d^{n-i}`.
    """
    return values.ewm(alpha=1 / max(5.0, len(values) / 10)).mean()
