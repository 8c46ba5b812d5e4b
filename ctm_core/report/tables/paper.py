"""The paper's tables 1 to 3, for whatever experiments a table holds.

Rows are methods and their NFE, columns are metrics of experiments; every data set has a table of
its own. Every column of values has one protocol, which its heading names. A published value of the
same protocol is in brackets behind ours; all other published values follow in tables of their own,
one per protocol.

Of our cells those are shown that the paper's tables have: solves of the teacher, jumps with γ = 0,
and γ = 1 for models that know no other. Only the last step of each model is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ctm_core.config.metric_registry import FAMILIES
from ctm_core.config.published import Literature, Published
from ctm_core.config.sampler_traits import JUMP_SAMPLER, samplers
from ctm_core.evaluation.metrics import names
from ctm_core.report.csv_files import csv_text
from ctm_core.report.headline import cell_name
from ctm_core.report.literature import printed
from ctm_core.report.scores import Row, model_order
from ctm_core.report.selection import best, family, last_steps, main_protocol, metric_of
from ctm_core.report.statistics import MARKED
from ctm_core.report.tables.columns import Compared
from ctm_core.report.typeset import (
    LATEX_HEAD,
    Value,
    escape,
    latex_table,
    markdown_table,
    sampling_alone,
)

#: Metrics of a whole model and not of a way of sampling from it.
OF_MODELS = ("bpd",)
SETTINGS = {True: "with classes", False: "without classes", None: ""}
CSV_COLUMNS = (
    "experiment", "dataset", "method", "sampler", "gamma", "nfe", "protocol", "metric",
    "value", "ci95_low", "ci95_high", "published", "published_source", "confidence",
)  # fmt: skip
#: Columns of the published values that a printed page has no room for.
ONLY_MARKDOWN = ["cost class", "confidence", "source"]


class Layout(NamedTuple):
    """Which table of the paper, and its kinds of metrics; ``fd`` includes FID."""

    name: str
    title: str
    families: tuple[str, ...]
    gan: bool = False


LAYOUTS = (
    Layout("table1", "Sample quality and likelihood", ("fd", "bpd")),
    Layout("table2", "Sample quality, inception score and recall", ("fd", "is", "recall")),
    Layout("table3", "CTM without and with the adversarial loss", ("fd",), gan=True),
)


class Column(NamedTuple):
    """Values of one metric of one experiment under one protocol."""

    experiment: str
    protocol: str
    metric: str

    @property
    def heading(self) -> str:
        return f"{self.experiment} {names.display(self.metric)} ({self.protocol})"

    def holds(self, row: Row) -> bool:
        """Whether a row has a value of this column."""
        return (row.experiment, row.protocol) == self[:2] and self.metric in row.metrics


class Entry(NamedTuple):
    """A row of ours in one line and column of a table."""

    method: str
    nfe: int
    column: Column
    row: Row


class Table(NamedTuple):
    """One table: for readers, its caption in LaTeX, and its values as lines of CSV."""

    title: str
    frame: pd.DataFrame
    caption: str
    values: list[dict[str, Any]]


class PaperTable(NamedTuple):
    """One of the paper's tables: ours beside published values, then what others published."""

    layout: Layout
    ours: Sequence[Table]
    others: Sequence[Table]


def paper_table(
    layout: Layout, rows: Sequence[Row], compared: Compared, literature: Literature
) -> PaperTable:
    """Fill one of the paper's tables; below ours, what others published of the same data sets."""
    late = last_steps(rows)
    entries: dict[str, list[Entry]] = {}
    others: list[Table] = []
    for dataset in dict.fromkeys(row.dataset for row in late):
        own = [row for row in late if row.dataset == dataset]
        if layout.gan:
            for experiment in dict.fromkeys(row.experiment for row in own):
                entries[experiment] = _with_and_without_gan(layout, own, experiment)
        else:
            entries[dataset] = _methods(layout, own)
            others += _others(layout, dataset, literature)
    ours = [_ours(layout, title, own, compared) for title, own in entries.items() if own]
    return PaperTable(layout, ours, others)


