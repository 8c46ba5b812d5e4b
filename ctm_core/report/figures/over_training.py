"""FD against training steps, for models that differ in one thing: the paper's figures 10 to 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER
from ctm_core.report.figures.curves import draw_line, label_panels, panels
from ctm_core.report.figures.style import COLORS, MARKERS, legend, log_if_positive
from ctm_core.report.scores import Row
from ctm_core.report.statistics import Summary

__all__ = ["comparable", "fd_against_step"]


def comparable(rows: Sequence[Row], metric: str, models: Sequence[str]) -> list[str]:
    """Those of ``models`` that have values; none unless two have, one of them at several steps."""
    steps: dict[str, set[int]] = {}
    for row in rows:
        if row.model in models and metric in row.metrics:
            steps.setdefault(row.model, set()).add(row.step)
    if len(steps) < 2 or max(map(len, steps.values())) < 2:
        return []
    return [model for model in models if model in steps]


def fd_against_step(
    rows: Sequence[Row],
    metric: str,
    models: Sequence[str],
    title: str,
    starts: Mapping[str, int],
) -> Figure | None:
    """A panel for NFE 1 and one for the most evaluations that all models share; a line a model.

    Parameters
    ----------
    rows
        Of one experiment and protocol, at every step.
    models
        Those that are compared, in the order of the legend.
    starts
        For a forked run the step of the other run that it starts from; it is drawn from there.
    """
    values: dict[str, dict[Cell, dict[float, Summary]]] = {}
    for row in rows:
        if row.model in models and metric in row.metrics:
            at = row.step + starts.get(row.model, 0)
            values.setdefault(row.model, {}).setdefault(row.cell, {})[at] = row.metrics[metric]
    chosen = _shared([list(cells) for cells in values.values()])
    if not chosen:
        return None
    figure, grid = panels([f"NFE {nfe}" for nfe in chosen], title)
    shown = []
    for axes, nfe in zip(grid, chosen, strict=True):
        for index, model in enumerate(models):
            cell = _cell(list(values.get(model, {})), nfe)
            if cell is None:
                continue
            points = values[model][cell]
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            draw_line(axes, points, color, marker, model)
            shown += [end for s in points.values() for end in (s.interval or (s.mean, s.mean))]
        axes.set_xlabel("optimiser step")
        axes.set_title(f"NFE {nfe}")
    for axes in grid:
        log_if_positive(axes, shown)
    legend(figure, grid)
    label_panels(grid, metric)
    return figure


def _shared(cells: Sequence[Sequence[Cell]]) -> list[int]:
    """NFE 1 and the most evaluations, as far as every model has them."""
    counts = [{cell.nfe for cell in own if _cell(own, cell.nfe) is not None} for own in cells]
    common = set.intersection(*counts) if counts else set()
    return sorted({min(common), max(common)}) if common else []


def _cell(cells: Sequence[Cell], nfe: int) -> Cell | None:
    """The cell of the gamma sampler with least noise between jumps."""
    fitting = [cell for cell in cells if cell.nfe == nfe and cell.sampler == JUMP_SAMPLER]
    return min(fitting, key=lambda cell: cell.gamma or 0.0, default=None)
