"""Lines: FD against NFE, gamma and training steps, losses, and errors of single jumps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER, ODE_SAMPLER, sampler_label, samplers
from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.evaluation.metrics import names
from ctm_core.report.figures import style
from ctm_core.report.scores import Row, model_order
from ctm_core.report.selection import last_steps
from ctm_core.report.statistics import MARK, TRAINING_SEEDS_NEEDED

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
    """One line for each row that has the metric: model, step, cell, mean and interval.

    ``times`` says whether the cell has times of its own.
    """
    lines = [
        (
            row.model,
            trained(row),
            row.step,
            *row.cell[:3],
            bool(row.cell.times),
            score.mean,
            score.low,
            score.high,
        )
        for row in rows
        if (score := row.metrics.get(metric)) is not None
    ]
    columns = ["model", "trained", "step", *Cell._fields, "mean", "low", "high"]
    numbers = dict.fromkeys(["gamma", "mean", "low", "high"], float)
    return pd.DataFrame(lines, columns=columns).astype(numbers)


def trained(row: Row) -> str:
    """A model with its number of training runs, marked where intervals leave their spread out."""
    runs = len(row.train_seeds)
    mark = "" if runs >= TRAINING_SEEDS_NEEDED else f" {MARK}"
    return f"{row.model}, {runs} training run{'' if runs == 1 else 's'}{mark}"


def extent(*drawn: pd.DataFrame) -> list[float]:
    """All means and ends of intervals."""
    return pd.concat(drawn)[["mean", "low", "high"]].melt()["value"].dropna().tolist()


def fd_against_nfe(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """A panel for each student: one line per gamma, the teacher's solver in black.

    ``rows`` are of one experiment and protocol, each model at one step.
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
        for sampler, gamma, times, line in _by_gamma(students[students["model"] == model]):
            looks = style.color_and_marker(len(gammas) if gamma is None else gammas.index(gamma))
            dash = ":" if times else "-" if sampler == JUMP_SAMPLER else "--"
            draw_line(axes, "nfe", line, *looks, _line_label(sampler, gamma, times), dash)
        style.nfe_axis(axes, sorted(values["nfe"].unique()))
        style.log_if_positive(axes, extent(values))
        axes.set_title(values["trained"][values["model"] == model].iloc[0])
    style.legend(figure, grid)
    label_panels(grid, metric)
    return figure


def _by_gamma(cells: pd.DataFrame) -> Iterator[tuple[str, float | None, bool, pd.DataFrame]]:
    """Cells of one model by sampler, gamma and whether they have times of their own.

    All share their cell at NFE 1.
    """
    for sampler, own in cells.groupby("sampler"):
        single = own["gamma"].isna()
        for times in own.loc[~single, "times"].unique():
            line = own[single | (own["times"] == times)]
            for gamma in line["gamma"].dropna().unique():
                chosen = line["gamma"].isna() | (line["gamma"] == gamma)
                yield str(sampler), gamma, times, line[chosen]
        if single.all():
            yield str(sampler), None, False, own


def _line_label(sampler: str, gamma: float | None, times: bool) -> str:
    label = sampler_label(sampler)
    if gamma is None:
        return label or "NFE 1"
    notes = ", ".join(filter(None, [label, "its own times" if times else ""]))
    return f"γ = {gamma:g}" + (f" ({notes})" if notes else "")


def _teacher(axes: Axes, teacher: pd.DataFrame) -> None:
    # Without an end, so that there is one for each sampler.
    looks = itertools.cycle([("-", "X"), (":", "x"), ("-.", "+")])
    for sampler, (line, marker) in zip(samplers(jumps=False), looks, strict=False):
        solves = teacher[teacher["sampler"] == sampler].sort_values("nfe")
        if not solves.empty:
            label = f"{solves['trained'].iloc[0]}: {sampler_label(sampler)}"
            draw_line(axes, "nfe", solves, style.TEACHER, marker, label, line)
            finest = solves["mean"].iloc[-1]
            axes.axhline(finest, color=style.TEACHER, linestyle=(0, (1, 3)), linewidth=1.0)


def fd_against_gamma(rows: Sequence[Row], metric: str, title: str) -> Figure | None:
    """A panel for each student that has several gammas: one line per NFE; None without any."""
    values = points(rows, metric)
    values = values[~values["times"]]
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
                draw_line(axes, "gamma", line, *style.color_and_marker(index), f"NFE {nfe}")
                drawn.append(line)
        # To compare with: the student at NFE 1, and the teacher's finest solve.
        single = own[own["nfe"] == 1][:1]
        solves = values[(values["model"] == "teacher") & (values["sampler"] == ODE_SAMPLER)]
        finest = solves.sort_values("nfe")[-1:]
        for level, label, color, dash in (
            (single, "NFE", "#777777", ":"),
            (finest, "teacher, NFE", style.TEACHER, "--"),
        ):
            for nfe, mean in zip(level["nfe"], level["mean"], strict=True):
                name = f"{label} {nfe}"
                axes.axhline(mean, color=color, linestyle=dash, linewidth=1.2, label=name)
            drawn.append(level[["mean"]])
        axes.set_xticks(ticks, [f"{gamma:g}" for gamma in ticks])
        axes.set_xlabel("γ  (0: exact jumps, 1: fresh noise)")
        axes.set_title(own["trained"].iloc[0])
    for axes in grid:
        style.log_if_positive(axes, extent(*drawn))
    style.legend(figure, grid)
    label_panels(grid, metric)
    return figure


