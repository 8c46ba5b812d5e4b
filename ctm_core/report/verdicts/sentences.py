"""Claims and their verdicts in words: ``claims.md``, and one sentence for a page's top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

import pandas as pd

from ctm_core.report.statistics import MARK, MARKED
from ctm_core.report.typeset import Markdown, markdown_table
from ctm_core.report.verdicts import Compared, Finding, Verdict
from ctm_core.runtime.untrusted import table_cell

#: Sign and style of a verdict on the page.
MARKS: dict[Verdict, tuple[str, str]] = {
    "reproduced": ("✓", "yes"),
    "contradicted": ("✗", "no"),
    "undecided": ("?", "undecided"),
    "not testable": ("–", "untested"),
}


def tally(findings: Iterable[Finding | Compared]) -> dict[Verdict, int]:
    """How many findings, or comparisons, there are of each verdict."""
    counts = Counter(finding.verdict for finding in findings)
    return {verdict: counts[verdict] for verdict in get_args(Verdict)}


def counted(finding: Finding) -> str:
    """``3 comparisons: 2 reproduced, 1 undecided``."""
    counts = tally(finding.compared).items()
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts if count)
    return f"{len(finding.compared)} comparisons: {verdicts}"


def answer(findings: Sequence[Finding]) -> str:
    """The style of the answer's box: yes, partly, no, or undecided."""
    count = tally(findings)
    held, failed = count["reproduced"], count["contradicted"]
    if failed:
        return "partly" if held else "no"
    return "yes" if held and not count["undecided"] else "undecided"


def in_one_sentence(findings: Sequence[Finding]) -> str:
    """The verdicts of some findings in one sentence."""
    count = tally(findings)
    decided = len(findings) - count["not testable"]
    if not decided:
        return "None of the paper's claims can be tested with this table."
    held, failed = count["reproduced"], count["contradicted"]
    claims = "claim" if decided == 1 else "claims"
    return (
        f"Of {decided} {claims} tested here, {held} {_is(held)} reproduced, {failed} "
        f"{_is(failed)} contradicted and {count['undecided']} {_is(count['undecided'])} undecided."
    )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def markdown(findings: Sequence[Finding]) -> str:
    """``claims.md``: a section for each experiment, and what no table of these can test."""
    parts = [
        "# Does it reproduce?",
        "Each claim of the paper (`config/claims.yaml`) is decided by the 95% interval of a "
        "paired difference, the first value minus the factor times the second: reproduced if it "
        "lies on the claimed side, contradicted if on the other side, undecided otherwise.",
    ]
    for experiment in dict.fromkeys(f.experiment for f in findings if f.experiment):
        own = [finding for finding in findings if finding.experiment == experiment]
        tested = [finding for finding in own if finding.verdict != "not testable"]
        parts += [f"## {experiment}", in_one_sentence(own)]
        if tested:
            parts.append(_claim_table(tested))
        if len(tested) < len(own):
            parts += ["Not testable in this experiment:", _listed(own)]
    rest = [finding for finding in findings if not finding.experiment]
    if rest:
        parts += ["## Not testable with this table", _listed(rest)]
    if any(MARK in part for part in parts):
        parts.append(MARKED)
    return "\n\n".join(parts) + "\n"


def _listed(findings: Iterable[Finding]) -> str:
    return "\n".join(
        f"* {_claimed(finding)} Why not: {table_cell(finding.why)}."
        for finding in findings
        if finding.verdict == "not testable"
    )


def _claimed(finding: Finding) -> str:
    return f"{table_cell(finding.claim)} *{table_cell(finding.paper)}*"


def _claim_table(findings: Iterable[Finding]) -> str:
    lines = []
    for finding in findings:
        about = _claimed(finding)
        if finding.kind == "choice":
            about += " (a choice, without an ablation in the paper)"
        if finding.note:
            about += f"<br>Note: {table_cell(finding.note)}."
        verdict = f"**{finding.verdict}**"
        for one in finding.compared:
            mark = "" if one.verdict == finding.verdict else f" ({one.verdict})"
            cells = about, verdict, table_cell(one.text) + mark, one.values, one.difference_and_why
            lines.append([Markdown(cell) for cell in cells])
            about = verdict = ""
    head = ["claim", "verdict", "compared", "values", "difference [95% interval]"]
    return markdown_table(pd.DataFrame(lines, columns=head))
