r"""``table.tex``: the same sections as LaTeX tables, to be read by ``\input``.

Needs the package booktabs. Best in bold, second best underlined, within one table and so within
one protocol only.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctm_core.report.literature import printed
from ctm_core.report.scores import Evaluation, Row
from ctm_core.report.statistics import Summary
from ctm_core.report.tables.columns import Compared, number
from ctm_core.report.tables.markdown import protocol_line
from ctm_core.report.tables.sections import Section, headings, protocol_facts, sections

__all__ = ["escape", "floating", "latex", "mean_and_half", "tabular"]

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "γ": r"$\gamma$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "†": r"\dag{}",
    "·": r"$\cdot$",
    "–": "--",
    "−": r"$-$",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(character, character) for character in text)


def latex(rows: Sequence[Row], records: Sequence[Evaluation], compared: Compared) -> str:
    """The text of ``table.tex``."""
    facts = protocol_facts(records)
    parts = ["% \\usepackage{booktabs}; made by `ctm table`."]
    for section in sections(rows):
        about = escape(f"{section.experiment}, protocol {section.protocol}")
        line = escape(protocol_line(facts[section.protocol]).replace("`", ""))
        for i, group in enumerate(section.groups):
            caption = f"{about}. {line}" if i == 0 else f"{about}, further metrics."
            caption += r" Mean $\pm$ half of the 95\% interval; best bold, second underlined."
            if any(m in row.rank_deficient for row in section.rows for m in group):
                caption += r" \dag{}: the covariance is rank-deficient."
            parts.append(_table(section, group, compared, caption))
    return "\n\n".join(parts) + "\n"


def tabular(columns: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A tabular in booktabs' style; ``head`` and ``lines`` are LaTeX already."""
    body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def floating(content: str, caption: str) -> str:
    """A table that LaTeX may move."""
    return "\n".join(
        [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", content, r"\end{table}"]
    )


def mean_and_half(summary: Summary) -> str:
    r"""``7.40 {\scriptsize $\pm$ 0.25}`` in two parts, so that the mean can be emphasised."""
    if summary.half is None:
        return ""
    return rf" {{\scriptsize $\pm$ {summary.text(summary.half)}}}"


def _table(section: Section, group: Sequence[str], compared: Compared, caption: str) -> str:
    rows = section.scored(group)
    steps = section.several_steps
    beside = any((row.key, metric) in compared for row in rows for metric in group)
    head = ["Model", *(["Step"] if steps else []), "Sampler", r"$\gamma$", "NFE"]
    columns = "l" + "r" * steps + "lrr"
    for name in headings(group, section.rows):
        head.append(escape(name))
        columns += "r"
        if beside:
            head.append("published")
            columns += "r"
    lines = []
    for row in rows:
        line = [escape(row.model), *([str(row.step)] if steps else []), escape(row.cell.sampler)]
        line += [number(row.cell.gamma), str(row.cell.nfe)]
        for metric in group:
            line.append(_value(section, row, metric))
            if beside:
                found = compared.get((row.key, metric))
                line.append("" if found is None else printed(found.value))
        lines.append(line)
    return floating(tabular(columns, head, lines), caption)


def _value(section: Section, row: Row, metric: str) -> str:
    summary = row.metrics.get(metric)
    if summary is None:
        return ""
    mean = summary.text(summary.mean)
    if section.best.get(metric) is row:
        mean = rf"\textbf{{{mean}}}"
    elif section.second.get(metric) is row:
        mean = rf"\underline{{{mean}}}"
    mark = r"\dag{}" if metric in row.rank_deficient else ""
    return mean + mark + mean_and_half(summary)
