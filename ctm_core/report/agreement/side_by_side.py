"""Two folders of results, cell by cell: paired differences, where seeds pair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtr, stdtrit

from ctm_core.report.agreement import Verdict
from ctm_core.report.agreement.spread import FALSE_ALARM, holm
from ctm_core.report.scores import Row, RowKey, aggregate, read_evaluations, read_runs
from ctm_core.report.selection import metrics_of
from ctm_core.report.statistics import LEVEL, Difference, Summary, paired
from ctm_core.runtime.errors import UserError


@dataclass(frozen=True)
class Pair:
    """One cell of two tables."""

    key: RowKey
    metric: str
    verdict: Verdict
    why: str = ""
    first: str = ""
    second: str = ""
    difference: str = ""
    over: str = ""


class _Table:
    """The rows of a folder by their keys, and what its protocols are."""

    def __init__(self, results: Path) -> None:
        evaluations = read_evaluations(read_runs(results))
        self.protocols: dict[str, Any] = {}
        for evaluation in evaluations:
            self.protocols |= evaluation.protocols
        rows = aggregate(evaluations)
        self.rows: Mapping[RowKey, Row] = {row.key: row for row in rows}


def pairs_of(first: Path, second: Path) -> list[Pair]:
    """Compare the main metric of every cell of two folders of results.

    Raises
    ------
    UserError
        If a table is missing or damaged, or if the two have no cell in common.
    """
    one, two = _Table(first), _Table(second)
    if not one.rows.keys() & two.rows.keys():
        raise UserError(
            f"{first} and {second} have no cell in common; compare results of one experiment"
        )
    pairs: dict[RowKey, Pair] = {}
    differences: dict[RowKey, float] = {}
    for key in sorted(one.rows.keys() | two.rows.keys(), key=RowKey.order):
        rows = [table.rows[key] for table in (one, two) if key in table.rows]
        metric = metrics_of(rows)[0]
        if len(rows) < 2:
            side = "B" if key in one.rows else "A"
            pairs[key] = Pair(key, metric, "missing", f"{side} has no such cell")
            continue
        if one.protocols[key.protocol] != two.protocols[key.protocol]:
            pairs[key] = Pair(key, metric, "not comparable", "protocol: not the same facts")
            continue
        mine, theirs = (row.metrics.get(metric) for row in rows)
        if mine is None or theirs is None:
            pairs[key] = Pair(key, metric, "missing", f"{'A' if mine is None else 'B'} lacks it")
            continue
        difference = paired(mine, theirs)
        p = _p_value(difference, mine)
        shown = str(mine), str(theirs), str(difference), _over(difference)
        if p is None:
            pairs[key] = Pair(key, metric, "not comparable", difference.why, *shown)
            continue
        differences[key] = p
        pairs[key] = Pair(key, metric, "agrees", "", *shown)
    for key, wrong in zip(differences, holm(list(differences.values())), strict=True):
        if wrong:
            pairs[key] = Pair(**vars(pairs[key]) | {"verdict": "differs"})
    return list(pairs.values())


def _over(difference: Difference) -> str:
    if difference.method == "subsampling":
        return "one value each"
    kind = "trainings" if difference.method == "training_seeds" else "samplings alone"
    return f"{difference.pairs} {kind}" if difference.method else ""


def _p_value(difference: Difference, summary: Summary) -> float | None:
    """Two-sided p-value of a difference, from its interval."""
    if difference.half is None:
        return None if difference.mean else 1.0
    freedom = difference.pairs - 1 or min(error.freedom for error in summary.errors.values())
    error = difference.half / float(stdtrit(freedom, 0.5 + LEVEL / 2))
    if not error:
        return 0.0 if difference.mean else 1.0
    return float(2 * stdtr(freedom, -math.fabs(difference.mean) / error))


def sum_of(pairs: Sequence[Pair]) -> str:
    """The comparison in one line."""
    counts = Counter(pair.verdict for pair in pairs)
    words = {"agrees": "agree", "differs": "differ"}
    listed = (f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.items())
    verdict = "A agrees with B" if counts["agrees"] == len(pairs) else "A is not B"
    return (
        f"{len(pairs)} cells: {', '.join(listed)} (at most {FALSE_ALARM:.0%} false alarms over "
        f"all): {verdict}"
    )
