"""One comparison of a claim, decided by the 95% interval of a paired difference.

With d = first - c * second and margin m:

=========  =======================  =========================
direction  reproduced               contradicted
=========  =======================  =========================
lower      the interval below -m    the interval above -m
higher     the interval above m     the interval below m
within     the interval in (-m, m)  the interval outside of it
=========  =======================  =========================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ctm_core.config.claims import ClaimedCell, Comparison, PublishedValue
from ctm_core.config.published import Literature
from ctm_core.evaluation.metrics import names
from ctm_core.report.headline import cell_name
from ctm_core.report.scores import Row
from ctm_core.report.selection import family, metric_of
from ctm_core.report.statistics import Difference, Summary, paired

Verdict = Literal["reproduced", "contradicted", "undecided", "not testable"]


@dataclass(frozen=True)
class Compared:
    """One comparison of a claim and what the table says of it.

    Values and their difference are means with intervals as text, empty where the table lacks a
    cell; ``why`` says so.
    """

    text: str
    verdict: Verdict
    metric: str = ""
    protocol: str = ""
    first_value: str = ""
    second_value: str = ""
    difference: str = ""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    pairs: int = 0
    why: str = ""

    @property
    def values(self) -> str:
        """Both values; empty where the table lacks one."""
        return f"{self.first_value} against {self.second_value}" if self.first_value else ""

    @property
    def difference_and_why(self) -> str:
        """The difference, and why it has no interval."""
        return self.difference + (f" ({self.why})" if self.why and self.difference else "")


def compare(
    comparison: Comparison, rows: Sequence[Row], protocol: str, literature: Literature
) -> Compared:
    """What the rows of one experiment under ``protocol`` say of a comparison."""
    text = sentence(comparison, literature)
    metric = metric_of(rows, comparison.metric)
    if metric is None:
        kind = {"fd": "Fréchet distance"}.get(comparison.metric, comparison.metric)
        kind = kind.replace("_", " ")
        return Compared(text, "not testable", why=f"the table has no {kind} under {protocol}")

    def without(why: str) -> Compared:
        return Compared(text, "not testable", metric, protocol, why=why)

    first = _value(comparison.first, rows, metric)
    if isinstance(comparison.second, PublishedValue):
        entry = literature.get(comparison.second.published)
        number = None if entry is None else entry.row.values.get(family(metric))
        if entry is None or number is None or entry.protocol != protocol:
            return without(
                f"the published value is not a {names.display(metric)} under {protocol}"
            )
        second: Summary | None = Summary(number)
    else:
        second = _value(comparison.second, rows, metric)
    for claimed, value in ((comparison.first, first), (comparison.second, second)):
        if value is None and isinstance(claimed, ClaimedCell):
            return without(f"the table has no {names.display(metric)} of {_cell_text(claimed)}")
    assert first is not None and second is not None
    if isinstance(comparison.second, PublishedValue):
        difference = _from_constant(first, comparison.factor * second.mean)
    else:
        difference = paired(first, second, comparison.factor)
    verdict = _verdict(difference, comparison)
    shown = str(first), str(second), str(difference)
    return Compared(text, verdict, metric, protocol, *shown, **asdict(difference))


def _from_constant(first: Summary, number: float) -> Difference:
    """The difference from a number that has no seeds: the interval of the cell, shifted."""
    mean = first.mean - number
    if first.half is None:
        return Difference(mean, why="there is a single value without a standard error")
    return Difference(mean, mean - first.half, mean + first.half, first.method, 1)


def _verdict(difference: Difference, comparison: Comparison) -> Verdict:
    low, high, margin = difference.low, difference.high, comparison.margin
    if low is None or high is None:
        return "undecided"
    if comparison.direction == "within":
        holds, fails = -margin < low and high < margin, low > margin or high < -margin
    elif comparison.direction == "lower":
        holds, fails = high < -margin, low > -margin
    else:
        holds, fails = low > margin, high < margin
    return "reproduced" if holds else "contradicted" if fails else "undecided"


def _value(claimed: ClaimedCell, rows: Iterable[Row], metric: str) -> Summary | None:
    fitting = [
        row.metrics[metric]
        for row in rows
        if row.model == claimed.model and claimed.fits(row.cell) and metric in row.metrics
    ]
    return fitting[0] if len(fitting) == 1 else None


def sentence(comparison: Comparison, literature: Literature) -> str:
    """``ctm at NFE 1 lower than 0.5 × teacher at NFE 3``."""
    second = comparison.second
    if isinstance(second, ClaimedCell):
        other = _cell_text(second)
    else:
        entry = literature.get(second.published)
        other = f"the published value of {second.published if entry is None else entry.source}"
    if comparison.factor != 1:
        other = f"{comparison.factor:g} × {other}"
    first = _cell_text(comparison.first)
    if comparison.metric != "fd":
        first = f"{comparison.metric.replace('_', ' ')} of {first}"
    if comparison.direction == "within":
        return f"{first} within {comparison.margin:g} of {other}"
    by = f" by {comparison.margin:g}" if comparison.margin else ""
    return f"{first} {comparison.direction} than {other}{by}"


def _cell_text(claimed: ClaimedCell) -> str:
    if claimed.cell is None:
        return claimed.model
    return f"{claimed.model} at {cell_name(claimed.cell, claimed.model == 'teacher')}"
