"""Tables for programs: every value (``runs.csv``), every cell (``table.csv``), the means."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctm_core.report.literature import Beside
from ctm_core.report.scores import Evaluation, Row, RowKey, cell_order, metrics_of

__all__ = ["Compared", "csv_text", "means", "number", "runs_csv", "table_csv"]

#: Published values by our row and metric.
Compared = Mapping[tuple[RowKey, str], Beside]

RUN_COLUMNS = (
    "experiment",
    "model",
    "step",
    "train_seed",
    "sample_seed",
    "sampler",
    "gamma",
    "nfe",
    "protocol",
    "metric",
    "n",
    "value",
    "checkpoint_sha256",
    "train_hash",
)
CELL_COLUMNS = (
    "experiment",
    "dataset",
    "model",
    "objective",
    "step",
    "sampler",
    "gamma",
    "nfe",
    "protocol",
    "train_seeds",
    "sample_seeds",
    "n_samples",
    "params_m",
    "checkpoint_sha256",
    "train_hash",
    "code_version",
)
METRIC_COLUMNS = (
    "mean",
    "std",
    "ci95_low",
    "ci95_high",
    "ci_method",
    "min3",
    "published",
    "published_source",
    "delta",
)


def runs_csv(records: Iterable[Evaluation]) -> str:
    """The text of ``runs.csv``: every value of the given evaluations."""
    return csv_text(RUN_COLUMNS, _run_lines(records))


def number(value: float | None) -> str:
    """Ten significant digits, the same on every machine; empty for None."""
    return "" if value is None else f"{value:.10g}"


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


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with a header, lines ended by a newline alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def _run_lines(records: Iterable[Evaluation]) -> Iterable[list[object]]:
    for record in records:
        scores = sorted(
            record.rows,
            key=lambda s: (
                s.protocol,
                cell_order(s.cell),
                s.metric,
                isinstance(s.sample_seed, str),
                s.sample_seed,
            ),
        )
        for score in scores:
            yield [
                record.experiment,
                record.model,
                record.step,
                record.train_seed,
                score.sample_seed,
                score.sampler,
                number(score.cell.gamma),
                score.nfe,
                score.protocol,
                score.metric,
                score.n,
                number(score.value),
                record.checkpoint_sha256,
                record.train_hash,
            ]


def table_csv(rows: Sequence[Row], compared: Compared) -> str:
    """The text of ``table.csv``: every cell, with what was published of it."""
    metrics = sorted(metrics_of(rows))
    columns = [*CELL_COLUMNS, *(f"{m}_{column}" for m in metrics for column in METRIC_COLUMNS)]
    return csv_text(
        columns, ([*_cell_fields(row), *_metric_fields(row, metrics, compared)] for row in rows)
    )


def _cell_fields(row: Row) -> list[object]:
    return [
        row.experiment,
        row.dataset,
        row.model,
        row.objective,
        row.step,
        row.cell.sampler,
        number(row.cell.gamma),
        row.cell.nfe,
        row.protocol,
        ";".join(map(str, row.train_seeds)),
        ";".join(map(str, row.sample_seeds)),
        row.n_samples,
        number(row.params_m),
        row.checkpoint_sha256,
        row.train_hash,
        row.code_version,
    ]


def _metric_fields(row: Row, metrics: Iterable[str], compared: Compared) -> Iterable[str]:
    for metric in metrics:
        summary = row.metrics.get(metric)
        if summary is None:
            yield from [""] * len(METRIC_COLUMNS)
            continue
        yield from (number(v) for v in (summary.mean, summary.std, summary.low, summary.high))
        yield summary.method
        yield number(summary.minimum_of_three)
        published = compared.get((row.key, metric))
        if published is None:
            yield from ("", "", "")
        else:
            yield number(published.value)
            yield published.source
            yield number(published.delta)
