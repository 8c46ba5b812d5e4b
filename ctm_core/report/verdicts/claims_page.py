"""Findings as the report shows them: signs, evidence, and the colour of the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ctm_core.report.verdicts.sentences import tally

if TYPE_CHECKING:
    from ctm_core.report.verdicts import Finding, Verdict

__all__ = ["MARKS", "answer", "finding"]

#: Sign, class on the page.
MARKS: dict[Verdict, tuple[str, str]] = {
    "reproduced": ("✓", "yes"),
    "contradicted": ("✗", "no"),
    "undecided": ("?", "undecided"),
    "not testable": ("–", "untested"),
}


def answer(found: Sequence[Finding]) -> str:
    """The class of the answer's box: yes, partly or no, or undecided."""
    count = tally(found)
    held, failed = count["reproduced"], count["contradicted"]
    if failed:
        return "partly" if held else "no"
    return "yes" if held and not count["undecided"] else "undecided"


def finding(found: Finding) -> dict[str, Any]:
    """A claim, its verdict, and one line for each comparison behind it."""
    mark, style = MARKS[found.verdict]
    compared = [
        f"{one.text}: {one.first_value} against {one.second_value}, difference {one.difference}"
        + (f" ({one.why})" if one.why else "")
        for one in found.compared
    ]
    counts = Counter(one.verdict for one in found.compared)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])
    return {
        "mark": mark,
        "style": style,
        "verdict": found.verdict,
        "claim": found.claim,
        "paper": found.paper + (" (a choice)" if found.kind == "choice" else ""),
        "note": found.note,
        "evidence": [found.why] if found.why else compared,
        "counted": f"{len(compared)} comparisons: {verdicts}",
    }