def _methods(layout: Layout, rows: Sequence[Row]) -> list[Entry]:
    columns = list(_columns(layout, rows))
    shown = [row for row in rows if _is_shown(row, rows)]
    lines = {(row.model, _method(row), row.cell.nfe) for row in shown}
    entries = []
    for model, method, nfe in sorted(lines, key=lambda line: (model_order(line[0]), *line[1:])):
        for column in columns:
            if family(column.metric) in OF_MODELS:
                own = [row for row in rows if row.model == model]
            else:
                own = [row for row in shown if (_method(row), row.cell.nfe) == (method, nfe)]
            row = next(filter(column.holds, own), None)
            if row is not None:
                entries.append(Entry(method, nfe, column, row))
    return entries


def _with_and_without_gan(layout: Layout, rows: Sequence[Row], experiment: str) -> list[Entry]:
    """Lines without and with GAN at each NFE that both have, as in the paper's table 3."""
    entries = []
    for column in _columns(layout, [row for row in rows if row.experiment == experiment]):
        exact = [
            row
            for row in rows
            if row.cell.sampler == JUMP_SAMPLER and not row.cell.gamma and not row.cell.times
        ]
        by_nfe = {
            model: {row.cell.nfe: row for row in exact if row.model == model and column.holds(row)}
            for model in ("ctm", "ctm_gan")
        }
        for nfe in sorted(by_nfe["ctm"].keys() & by_nfe["ctm_gan"].keys()):
            entries.append(Entry("without GAN", nfe, column, by_nfe["ctm"][nfe]))
            entries.append(Entry("with GAN", nfe, column, by_nfe["ctm_gan"][nfe]))
    return entries


def _columns(layout: Layout, rows: Sequence[Row]) -> Iterator[Column]:
    """For each experiment and kind of metric the one of most samples, under its main protocol."""
    for experiment in dict.fromkeys(row.experiment for row in rows):
        own = [row for row in rows if row.experiment == experiment]
        main = main_protocol(own, experiment)
        for kind in layout.families:
            protocols = sorted({row.protocol for row in own}) if kind in OF_MODELS else [main]
            for protocol in protocols:
                metric = metric_of([row for row in own if row.protocol == protocol], kind)
                if metric is not None:
                    yield Column(experiment, protocol, metric)
                    break


def _is_shown(row: Row, rows: Sequence[Row]) -> bool:
    cell = row.cell
    if cell.sampler in samplers(jumps=False):
        return row.model == "teacher"
    if cell.sampler != JUMP_SAMPLER:
        return False
    if not cell.gamma:
        return True
    own = (r for r in rows if (r.experiment, r.model) == (row.experiment, row.model))
    return cell.gamma == 1 and all(r.cell.gamma in (None, 1) for r in own)


def _method(row: Row) -> str:
    """A model; with the teacher's solver where it is not Heun's."""
    named = cell_name(row.cell).partition(" (")[2]
    return f"{row.model} ({named}" if named else row.model


def _ours(layout: Layout, title: str, entries: Sequence[Entry], compared: Compared) -> Table:
    order = list(FAMILIES)
    columns = sorted(
        {entry.column for entry in entries},
        key=lambda column: (column.experiment, order.index(family(column.metric))),
    )
    winners = {c: best((e.row for e in entries if e.column == c), c.metric) for c in columns}
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    values = []
    for method, nfe, column, row in entries:
        metric, summary = column.metric, row.metrics[column.metric]
        published = compared.get((row.key, metric))
        line = lines.setdefault((method, nfe), {"method": method, "NFE": str(nfe)})
        line[column.heading] = Value(
            summary,
            "best" if row is winners[column] else "",
            metric in row.rank_deficient,
            "" if published is None else printed(published.value),
        )
        value = vars(row) | row.cell._asdict() | {"method": method, "metric": metric}
        value |= {"value": summary.mean, "ci95_low": summary.low, "ci95_high": summary.high}
        if published is not None:
            value |= {"published": published.value, "published_source": published.source}
            value["confidence"] = published.entry.confidence
        values.append(value)
    headings = ["method", "NFE", *(column.heading for column in columns)]
    frame = pd.DataFrame(lines.values(), columns=headings).fillna("")
    caption = escape(f"{layout.title}, {title}. ")
    caption += r"Mean $\pm$ half of the 95\% interval; best bold; in brackets the published value "
    return Table(title, frame, caption + "under the same protocol.", values)


