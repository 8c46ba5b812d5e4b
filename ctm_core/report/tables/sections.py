"""What a table for readers is made of: one section a protocol, few columns at a time.

A section holds the rows of one experiment under one protocol, because values of two protocols may
not stand in one column. Its metrics are dealt to groups, each a table of its own that fits a page:
first the main metric alone, then the rest by kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctm_core.config.metric_registry import METRICS
from ctm_core.evaluation.metrics import names
from ctm_core.report.literature import family
from ctm_core.report.scores import Evaluation, Row, last_steps, metrics_of, ranked

__all__ = ["Section", "headings", "protocol_facts", "sections"]


@dataclass(frozen=True)
class Section:
    """The rows of one experiment under one protocol.

    Attributes
    ----------
    groups
        Metrics, those of one table together; the first group is the main metric.
    best, second
        For each metric, the row of the best mean and the one after it, where values can be better.
    """

    experiment: str
    protocol: str
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]
    best: Mapping[str, Row]
    second: Mapping[str, Row]

    @property
    def several_steps(self) -> bool:
        """Whether a model stands here with several steps."""
        return len(last_steps(self.rows)) != len(self.rows)

    def scored(self, group: Sequence[str]) -> list[Row]:
        """The rows that have any metric of a group."""
        return [row for row in self.rows if any(metric in row.metrics for metric in group)]


def sections(rows: Sequence[Row]) -> list[Section]:
    """The sections of a table, in its order."""
    return [
        _section([r for r in rows if (r.experiment, r.protocol) == place])
        for place in dict.fromkeys((row.experiment, row.protocol) for row in rows)
    ]


def _section(rows: Sequence[Row]) -> Section:
    order = {metric: ranked(rows, metric) for metric in metrics_of(rows)}
    return Section(
        rows[0].experiment,
        rows[0].protocol,
        tuple(rows),
        _groups(list(order)),
        {metric: found[0] for metric, found in order.items() if found},
        {metric: found[1] for metric, found in order.items() if len(found) > 1},
    )


def _groups(metrics: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    tables = {name: known.table for known in METRICS.values() for name in known.families}
    groups: dict[str, list[str]] = {table: [] for table in tables.values() if table}
    for metric in metrics[1:]:
        groups.setdefault(tables.get(family(metric), ""), []).append(metric)
    return (tuple(metrics[:1]), *(tuple(group) for group in groups.values() if group))


def protocol_facts(records: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """What the evaluations state about each protocol."""
    return {name: facts for record in records for name, facts in record.protocols.items()}


def headings(group: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Metrics as a heading says them; with features and samples where ``rows`` have two alike."""
    every = [names.display(metric) for metric in metrics_of(rows)]
    shown = [(names.display(metric), names.detail(metric)) for metric in group]
    return [f"{name} ({behind})" if every.count(name) > 1 else name for name, behind in shown]
