"""Comparisons as text: a line per cell, then one in sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from ctm_core.report.agreement import Agreement, Line
from ctm_core.report.agreement.side_by_side import Pair, sum_of
from ctm_core.report.agreement.spread import FALSE_ALARM
from ctm_core.report.headline import cell_name
from ctm_core.report.typeset import plain_table


def agreement_text(made: Agreement) -> str:
    """Every cell with its verdict, the points on the way that differ, and the sum."""
    differing = [line for line in made.lines if line.way and line.verdict == "differs"]
    head = (
        f"{made.experiment} against {made.reference} ({len(made.settings)} processor settings: "
        f"{', '.join(made.settings)})"
    )
    parts = [head, plain_table(table_of(made.cells))]
    if differing:
        parts += ["On the way there:", plain_table(table_of(differing))]
    tested = sum(line.score is not None for line in made.lines)
    parts += [
        f"z: in standard errors. A run that is the reference's has any of its {tested} values "
        f"called different with a probability of at most {FALSE_ALARM:.0%} (Holm).",
        made.sentence,
    ]
    return "\n".join(parts)


def table_of(lines: Iterable[Line]) -> pd.DataFrame:
    """Lines of a comparison as a table of texts."""
    return pd.DataFrame(map(_line, lines))


def _line(line: Line) -> dict[str, str]:
    of = line.quantity
    return {
        "model": of.model,
        "step": str(of.step),
        "cell": of.name,
        "metric": of.metric,
        "reference": _short(line.expected),
        "trainings ±": _spread(line, line.trainings),
        "machines ±": _spread(line, line.machines),
        "this run": _short(line.value),
        "z": "" if line.score is None else f"{line.score.z:+.1f}",
        "verdict": f"{line.verdict} ({line.why})" if line.why else line.verdict,
    }


def _spread(line: Line, deviation: float | None) -> str:
    if deviation is None:
        return ""
    return f"{deviation:.2%}" if line.relative else f"{deviation:.2g}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def pairs_text(pairs: Sequence[Pair], first: object, second: object) -> str:
    """Two folders of results, cell by cell."""
    frame = pd.DataFrame(
        {
            "model": pair.key.model,
            "step": str(pair.key.step),
            "cell": cell_name(pair.key.cell, pair.key.model == "teacher"),
            "metric": pair.metric,
            "A": pair.first,
            "B": pair.second,
            "A - B": pair.difference,
            "paired over": pair.over,
            "verdict": f"{pair.verdict} ({pair.why})" if pair.why else pair.verdict,
        }
        for pair in pairs
    )
    return "\n".join([f"A: {first}, B: {second}", plain_table(frame), sum_of(pairs)])
