"""``table.md`` and ``table.tex``: one section per protocol, few columns at a time.

A section holds the rows of one experiment under one protocol, because values of two protocols may
not share a column. Its metrics are dealt to groups, each a table of its own that fits a page:
first the main metric alone, then the rest by kind. The best of a column is bold; in LaTeX the
second best is underlined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ctm_core.config.metric_registry import METRICS
from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.evaluation.metrics import names
from ctm_core.report.literature import printed
from ctm_core.report.scores import Row
from ctm_core.report.selection import family, last_steps, metrics_of, ranked
from ctm_core.report.statistics import MARKED, over
from ctm_core.report.tables.columns import Compared, number
from ctm_core.report.typeset import (
    LATEX_HEAD,
    Value,
    escape,
    latex_table,
    markdown_table,
    sampling_alone,
    values,
)
from ctm_core.runtime.untrusted import printable, table_cell

#: Characters of a protocol's sentence.
LONGEST = 2000


class Section(NamedTuple):
    """The rows of one experiment under one protocol."""

    experiment: str
    protocol: str
    protocol_line: str
    #: The first has the main metric. Columns have two names, in Markdown and in LaTeX; an empty
    #: one leaves the column out there.
    tables: tuple[pd.DataFrame, ...]


def sections(
    rows: Sequence[Row], records: Sequence[Evaluation], compared: Compared
) -> list[Section]:
    """The sections of a table, in its order."""
    facts = {name: known for record in records for name, known in record.protocols.items()}
    made = []
    for experiment, protocol in dict.fromkeys((row.experiment, row.protocol) for row in rows):
        own = [r for r in rows if (r.experiment, r.protocol) == (experiment, protocol)]
        tables = tuple(_table(own, group, compared) for group in _groups(metrics_of(own)))
        made.append(Section(experiment, protocol, protocol_line(facts[protocol]), tables))
    return made


def _groups(metrics: Sequence[str]) -> list[list[str]]:
    tables = {name: known.table for known in METRICS.values() for name in known.families}
    groups: dict[str, list[str]] = {table: [] for table in tables.values() if table}
    for metric in metrics[1:]:
        groups.setdefault(tables.get(family(metric), ""), []).append(metric)
    return [list(metrics[:1]), *filter(None, groups.values())]


def protocol_line(facts: Mapping[str, Any]) -> str:
    """A protocol in one sentence, from what an evaluation states of it."""
    if not facts.get("features"):
        return printable(f"{'; '.join(_words(facts))}.", LONGEST)
    reference = facts.get("reference")
    reference = reference if isinstance(reference, dict) else {}
    size = facts.get("input_size")
    sampled = facts.get("sampling_precision")
    return printable(
        f"Features {facts.get('features')} (weights {str(facts.get('weights_sha256'))[:12]}) at "
        f"{size}×{size}, resize {facts.get('resize')}; reference: {reference.get('n')} images of "
        f"the {reference.get('split')} set; {facts.get('samples')} samples per seed, seeds "
        f"{facts.get('seeds')}; rounding {facts.get('rounding')}, labels {facts.get('labels')}, "
        f"{facts.get('precision')}{f', sampled in {sampled}' if sampled else ''}.",
        LONGEST,
    )


def _words(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(facts.items()):
        if isinstance(value, dict):
            value = " ".join(str(part) for pair in value.items() for part in pair)
        if value is not None:
            yield f"{key} {value}"


def _table(own: Sequence[Row], group: Sequence[str], compared: Compared) -> pd.DataFrame:
    rows = [row for row in own if any(metric in row.metrics for metric in group)]
    metrics = metrics_of(own)
    # The metric tells columns of the same heading apart.
    columns: dict[tuple[str, str, str], list[Any]] = {
        ("model", "model", ""): [r.model for r in rows]
    }
    if len(last_steps(own)) != len(own):
        columns["step", "step", ""] = [str(row.step) for row in rows]
    columns["sampler", "sampler", ""] = [row.cell.sampler for row in rows]
    columns["γ", "γ", ""] = [number(row.cell.gamma) for row in rows]
    columns["NFE", "NFE", ""] = [str(row.cell.nfe) for row in rows]
    if any(row.cell.times for row in rows):
        columns["σ", "σ", ""] = [", ".join(row.cell.printed_times) for row in rows]
    for metric in group:
        first, second, *_ = [*ranked(own, metric), None, None]
        columns[f"{metric} [low, high]", _heading(metric, metrics), metric] = [
            Value(
                row.metrics[metric],
                "best" if row is first else "second" if row is second else "",
                metric in row.rank_deficient,
            )
            if metric in row.metrics
            else ""
            for row in rows
        ]
        known = [compared.get((row.key, metric)) for row in rows]
        if any(known):
            columns["published", "", metric] = [
                f"{printed(one.value)} ({one.source})" if one else "" for one in known
            ]
            columns["Δ", "", metric] = [
                "" if one is None or one.delta is None else f"{one.delta:+.1f}" for one in known
            ]
            columns["", "published", metric] = [printed(one.value) if one else "" for one in known]
    if list(group) == metrics[:1]:
        (metric,) = group
        columns["interval over", "", ""] = [
            over(row.metrics[metric].method, len(row.train_seeds), row.sample_seeds)
            for row in rows
        ]
        columns["n", "", ""] = [str(row.n_samples) for row in rows]
        columns["training seeds", "", ""] = [training_seeds(row, metric) for row in rows]
        columns["sampling seeds", "", ""] = [", ".join(map(str, r.sample_seeds)) for r in rows]
    return pd.DataFrame(columns)


def _heading(metric: str, metrics: Sequence[str]) -> str:
    """A metric's name; with features and samples where several of the section share the name."""
    shown = names.display(metric)
    alike = sum(names.display(other) == shown for other in metrics) > 1
    return f"{shown} ({names.detail(metric)})" if alike else shown


