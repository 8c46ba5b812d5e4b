"""FD against training steps, for models that differ in one thing: the paper's figures 10 to 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ctm_core.config.sampler_traits import JUMP_SAMPLER
from ctm_core.report.figures.curves import draw_line, extent, label_panels, panels, points
from ctm_core.report.figures.style import COLORS, MARKERS, legend, log_if_positive
from ctm_core.report.scores import Row


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

    Parameters
    ----------
    rows
        Of one experiment and protocol, at every step.
    models
        Those that are compared, in the order of the legend.
    starts
        For a forked run the step of the other run that it starts from; it is drawn from there.
    """
    values = points(
        [r for r in rows if r.model in models and r.cell.sampler == JUMP_SAMPLER], metric
    )
    if values.empty:
        return None
    values["at"] = values["step"] + values["model"].map(starts).fillna(0)
    # Of each NFE, the cell with least noise between jumps.
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
                looks = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
                draw_line(axes, "at", line, *looks, model)
        axes.set_xlabel("optimiser step")
        axes.set_title(f"NFE {nfe}")
        log_if_positive(axes, extent(values))
    legend(figure, grid)
    label_panels(grid, metric)
    return figure
