"""Results of a verification for people (a table, a sentence) and for machines (JSON)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core import verification
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json
from ctm_core.verification import Case, Result
from ctm_core.verification.golden import Check, Folder

__all__ = ["Summary", "header", "row", "verify"]

#: Failed checks of one case that are written out.
SHOWN = 5


@dataclass(frozen=True)
class Summary:
    """What was found in a golden set.

    Attributes
    ----------
    folder
        The set.
    results
        One for each case and precision.
    uncovered
        By file, the tensors that no case has read; a file of which no case read anything is named
        even if it holds no tensor.
    """

    folder: Folder
    results: Sequence[Result]
    uncovered: Mapping[str, list[str]]

    @property
    def passed(self) -> bool:
        """Whether everything was within tolerance and everything was read."""
        return bool(self.results) and not self.failed and not self.uncovered

    @property
    def failed(self) -> list[Result]:
        """Results that did not pass, the worst first."""
        found = [result for result in self.results if not result.passed]
        return sorted(found, key=lambda result: -_severity(result))

    def coverage(self) -> list[str]:
        """Lines that say which tensors no case has read."""
        if not self.uncovered:
            return ["Tensors that no case reads: there are none."]
        lines = ["Tensors that no case reads:"]
        for name, keys in self.uncovered.items():
            whole = set(keys) == set(self.folder.load(name).tensors)
            lines.append(f"  {name}: the whole file" if whole else f"  {name}:")
            lines += [] if whole else [f"    {key}" for key in keys]
        return lines

    def sentence(self) -> str:
        """The verdict: how many checks, or how many failures and the worst of them."""
        checks = sum(len(result.checks) for result in self.results)
        if self.passed:
            return (
                f"{self.folder.path}: all {checks} checks of {len(self.results)} runs are within "
                "their tolerances"
            )
        parts = []
        if self.failed:
            worst = self.failed[0]
            parts.append(
                f"{len(self.failed)} of {len(self.results)} runs failed, worst "
                f"{worst.case.name} in {_name(worst.precision)} ({_reason(worst)})"
            )
        if self.uncovered:
            count = sum(len(keys) for keys in self.uncovered.values())
            name, keys = next(iter(self.uncovered.items()))
            first = f"{name}: {keys[0]}" if keys else f"{name}, an empty file"
            parts.append(f"no case reads {count} tensors of the set, the first {first}")
        return f"{self.folder.path}: {', and '.join(parts) or 'there is no case to run'}"

    def document(self) -> dict[str, Any]:
        """Everything, for JSON; an error that is not finite is null."""
        return {
            "folder": str(self.folder.path),
            "passed": self.passed,
            "results": [
                {
                    "file": result.case.file,
                    "case": result.case.function.__name__,
                    "precision": _name(result.precision),
                    "passed": result.passed,
                    "problem": result.problem,
                    "checks": [
                        {
                            "name": check.name,
                            "error": check.error if math.isfinite(check.error) else None,
                            "tolerance": check.tolerance,
                            "passed": check.passed,
                        }
                        for check in result.checks
                    ],
                }
                for result in self.results
            ],
            "uncovered": dict(self.uncovered),
        }


def verify(path: Path, document: Path | None, show: Callable[[str], object]) -> str:
    """Check a golden set and show the table, a line as soon as its case is done.

    Parameters
    ----------
    path
        The set's folder.
    document
        A JSON file for :meth:`Summary.document`, or None.
    show
        Prints a text.

    Returns
    -------
    The verdict, if everything passed.

    Raises
    ------
    UserError
        With the verdict, if anything failed or was not read; or if the folder cannot be read.
    """
    folder, results = verification.run(path)
    cases = verification.cases()
    show(header(cases))
    done = []
    for result in results:
        show(row(cases, result))
        done.append(result)
    summary = Summary(folder, done, verification.uncovered(folder))
    show("\n".join(["", *summary.coverage(), ""]))
    if document is not None:
        write_json(document, summary.document())
    if not summary.passed:
        raise UserError(summary.sentence())
    return summary.sentence()


def header(cases: Sequence[Case]) -> str:
    """The table's first line, as wide as these cases need."""
    return _line(cases, "file", "case", "precision", "checks", "error/tol", "verdict")


def row(cases: Sequence[Case], result: Result) -> str:
    """A result's line, and below it its first failed checks.

    ``error/tol`` is the worst error as a share of what is allowed; a check that allows nothing
    (counts, names, shapes) counts as 0 if it passed.
    """
    worst = max((_ratio(check) for check in result.checks), default=math.nan)
    lines = [
        _line(
            cases,
            result.case.file,
            result.case.function.__name__,
            _name(result.precision),
            str(len(result.checks)),
            f"{worst:.2g}",
            "pass" if result.passed else "FAIL",
        )
    ]
    bad = [str(check) for check in result.checks if not check.passed]
    lines += [f"    {text}" for text in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"    and {len(bad) - SHOWN} more")
    if result.problem is not None:
        lines.append(f"    stopped: {result.problem}")
    elif not result.checks:
        lines.append("    nothing was checked")
    return "\n".join(lines)


def _line(cases: Sequence[Case], file: str, function: str, *rest: str) -> str:
    first = max((len(found.file) for found in cases), default=0)
    second = max((len(found.function.__name__) for found in cases), default=0)
    precision, checks, error, verdict = rest
    numbers = f"{precision:<9}  {checks:>6}  {error:>9}"
    return f"{file:<{first}}  {function:<{second}}  {numbers}  {verdict}"


def _ratio(check: Check) -> float:
    if check.tolerance == 0:
        return 0.0 if check.passed else math.inf
    ratio = check.error / check.tolerance
    return math.inf if math.isnan(ratio) else ratio


def _severity(result: Result) -> float:
    if result.problem is not None or not result.checks:
        return math.inf
    return max(_ratio(check) for check in result.checks)


def _reason(result: Result) -> str:
    if result.problem is not None:
        return textwrap.shorten(result.problem, 300, placeholder=" …")
    if not result.checks:
        return "nothing was checked"
    return str(max(result.checks, key=_ratio))


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