def training_seeds(row: Row, metric: str) -> str:
    """Training seeds, with each one's mean of a metric where there are several."""
    if len(row.train_seeds) == 1:
        return str(row.train_seeds[0])
    means = row.metrics[metric].by_train_seed
    return ", ".join(f"{seed}: {mean:.4g}" for seed, mean in means.items())


def _named(table: pd.DataFrame, level: int) -> pd.DataFrame:
    """The columns that have a name in Markdown (level 0) or LaTeX (1), under that name."""
    headings = table.columns.get_level_values(level)
    return table.set_axis(headings, axis="columns").loc[:, headings != ""]


def _deficient(table: pd.DataFrame) -> bool:
    return any(value.rank_deficient for value in values(table))


def markdown(made: Sequence[Section]) -> str:
    """The text of ``table.md``."""
    parts = [
        "# Results",
        "Fréchet distances (FD): lower is better. [low, high] is a 95% interval of the mean; bold "
        "is the best. Values are comparable only within a section: other protocols measure other "
        "quantities.",
    ]
    for section in made:
        parts += [
            f"## {section.experiment} · {section.protocol}",
            table_cell(section.protocol_line),
        ]
        for i, table in enumerate(section.tables):
            if i == 1:
                parts.append("Further metrics of the same samples:")
            shown = _named(table, 0)
            parts.append(markdown_table(shown))
            if "published" in shown:
                parts.append("Δ: ours less the published value, in half-widths of our interval.")
        if any(map(sampling_alone, section.tables)):
            parts.append(MARKED)
        if any(map(_deficient, section.tables)):
            parts.append(
                "† rank-deficient covariance: fewer samples than features, or constant features."
            )
    return "\n\n".join(parts) + "\n"


def latex(made: Sequence[Section]) -> str:
    """The text of ``table.tex``."""
    parts = [LATEX_HEAD]
    for section in made:
        about = escape(f"{section.experiment}, protocol {section.protocol}")
        line = escape(section.protocol_line)
        for i, table in enumerate(section.tables):
            caption = f"{about}, further metrics." if i else f"{about}. {line}"
            caption += r" Mean $\pm$ half of the 95\% interval; best bold, second underlined."
            if sampling_alone(table):
                caption += f" {escape(MARKED)}"
            if _deficient(table):
                caption += r" \dag{}: the covariance is rank-deficient."
            parts.append(latex_table(_named(table, 1), caption))
    return "\n\n".join(parts) + "\n"