def _others(layout: Layout, dataset: str, literature: Literature) -> Iterator[Table]:
    kinds = ["fid" if kind == "fd" else kind for kind in layout.families]
    own = [
        entry
        for entry in literature.entries()
        if entry.group.dataset == dataset and any(kind in entry.row.values for kind in kinds)
    ]
    protocols = {entry.protocol for entry in own}
    for protocol in sorted(protocols, key=lambda name: (name is None, name)):
        entries = [entry for entry in own if entry.protocol == protocol]
        about = f"protocol {protocol}" if protocol else "protocols not known or not ours"
        title = f"Published for {dataset}: {about}"
        held = [kind for kind in kinds if any(kind in entry.row.values for entry in entries)]
        frame = pd.DataFrame([_line(entry, held) for entry in entries])
        values = [
            {"dataset": dataset, "method": entry.row.method, "nfe": entry.row.nfe}
            | {"protocol": protocol, "metric": kind, "published": entry.row.values[kind]}
            | {"published_source": entry.source, "confidence": entry.confidence}
            for entry in entries
            for kind in held
            if kind in entry.row.values
        ]
        yield Table(title, frame, escape(f"{title}."), values)


def _line(entry: Published, kinds: Sequence[str]) -> dict[str, str]:
    row = entry.row
    values = {FAMILIES[kind].display: row.values.get(kind) for kind in kinds}
    return (
        {"method": row.method, "setting": SETTINGS[row.conditional]}
        | {"NFE": "" if row.nfe is None else str(row.nfe)}
        | {name: "" if value is None else printed(value) for name, value in values.items()}
        | {"cost class": entry.cost}
        | {"confidence": entry.confidence, "source": entry.origin}
    )


def csv(made: PaperTable) -> str:
    """One line per value, ours and others'."""
    values = [value for table in (*made.ours, *made.others) for value in table.values]
    return csv_text(pd.DataFrame(values, columns=CSV_COLUMNS))


def markdown(made: PaperTable) -> str:
    """The table for reading."""
    about = (
        "[low, high] is a 95% interval; bold, the best of a column; (in brackets) the published "
        "value under the same protocol. Columns of different protocols are not comparable."
    )
    parts = [f"# {made.layout.title}", about if made.ours else _nothing(made)]
    for table in (*made.ours, *made.others):
        parts += [f"## {table.title}", markdown_table(table.frame)]
        parts += [MARKED] if sampling_alone(table.frame) else []
    return "\n\n".join(parts) + "\n"


def latex(made: PaperTable) -> str:
    """The table for a paper."""
    parts = [LATEX_HEAD] if made.ours else [LATEX_HEAD, f"% {_nothing(made)}"]
    for table in (*made.ours, *made.others):
        shown = table.frame.drop(columns=ONLY_MARKDOWN, errors="ignore")
        note = f" {escape(MARKED)}" if sampling_alone(shown) else ""
        parts.append(latex_table(shown, table.caption + note))
    return "\n\n".join(parts) + "\n"


def _nothing(made: PaperTable) -> str:
    if made.layout.gan:
        return "No experiment of this table has both ctm and ctm_gan."
    return "This table has no Fréchet distances."
