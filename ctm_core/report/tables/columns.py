"""Tables for programs: every value (``runs.csv``), every cell (``table.csv``), the means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ctm_core.config import Cell
from ctm_core.evaluation.evaluation_file import Evaluation, Score
from ctm_core.report.csv_files import csv_text
from ctm_core.report.literature import Beside
from ctm_core.report.scores import Row, RowKey, cell_order
from ctm_core.report.selection import metrics_of

#: Published values by our row and metric.
Compared = Mapping[tuple[RowKey, str], Beside]

RUN_COLUMNS = (
    "experiment", "model", "step", "train_seed", "sample_seed", "sampler", "gamma", "nfe",
    "times", "protocol", "metric", "n", "value", "checkpoint_sha256", "train_hash",
)  # fmt: skip
CELL_COLUMNS = (
    "experiment", "dataset", "model", "objective", "step", "sampler", "gamma", "nfe", "times",
    "protocol", "train_seeds", "sample_seeds", "n_samples", "params_m", "checkpoint_sha256",
    "train_hash", "code_version",
)  # fmt: skip
METRIC_COLUMNS = (
    "mean", "std", "ci95_low", "ci95_high", "ci_method", "min3",
    "published", "published_source", "delta",
)  # fmt: skip


def number(value: float | None) -> str:
    """Ten significant digits, the same on every machine; empty for None."""
    return "" if value is None else f"{value:.10g}"


def runs_csv(records: Iterable[Evaluation]) -> str:
    """The text of ``runs.csv``: every value of the given evaluations."""
    lines = [
        {**dict(record), **dict(score), **_cell(score.cell)}
        for record in records
        for score in sorted(record.rows, key=_score_order)
    ]
    return csv_text(pd.DataFrame(lines, columns=RUN_COLUMNS))


def _cell(cell: Cell) -> dict[str, Any]:
    return cell._asdict() | {"times": ";".join(cell.printed_times)}


def _score_order(score: Score) -> tuple[Any, ...]:
    seed = score.sample_seed
    return score.protocol, cell_order(score.cell), score.metric, isinstance(seed, str), seed


def table_csv(rows: Sequence[Row], compared: Compared) -> str:
    """The text of ``table.csv``: every cell, and what others have published of it."""
    metrics = sorted(metrics_of(rows))
    columns = [*CELL_COLUMNS, *(f"{m}_{column}" for m in metrics for column in METRIC_COLUMNS)]
    return csv_text(pd.DataFrame([_line(row, compared) for row in rows], columns=columns))


def _line(row: Row, compared: Compared) -> dict[str, Any]:
    line = vars(row) | _cell(row.cell)
    line |= {name: ";".join(map(str, line[name])) for name in ("train_seeds", "sample_seeds")}
    for metric, summary in row.metrics.items():
        values: tuple[float | str | None, ...] = (
            summary.mean, summary.std, summary.low, summary.high, summary.method or None,
            summary.minimum_of_three,
        )  # fmt: skip
        published = compared.get((row.key, metric))
        if published is not None:
            values += (published.value, published.source, published.delta)
        # The last columns are empty where nothing is published.
        line |= {f"{metric}_{name}": v for name, v in zip(METRIC_COLUMNS, values, strict=False)}
    return line


def means(rows: Iterable[Row]) -> dict[str, Any]:
    """Means by experiment, model, step, cell and metric: what a comparison of versions reads."""
    nested: dict[str, Any] = {}
    for row in rows:
        level = nested
        for name in (row.experiment, row.model, f"step-{row.step}", row.cell.label):
            level = level.setdefault(name, {})
        for metric, summary in row.metrics.items():
            level.setdefault(row.protocol, {})[metric] = summary.mean
    return nested
