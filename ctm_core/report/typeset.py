r"""Tables for readers, as DataFrames of texts and :class:`Value`, in Markdown and LaTeX.

The LaTeX needs the package booktabs and is read by ``\input``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import tabulate

from ctm_core.report.statistics import Summary
from ctm_core.runtime.untrusted import table_cell

LATEX_HEAD = "% \\usepackage{booktabs}; made by `ctm table`."
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "γ": r"$\gamma$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "·": r"$\cdot$",
    "–": "--",
    "−": r"$-$",
} | {character: "\\" + character for character in "&%$#_{}"}
#: Columns of words, which LaTeX aligns on the left.
WORDS = ("model", "method", "sampler", "setting")


class Markdown(str):
    """Text that is Markdown already."""


@dataclass(frozen=True)
class Value:
    """A measured value: mean and interval, its rank in its column, what others published of it."""

    summary: Summary
    rank: Literal["best", "second", ""] = ""
    rank_deficient: bool = False
    published: str = ""

    def markdown(self) -> str:
        """``**8.21 [8.10, 8.33] †** (8.05)``; the second best is not marked."""
        text = str(self.summary) + " †" * self.rank_deficient
        return (f"**{text}**" if self.rank == "best" else text) + table_cell(self._in_brackets())

    def latex(self) -> str:
        r"""``\textbf{8.21}\dag{} {\scriptsize $\pm$ 0.11} (8.05)``; the second best underlined."""
        text = self.summary.text(self.summary.mean)
        if self.rank:
            command = "textbf" if self.rank == "best" else "underline"
            text = rf"\{command}{{{text}}}"
        text += r"\dag{}" * self.rank_deficient
        if self.summary.half is not None:
            text += rf" {{\scriptsize $\pm$ {self.summary.text(self.summary.half)}}}"
            text += escape(self.summary.mark)
        return text + self._in_brackets()

    def _in_brackets(self) -> str:
        return f" ({self.published})" if self.published else ""


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(character, character) for character in text)


def values(frame: pd.DataFrame) -> list[Value]:
    """All measured values of a table."""
    return [cell for cell in frame.to_numpy().ravel() if isinstance(cell, Value)]


def sampling_alone(frame: pd.DataFrame) -> bool:
    """Whether an interval in a table is over sampling alone."""
    return any(value.summary.mark for value in values(frame))


def markdown_table(frame: pd.DataFrame) -> str:
    """A Markdown table, its cells not padded; only cells of :class:`Markdown` are markup."""
    text = frame.map(_markdown)
    return text.to_markdown(
        index=False, tablefmt="github", stralign=None, numalign=None, disable_numparse=True
    )


def plain_table(frame: pd.DataFrame) -> str:
    """A table for a terminal."""
    columns = frame.to_dict("list")
    return str(
        tabulate.tabulate(columns, headers="keys", tablefmt="simple", disable_numparse=True)
    )


def _markdown(cell: str | Value) -> str:
    if isinstance(cell, Value):
        return cell.markdown()
    return cell if isinstance(cell, Markdown) else table_cell(cell)


def latex_table(frame: pd.DataFrame, caption: str) -> str:
    """A floating LaTeX table under its caption, which is LaTeX already."""
    text = frame.map(lambda cell: cell.latex() if isinstance(cell, Value) else escape(cell))
    alignment = "".join("l" if heading in WORDS else "r" for heading in frame.columns)
    text.columns = pd.Index(
        [escape(name.title() if name in (*WORDS, "step") else name) for name in frame.columns]
    )
    latex = text.style.hide(axis="index").to_latex(
        hrules=True, column_format=alignment, caption=caption, position_float="centering"
    )
    return latex.rstrip("\n")
