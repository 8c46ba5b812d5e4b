"""The table as files: every value (``runs.csv``), every cell (``table.csv`` and ``table.md``).

Equal inputs give equal bytes, in whatever order the files are named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctm_core.files import write_json, write_text
from ctm_core.scores import (
    Evaluation,
    Row,
    aggregate,
    best,
    cell_order,
    last_steps,
    metrics_of,
    read_evaluations,
)

__all__ = ["number", "runs_csv", "write_tables"]

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


def write_tables(evaluations: Sequence[Path], output: Path) -> None:
    """Write ``runs.csv``, ``table.csv``, ``table.md`` and ``metrics.json`` into ``output``.

    Raises
    ------
    UserError
        As :func:`read_evaluations` and :func:`aggregate`.
    """
    records = read_evaluations(evaluations)
    rows = aggregate(records)
    write_text(output / "runs.csv", runs_csv(records))
    write_text(output / "table.csv", _table(rows))
    write_text(output / "table.md", _markdown(rows, records))
    write_json(output / "metrics.json", _means(rows))


def runs_csv(records: Iterable[Evaluation]) -> str:
    """The text of ``runs.csv``: every value of the given evaluations."""
    return _csv(RUN_COLUMNS, _run_lines(records))


def number(value: float | None) -> str:
    """Ten significant digits, the same on every machine; empty for None."""
    return "" if value is None else f"{value:.10g}"


def _means(rows: Iterable[Row]) -> dict[str, Any]:
    """Means by experiment, model, step, cell and metric: what a comparison of versions reads."""
    nested: dict[str, Any] = {}
    for row in rows:
        level = nested
        for name in (row.experiment, row.model, f"step-{row.step}", row.cell.label):
            level = level.setdefault(name, {})
        for metric, summary in row.metrics.items():
            level.setdefault(row.protocol, {})[metric] = summary.mean
    return nested


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
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


def _table(rows: Sequence[Row]) -> str:
    metrics = sorted(metrics_of(rows))
    columns = [*CELL_COLUMNS, *(f"{m}_{column}" for m in metrics for column in METRIC_COLUMNS)]
    return _csv(columns, ([*_cell_fields(row), *_metric_fields(row, metrics)] for row in rows))


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


def _metric_fields(row: Row, metrics: Iterable[str]) -> Iterable[str]:
    for metric in metrics:
        summary = row.metrics.get(metric)
        if summary is None:
            yield from [""] * len(METRIC_COLUMNS)
            continue
        yield from (number(v) for v in (summary.mean, summary.std, summary.low, summary.high))
        yield summary.method
        yield number(summary.minimum_of_three)
        # No published value shares a protocol with a row yet, so there is nothing to compare.
        yield from ("", "", "")


# -- reading matter -----------------------------------------------------------------------------


def _markdown(rows: Sequence[Row], records: Sequence[Evaluation]) -> str:
    parts = [
        "# Results",
        "Fréchet distances (FD): lower is better. [low, high] is a 95% interval of the mean. "
        "Values are comparable within a section only: another protocol measures another quantity.",
    ]
    facts = {name: facts for record in records for name, facts in record.protocols.items()}
    for experiment, protocol in dict.fromkeys((row.experiment, row.protocol) for row in rows):
        section = [r for r in rows if (r.experiment, r.protocol) == (experiment, protocol)]
        parts += [f"## {experiment} · {protocol}", _protocol_line(facts[protocol])]
        parts += [_markdown_table(section)]
        if any(row.rank_deficient for row in section):
            parts += [
                "† rank-deficient covariance: fewer samples than features, or constant features."
            ]
    return "\n\n".join(parts) + "\n"


def _protocol_line(facts: Mapping[str, Any]) -> str:
    reference = facts.get("reference", {})
    size = facts.get("input_size")
    return (
        f"Features `{facts.get('features')}` (weights {str(facts.get('weights_sha256'))[:12]}) at "
        f"{size}×{size}, resize {facts.get('resize')}; reference: {reference.get('n')} images of "
        f"the {reference.get('split')} set; {facts.get('samples')} samples a seed, seeds "
        f"{facts.get('seeds')}; rounding {facts.get('rounding')}, labels {facts.get('labels')}, "
        f"{facts.get('precision')}."
    )


def _markdown_table(rows: Sequence[Row]) -> str:
    metrics = metrics_of(rows)
    steps = len(last_steps(rows)) != len(rows)
    winners = {metric: best(rows, metric) for metric in metrics}
    head = ["model", *(["step"] if steps else []), "sampler", "γ", "NFE"]
    head += [f"{metric} [low, high]" for metric in metrics]
    head += ["interval over", "n", "training seeds", "sampling seeds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        line = [row.model, *([str(row.step)] if steps else []), row.cell.sampler]
        line += [number(row.cell.gamma), str(row.cell.nfe)]
        for metric in metrics:
            text = _markdown_value(row, metric)
            line.append(f"**{text}**" if winners[metric] is row else text)
        methods = {summary.method: None for summary in row.metrics.values() if summary.method}
        line += [", ".join(methods).replace("_", " "), str(row.n_samples)]
        line += [_seeds(row, metrics), ", ".join(map(str, row.sample_seeds))]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_value(row: Row, metric: str) -> str:
    summary = row.metrics.get(metric)
    if summary is None:
        return ""
    return str(summary) + (" †" if metric in row.rank_deficient else "")


def _seeds(row: Row, metrics: Sequence[str]) -> str:
    """Training seeds, with each one's mean where there are two or more."""
    if len(row.train_seeds) == 1:
        return str(row.train_seeds[0])
    means = next(row.metrics[m].by_train_seed for m in metrics if m in row.metrics)
    return ", ".join(f"{seed}: {mean:.4g}" for seed, mean in means.items())