def comparable(rows: Sequence[Row], metric: str, models: Sequence[str]) -> list[str]:
    """Those of ``models`` that have values; none unless two have, one of them at several steps."""
    values = points([row for row in rows if row.model in models], metric)
    steps = values.groupby("model")["step"].nunique()
    if len(steps) < 2 or steps.max() < 2:
        return []
    return [model for model in models if model in steps]


def fd_against_step(
    rows: Sequence[Row], metric: str, models: Sequence[str], title: str, starts: Mapping[str, int]
) -> Figure | None:
    """A panel for NFE 1 and one for the most evaluations that all models share; a line per model.

    ``rows`` are of one experiment and protocol, at every step; a run that was forked at the step
    ``starts`` of another is drawn from there.
    """
    values = points(
        [r for r in rows if r.model in models and r.cell.sampler == JUMP_SAMPLER], metric
    )
    if values.empty:
        return None
    values["at"] = values["step"] + values["model"].map(starts).fillna(0)
    # Of each NFE, the cell on the grid with least noise between jumps.
    values = values[~values["times"]]
    gamma = values["gamma"].fillna(0.0)
    values = values[gamma == gamma.groupby([values["model"], values["nfe"]]).transform("min")]
    shared = set.intersection(*(set(own["nfe"]) for _, own in values.groupby("model")))
    if not shared:
        return None
    chosen = sorted({min(shared), max(shared)})
    values = values[values["nfe"].isin(chosen)]
    figure, grid = panels([f"NFE {nfe}" for nfe in chosen], title)
    for axes, nfe in zip(grid, chosen, strict=True):
        for index, model in enumerate(models):
            line = values[(values["model"] == model) & (values["nfe"] == nfe)]
            if not line.empty:
                draw_line(
                    axes, "at", line, *style.color_and_marker(index), line["trained"].iloc[0]
                )
        axes.set_xlabel("optimiser step")
        axes.set_title(f"NFE {nfe}")
        style.log_if_positive(axes, extent(values))
    style.legend(figure, grid)
    label_panels(grid, metric)
    return figure


def with_several_gammas(values: pd.DataFrame) -> pd.DataFrame:
    """The points whose model has two gammas or more at their NFE."""
    jumps = values[(values["sampler"] == JUMP_SAMPLER) & values["gamma"].notna()]
    jumps = jumps[~jumps["times"]]
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


def training(curves: Mapping[tuple[str, int], Curve], title: str) -> Figure:
    """A panel for each loss term, by (model, training seed), the teacher first.

    Every value is faint, their running mean strong.
    """
    terms: dict[str, list[tuple[str, pd.Series[float]]]] = {}
    for (model, _), curve in curves.items():
        for term, values in curve.items():
            # The teacher's loss is another quantity than its students' total.
            student = TERMS.get(term, term.replace("_", " "))
            name = f"teacher: {term}" if model == "teacher" else student
            terms.setdefault(name, []).append((model, values))
    figure, grid = panels(list(terms), title, (PANEL[0], 2.5), (1.2, 0.7), common_axes=False)
    looks = style.by_model(list(dict.fromkeys(model for model, _ in curves)))
    for axes, (name, lines) in zip(grid, terms.items(), strict=True):
        for model, values in lines:
            axes.plot(values, color=looks[model]["color"], alpha=0.22, linewidth=0.7)
            axes.plot(smoothed(values), label=model, **looks[model])
        style.log_if_positive(axes, pd.concat([values for _, values in lines]))
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("optimiser step")
    style.legend(figure, grid)
    return figure


def smoothed(values: pd.Series[float]) -> pd.Series[float]:
    """Exponential running mean over about a tenth of the values, without a bias at the start.

    With decay d it is :math:`m_n = \\sum_i d^{n-i} v_i / \\sum_i d^{n-i}`.
    """
    return values.ewm(alpha=1 / max(5.0, len(values) / 10)).mean()


def jump_errors(evaluations: Sequence[Evaluation], title: str) -> Figure | None:
    """A line per model, averaged over training seeds; None where nothing was measured.

    Only jumps to each evaluation's smallest level are drawn.
    """
    lines = []
    for evaluation in last_steps(evaluations):
        floor = min((jump.s for jump in evaluation.trajectory), default=0.0)
        jumps = [jump for jump in evaluation.trajectory if jump.s == floor]
        lines += [(evaluation.model, jump.t, jump.error) for jump in jumps]
    if not lines:
        return None
    measured = pd.DataFrame(lines, columns=["model", "t", "error"])
    means = measured.groupby(["model", "t"])["error"].mean()
    models = sorted(measured["model"].unique(), key=model_order)
    looks = style.by_model(models)
    figure, (axes,) = panels([""], title)
    for index, model in enumerate(models):
        axes.plot(
            means[model], marker=style.color_and_marker(index)[1], label=model, **looks[model]
        )
    axes.set_xscale("log")
    axes.set_xlabel("noise level t that the jump starts from")
    axes.set_ylabel("root mean square error per pixel")
    style.log_if_positive(axes, means)
    style.legend(figure, [axes])
    return figure
