"""Published values beside ours: only where protocol and metric are the same.

``config/published.yaml`` lists what others published, each with its source. An entry that names a
row of ours by an explicit key (experiment, model, step, sampler, γ, NFE) is set beside it if its
protocol is that row's and the metric has the same name and number of samples; the others that
name a row are listed with the reason why not. Two protocols never share a difference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ctm_core.config import read_yaml, validated
from ctm_core.config.published import Literature, Published
from ctm_core.evaluation.metrics import names
from ctm_core.report.scores import Row, RowKey
from ctm_core.report.selection import families, family, last_steps
from ctm_core.runtime.errors import UserError


@dataclass(frozen=True)
class Beside:
    """A published value that is compared with one of ours."""

    value: float
    entry: Published
    #: (ours - published) in half-widths of our interval; None without an interval, and where the
    #: published value was read off a figure.
    delta: float | None

    @property
    def source(self) -> str:
        plotted = ", read off the plot" if self.entry.confidence == "plot" else ""
        return self.entry.source + plotted


class Joined(NamedTuple):
    """A published value, and the row of ours that its entry names."""

    entry: Published
    kind: str
    value: float
    row: Row
    metric: str  #: ours of the same kind, empty if there is none
    beside: Beside | None
    why: str  #: the two do not measure one quantity; empty if they do


def load_literature(path: str | os.PathLike[str]) -> Literature:
    """Read and validate the list of published values."""
    return validated(Literature, read_yaml(Path(path)), path)


def printed(value: float) -> str:
    """A published value with two decimals, or with more where it has more."""
    return max(f"{value:.2f}", f"{value:.10g}", key=len)


def beside(
    rows: Sequence[Row], literature: Literature, path: str | os.PathLike[str]
) -> dict[tuple[RowKey, str], Beside]:
    """Published values by our row and metric."""
    # An entry that names a step comes later, and so goes before one of the last step.
    known = sorted(
        joined(rows, literature, path),
        key=lambda one: one.entry.ours is not None and bool(one.entry.ours.step),
    )
    return {(one.row.key, one.metric): one.beside for one in known if one.beside is not None}


def joined(
    rows: Sequence[Row], literature: Literature, path: str | os.PathLike[str]
) -> list[Joined]:
    """Every published value whose entry names a row of ours, in the order of the list.

    A UserError if an entry names a cell that an evaluated model does not have.
    """
    return [
        _join(entry, kind, value, cells)
        for entry in literature.entries()
        if (cells := _named(entry, rows, path))
        for kind, value in entry.row.values.items()
    ]


def _named(entry: Published, rows: Sequence[Row], path: str | os.PathLike[str]) -> list[Row]:
    """The rows that an entry names: one cell, under whatever protocols."""
    ours = entry.ours
    if ours is None:
        return []
    given = [
        row
        for row in (rows if ours.step else last_steps(rows))
        if (row.experiment, row.model, row.step)
        == (ours.experiment, ours.model, ours.step or row.step)
    ]
    cells = [row for row in given if row.cell == ours.cell]
    if given and not cells:
        raise UserError(
            f"{path}: {entry.key} names {ours}, which the table does not have; "
            "correct its `ours`, or remove it"
        )
    return cells


def _join(entry: Published, kind: str, value: float, cells: Sequence[Row]) -> Joined:
    near = families("fd" if kind == "fid" else kind)
    candidates = [
        (row.protocol != entry.protocol, not _is_alike(entry, kind, metric), row, metric)
        for row in cells
        for metric in names.in_order(row.metrics)
        if family(metric) in near
    ]
    if not candidates:
        return Joined(entry, kind, value, cells[0], "", None, "not measured here")
    other, unlike, row, metric = min(candidates, key=lambda one: one[:2])
    if other or unlike:
        count = names.parse(metric).n
        why = "another number of samples" if count is None else f"ours of {count:,} samples"
        if other:
            why = f"another protocol: {row.protocol}"
        return Joined(entry, kind, value, row, metric, None, why)
    summary, delta = row.metrics[metric], None
    if summary.half and entry.confidence != "plot":
        delta = (summary.mean - value) / summary.half
    return Joined(entry, kind, value, row, metric, Beside(value, entry, delta), "")


def _is_alike(entry: Published, kind: str, metric: str) -> bool:
    """Whether a metric is of a kind and, unless it is FID, of as many samples as the entry."""
    if family(metric) != kind:
        return False
    return kind == "fid" or (entry.samples is not None and names.parse(metric).n == entry.samples)
