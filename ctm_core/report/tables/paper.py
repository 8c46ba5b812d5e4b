"""The paper's tables 1 to 3, for whatever experiments a table holds.

Rows are methods and their NFE, columns are metrics of experiments; every data set has a table of
its own. Every column of values has one protocol, which its heading names. A published value stands
in brackets beside ours where its protocol is the same; all other published values follow in tables
of their own, one per protocol.

Of our cells those are shown that the paper's tables have: solves of the teacher, jumps with γ = 0,
and γ = 1 for models that know no other. Only the last step of each model is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from ctm_core.config.metric_registry import FAMILIES
from ctm_core.config.published import Literature, Published
from ctm_core.config.sampler_traits import JUMP_SAMPLER, samplers
from ctm_core.evaluation.metrics import names
from ctm_core.report.csv_files import csv_text
from ctm_core.report.headline import cell_name
from ctm_core.report.literature import printed
from ctm_core.report.scores import (
    Row,
    best,
    family,
    last_steps,
    main_protocol,
    metric_of,
    model_order,
)
from ctm_core.report.tables.columns import Compared
from ctm_core.report.typeset import (
    LATEX_HEAD,
    Value,
    escape,
    latex_table,
    markdown_table,
)

__all__ = ["LAYOUTS", "Layout", "PaperTable", "csv", "latex", "markdown", "paper_table"]

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
    """Which table of the paper, and its kinds of metrics; ``fd`` stands for FID, too."""

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
        place = row.experiment, row.protocol
        return place == (self.experiment, self.protocol) and self.metric in row.metrics


class Entry(NamedTuple):
    """A row of ours in one line and column of a table."""

    method: str
    nfe: int
    column: Column
    row: Row


class Block(NamedTuple):
    """One table of ours: methods and NFE against columns, its entries line by line."""

    title: str
    columns: Sequence[Column]
    entries: Sequence[Entry]


class Listing(NamedTuple):
    """Published values of one data set under one protocol, or under protocols not known."""

    title: str
    kinds: Sequence[str]
    entries: Sequence[Published]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: ours beside published values, then what others published."""

    layout: Layout
    blocks: Sequence[Block]
    listings: Sequence[Listing]
    compared: Compared


def paper_table(
    layout: Layout, rows: Sequence[Row], compared: Compared, literature: Literature
) -> PaperTable:
    """Fill one of the paper's tables.

    Parameters
    ----------
    compared
        Published values that stand beside ours.
    literature
        All published values, for the lists below; those of the data sets in ``rows`` are shown.
    """
    late = last_steps(rows)
    datasets = list(dict.fromkeys(row.dataset for row in late))
    blocks: list[Block] = []
    listings: list[Listing] = []
    for dataset in datasets:
        own = [row for row in late if row.dataset == dataset]
        if layout.gan:
            blocks += [
                _gan_block(layout, own, e) for e in dict.fromkeys(r.experiment for r in own)
            ]
        else:
            blocks.append(_block(layout, own, dataset))
            listings += _listings(layout, dataset, literature)
    return PaperTable(layout, [block for block in blocks if block.entries], listings, compared)


# -- ours ---------------------------------------------------------------------------------------


def _block(layout: Layout, rows: Sequence[Row], dataset: str) -> Block:
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
    return Block(dataset, columns, entries)


def _gan_block(layout: Layout, rows: Sequence[Row], experiment: str) -> Block:
    """Lines without and with GAN at each NFE that both have, as in the paper's table 3."""
    columns = list(_columns(layout, [row for row in rows if row.experiment == experiment]))[:1]
    entries = []
    for column in columns:
        exact = [r for r in rows if r.cell.sampler == JUMP_SAMPLER and not r.cell.gamma]
        by_nfe = {
            model: {row.cell.nfe: row for row in exact if row.model == model and column.holds(row)}
            for model in ("ctm", "ctm_gan")
        }
        for nfe in sorted(by_nfe["ctm"].keys() & by_nfe["ctm_gan"].keys()):
            entries.append(Entry("without GAN", nfe, column, by_nfe["ctm"][nfe]))
            entries.append(Entry("with GAN", nfe, column, by_nfe["ctm_gan"][nfe]))
    return Block(experiment, columns, entries)


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


