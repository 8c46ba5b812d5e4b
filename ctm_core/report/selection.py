"""Which rows of a table are read, and which of its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.evaluation.metrics import names
from ctm_core.report.scores import Row
from ctm_core.runtime.errors import UserError

#: Has the experiment, model and step that it is of.
Evaluated = TypeVar("Evaluated", Row, Evaluation)


def metrics_of(rows: Iterable[Row]) -> list[str]:
    """Every metric that occurs in ``rows``, in the order of the table's columns."""
    return names.in_order(metric for row in rows for metric in row.metrics)


def family(metric: str) -> str:
    """The family of a metric's name; empty if nobody knows it."""
    try:
        return names.parse(metric).family
    except ValueError:
        return ""


def families(kind: str) -> tuple[str, ...]:
    """The families that a kind of metric stands for: ``fd`` is any Fréchet distance."""
    return ("fid", "fd") if kind == "fd" else (kind,)


def metric_of(rows: Iterable[Row], kind: str) -> str | None:
    """The metric of a kind that has most samples; None without one."""
    wanted = families(kind)
    return next((metric for metric in metrics_of(rows) if family(metric) in wanted), None)


def ranked(rows: Iterable[Row], metric: str) -> list[Row]:
    """The rows that have a metric, the best mean first; none if no value of it is better.

    A UserError if they are of several protocols, whose values nothing can rank.
    """
    scored = [row for row in rows if metric in row.metrics]
    protocols = sorted({row.protocol for row in scored})
    if len(protocols) > 1:
        raise UserError(
            f"values of {metric} under the protocols {' and '.join(protocols)} may not share a "
            "column; make a table of each"
        )
    direction = names.direction(metric)
    if not direction:
        return []
    sign = 1.0 if direction == "lower" else -1.0
    return sorted(scored, key=lambda row: sign * row.metrics[metric].mean)


def best(rows: Iterable[Row], metric: str) -> Row | None:
    """The row of best mean; None without one."""
    return next(iter(ranked(rows, metric)), None)


def main_protocol(rows: Iterable[Row], experiment: str) -> str:
    """The protocol that scores most of an experiment's cells; the first by name among equals."""
    counts = Counter(row.protocol for row in rows if row.experiment == experiment)
    return min(counts, key=lambda name: (-counts[name], name))


def last_steps(rows: Iterable[Evaluated]) -> list[Evaluated]:
    """Only the rows, or evaluations, of each model's last evaluated step."""
    rows = list(rows)
    last = {(r.experiment, r.model): r.step for r in sorted(rows, key=lambda row: row.step)}
    return [row for row in rows if row.step == last[row.experiment, row.model]]
