"""The paper's tables as CSV (one line a value), Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ctm_core.config.metric_registry import FAMILIES
from ctm_core.report.literature import printed
from ctm_core.report.scores import Row, best
from ctm_core.report.tables.columns import csv_text, number
from ctm_core.report.tables.latex import escape, floating, mean_and_half, tabular
from ctm_core.report.tables.markdown import table
from ctm_core.report.tables.paper import Block, Listing, PaperTable

__all__ = ["csv", "latex", "markdown"]

SETTINGS = {True: "with classes", False: "without classes", None: ""}


def csv(made: PaperTable) -> str:
    """One line a value, ours and others'."""
    columns = (
        "experiment", "dataset", "method", "sampler", "gamma", "nfe", "protocol", "metric",
        "value", "ci95_low", "ci95_high", "published", "published_source", "confidence",
    )  # fmt: skip
    return csv_text(columns, [*_our_lines(made), *_their_lines(made)])


def _our_lines(made: PaperTable) -> Iterable[list[object]]:
    for block in made.blocks:
        for (line, column), row in sorted(block.cells.items(), key=lambda item: item[0]):
            metric = block.columns[column].metric
            summary = row.metrics[metric]
            found = made.compared.get((row.key, metric))
            ends = (number(summary.mean), number(summary.low), number(summary.high))
            published = ["", "", ""]
            if found is not None:
                published = [number(found.value), found.source, found.entry.confidence]
            yield [
                row.experiment, row.dataset, block.lines[line][0], row.cell.sampler,
                number(row.cell.gamma), row.cell.nfe, row.protocol, metric, *ends, *published,
            ]  # fmt: skip


def _their_lines(made: PaperTable) -> Iterable[list[object]]:
    for listing in made.listings:
        for entry in listing.entries:
            for kind in listing.kinds:
                value = entry.row.values.get(kind)
                if value is not None:
                    yield [
                        "", entry.group.dataset, entry.row.method, "", "", entry.row.nfe or "",
                        entry.protocol or "", kind, "", "", "", number(value), entry.source,
                        entry.confidence,
                    ]  # fmt: skip


def markdown(made: PaperTable) -> str:
    """The table for reading."""
    parts = [f"# {made.layout.title}"]
    if not made.blocks:
        parts.append(_nothing(made))
    else:
        parts.append(
            "[low, high] is a 95% interval; bold, the best of a column; (in brackets) the "
            "published value under the same protocol. Columns of different protocols are not "
            "comparable."
        )
    for block in made.blocks:
        head = ["method", "NFE", *(column.heading for column in block.columns)]
        parts += [f"## {block.title}", table(head, _lines(made, block, "md"))]
    for listing in made.listings:
        head = ["method", "setting", "NFE", *(FAMILIES[kind].display for kind in listing.kinds)]
        head += ["cost class", "confidence", "source"]
        parts += [f"## {listing.title}", table(head, _listed(listing))]
    return "\n\n".join(parts) + "\n"


def latex(made: PaperTable) -> str:
    """The table for a paper; needs booktabs."""
    parts = ["% \\usepackage{booktabs}; made by `ctm table`."]
    if not made.blocks:
        parts.append(f"% {_nothing(made)}")
    for block in made.blocks:
        head = ["Method", "NFE", *(escape(column.heading) for column in block.columns)]
        content = tabular("lr" + "r" * len(block.columns), head, _lines(made, block, "tex"))
        caption = escape(f"{made.layout.title}, {block.title}. ")
        caption += (
            r"Mean $\pm$ half of the 95\% interval; best bold; in brackets the published "
            "value under the same protocol."
        )
        parts.append(floating(content, caption))
    for listing in made.listings:
        head = ["Method", "Setting", "NFE", *(FAMILIES[kind].display for kind in listing.kinds)]
        width = 3 + len(listing.kinds)
        lines = [[escape(text) for text in line[:width]] for line in _listed(listing)]
        content = tabular("llr" + "r" * len(listing.kinds), head, lines)
        parts.append(floating(content, escape(listing.title) + "."))
    return "\n\n".join(parts) + "\n"


def _nothing(made: PaperTable) -> str:
    if made.layout.gan:
        return "No experiment of this table has both ctm and ctm_gan."
    return "This table has no Fréchet distances."


def _lines(made: PaperTable, block: Block, form: Literal["md", "tex"]) -> list[list[str]]:
    winners = [
        best([row for (_, c), row in block.cells.items() if c == i], column.metric)
        for i, column in enumerate(block.columns)
    ]
    lines = []
    for i, (method, nfe) in enumerate(block.lines):
        line = [escape(method) if form == "tex" else method, nfe]
        for j, column in enumerate(block.columns):
            row = block.cells.get((i, j))
            won = row is not None and row is winners[j]
            line.append("" if row is None else _value(made, row, column.metric, won, form))
        lines.append(line)
    return lines


def _value(made: PaperTable, row: Row, metric: str, won: bool, form: Literal["md", "tex"]) -> str:
    summary = row.metrics[metric]
    found = made.compared.get((row.key, metric))
    if form == "md":
        text = f"**{summary}**" if won else str(summary)
        mark = " †" if metric in row.rank_deficient else ""
    else:
        mean = summary.text(summary.mean)
        text = (rf"\textbf{{{mean}}}" if won else mean) + mean_and_half(summary)
        mark = r"\dag{}" if metric in row.rank_deficient else ""
    return text + mark + ("" if found is None else f" ({printed(found.value)})")


def _listed(listing: Listing) -> list[list[str]]:
    lines = []
    for entry in listing.entries:
        row = entry.row
        line = [row.method, SETTINGS[row.conditional], "" if row.nfe is None else str(row.nfe)]
        for kind in listing.kinds:
            value = row.values.get(kind)
            line.append("" if value is None else printed(value))
        lines.append([*line, row.cost_class.replace("_", " "), entry.confidence, entry.source])
    return lines