def _ours(block: Block, compared: Compared) -> pd.DataFrame:
    """A block for readers."""
    winners = {
        column: best((e.row for e in block.entries if e.column == column), column.metric)
        for column in block.columns
    }
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for method, nfe, column, row in block.entries:
        published = compared.get((row.key, column.metric))
        line = lines.setdefault((method, nfe), {"method": method, "NFE": str(nfe)})
        line[column.heading] = Value(
            row.metrics[column.metric],
            "best" if row is winners[column] else "",
            column.metric in row.rank_deficient,
            "" if published is None else printed(published.value),
        )
    headings = [column.heading for column in block.columns]
    return pd.DataFrame(lines.values(), columns=["method", "NFE", *headings]).fillna("")


# -- others -------------------------------------------------------------------------------------


def _listings(layout: Layout, dataset: str, literature: Literature) -> Iterator[Listing]:
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
        held = [kind for kind in kinds if any(kind in entry.row.values for entry in entries)]
        yield Listing(f"Published for {dataset}: {about}", held, entries)


def _theirs(listing: Listing) -> pd.DataFrame:
    """A list of published values for readers."""
    lines = []
    for entry in listing.entries:
        row = entry.row
        values = {FAMILIES[k].display: row.values.get(k) for k in listing.kinds}
        lines.append(
            {"method": row.method, "setting": SETTINGS[row.conditional]}
            | {"NFE": "" if row.nfe is None else str(row.nfe)}
            | {name: "" if value is None else printed(value) for name, value in values.items()}
            | {"cost class": row.cost_class.replace("_", " ")}
            | {"confidence": entry.confidence, "source": entry.source}
        )
    return pd.DataFrame(lines)


# -- texts --------------------------------------------------------------------------------------


def csv(made: PaperTable) -> str:
    """One line per value, ours and others'."""
    lines: list[dict[str, Any]] = []
    for block in made.blocks:
        for method, _, column, row in block.entries:
            summary = row.metrics[column.metric]
            line = vars(row) | row.cell._asdict() | {"method": method, "metric": column.metric}
            line |= {"value": summary.mean, "ci95_low": summary.low, "ci95_high": summary.high}
            known = made.compared.get((row.key, column.metric))
            if known is not None:
                line |= {"published": known.value, "published_source": known.source}
                line["confidence"] = known.entry.confidence
            lines.append(line)
    for listing in made.listings:
        for entry in listing.entries:
            line = {"dataset": entry.group.dataset, "method": entry.row.method}
            line |= {"nfe": entry.row.nfe, "protocol": entry.protocol}
            line |= {"published_source": entry.source, "confidence": entry.confidence}
            values = ((kind, entry.row.values.get(kind)) for kind in listing.kinds)
            lines += [line | {"metric": k, "published": v} for k, v in values if v is not None]
    return csv_text(pd.DataFrame(lines, columns=CSV_COLUMNS))


def markdown(made: PaperTable) -> str:
    """The table for reading."""
    parts = [f"# {made.layout.title}"]
    if made.blocks:
        parts.append(
            "[low, high] is a 95% interval; bold, the best of a column; (in brackets) the "
            "published value under the same protocol. Columns of different protocols are not "
            "comparable."
        )
    else:
        parts.append(_nothing(made))
    for block in made.blocks:
        parts += [f"## {block.title}", markdown_table(_ours(block, made.compared))]
    for listing in made.listings:
        parts += [f"## {listing.title}", markdown_table(_theirs(listing))]
    return "\n\n".join(parts) + "\n"


def latex(made: PaperTable) -> str:
    """The table for a paper."""
    parts = [LATEX_HEAD]
    if not made.blocks:
        parts.append(f"% {_nothing(made)}")
    for block in made.blocks:
        caption = escape(f"{made.layout.title}, {block.title}. ")
        caption += (
            r"Mean $\pm$ half of the 95\% interval; best bold; in brackets the published "
            "value under the same protocol."
        )
        parts.append(latex_table(_ours(block, made.compared), caption))
    for listing in made.listings:
        shown = _theirs(listing).drop(columns=ONLY_MARKDOWN)
        parts.append(latex_table(shown, escape(listing.title) + "."))
    return "\n\n".join(parts) + "\n"


def _nothing(made: PaperTable) -> str:
    if made.layout.gan:
        return "No experiment of this table has both ctm and ctm_gan."
    return "This table has no Fréchet distances."
