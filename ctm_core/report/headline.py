"""What γ, NFE and the choice of student do, pair by pair, and names that readers see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER, ODE_SAMPLER, sampler_label
from ctm_core.config.sampling_grid import ADAPTIVE
from ctm_core.evaluation.metrics.names import ranks_samples
from ctm_core.report.scores import Row
from ctm_core.report.selection import last_steps, main_protocol, metrics_of
from ctm_core.report.statistics import Outcome, Summary, paired


class Effect(NamedTuple):
    """Two cells that differ in one thing. ``outcome`` says how the first compares."""

    group: str
    first: str
    second: str
    first_value: Summary
    second_value: Summary
    outcome: Outcome


def headline_metric(rows: Iterable[Row]) -> str | None:
    """The first column that ranks samples: the Fréchet distance of most, where there is one."""
    return next((metric for metric in metrics_of(rows) if ranks_samples(metric)), None)


def effects(rows: Sequence[Row], experiment: str, student: str = "ctm") -> list[Effect]:
    """What γ, NFE and the choice of student do: pairs of cells that differ in that alone."""
    rows = [row for row in rows if row.experiment == experiment]
    main = main_protocol(rows, experiment) if rows else ""
    late = last_steps(row for row in rows if row.protocol == main)
    metric = headline_metric(late)
    if metric is None:
        return []
    cells = {(row.model, row.cell): row.metrics[metric] for row in late if metric in row.metrics}
    own = sorted(
        (cell for model, cell in cells if model == student and cell.sampler == JUMP_SAMPLER),
        key=lambda cell: (cell.nfe, cell.gamma or 0.0, cell.times),
    )
    pairs: list[tuple[str, tuple[str, Cell], tuple[str, Cell]]] = []
    for nfe, times in dict.fromkeys((c.nfe, c.times) for c in own if c.gamma is not None):
        same = [cell for cell in own if (cell.nfe, cell.times) == (nfe, times)]
        if len(same) > 1:
            pairs.append(("γ", (student, same[0]), (student, same[-1])))
    for gamma in dict.fromkeys(cell.gamma for cell in own if cell.gamma is not None):
        line = [cell for cell in own if cell.gamma in (None, gamma) and not cell.times]
        pairs += [("NFE", (student, more), (student, less)) for less, more in pairwise(line)]
    for cell in own:
        if cell.times and (grid := cell._replace(times=())) in own:
            pairs.append(("times", (student, cell), (student, grid)))
    for other in dict.fromkeys(model for model, _ in cells if model not in ("teacher", student)):
        shared = [cell for cell in own if (other, cell) in cells]
        pairs += [("student", (student, cell), (other, cell)) for cell in shared]
    compared = []
    for group, one, two in pairs:
        first, second = cells[one], cells[two]
        names = [f"{model}, {cell_name(cell)}" for model, cell in (one, two)]
        outcome = paired(first, second).outcome
        compared.append(Effect(group, names[0], names[1], first, second, outcome))
    return compared


def cell_name(cell: Cell, teacher: bool = True) -> str:
    """A cell as text reads it: ``NFE 4, γ = 0.5``.

    The sampler is named where it is not the usual one: γ-sampling, or Heun's of a teacher. So are
    times that are not the grid's.
    """
    if cell.sampler == ADAPTIVE:
        return "likelihood"
    text = f"NFE {cell.nfe}"
    if cell.gamma is not None:
        text += f", γ = {cell.gamma:g}"
    label = "" if teacher and cell.sampler == ODE_SAMPLER else sampler_label(cell.sampler)
    times = [f"σ = {', '.join(cell.printed_times)}"] if cell.times else []
    notes = ", ".join(filter(None, [label, *times]))
    return f"{text} ({notes})" if notes else text
