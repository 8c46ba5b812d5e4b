"""``ctm verify``: every case on a golden set, as a table, a verdict and JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ctm_core import verification
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_json
from ctm_core.verification import Result
from ctm_core.verification.golden import Folder

#: Failed checks of one case that are written out.
SHOWN = 5


def verify(
    path: Path,
    document: Path | None,
    show: Callable[[str], object],
    *,
    device: str = "cpu",
    bf16: bool = False,
) -> str:
    """Check a golden set; ``show`` prints the table, a line as soon as its case is done.

    Networks, objectives and optimisers run on ``device``, in float32 without TF32; with ``bf16``
    once more under autocast, to tolerances of its own.

    Every check goes into ``document``, a JSON file, if one is given; an error that is not finite
    is null there. Returns the verdict if everything passed. Raises UserError with it if a case
    failed or a tensor was not read; or if the folder is missing, empty or damaged.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; leave --device out to verify on the CPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    folder = Folder(path)
    for name in folder.names():  # a damaged file is reported before anything runs
        folder.load(name)
    cases = verification.cases(folder)
    widths = [
        max((len(text) for text in column), default=0)
        for column in ([c.file for c in cases], [c.function.__name__ for c in cases])
    ]
    show(_line(widths, "file", "case", "precision", "checks", "error/tol", "verdict"))
    results = []
    for case in cases:
        lowered = (torch.bfloat16,) if bf16 and case.lowered else ()
        for precision in (*case.precisions, *lowered):
            results.append(verification.check(case, folder, precision, torch.device(device)))
            show(_row(widths, results[-1]))
    uncovered = verification.uncovered(folder)
    show("\n".join(["", *_coverage(folder, uncovered), ""]))
    passed = bool(results) and all(result.passed for result in results) and not uncovered
    if document is not None:
        entries = [_entry(result) for result in results]
        summary = {"folder": str(path), "passed": passed, "results": entries}
        write_json(document, summary | {"uncovered": uncovered})
    if not passed:
        raise UserError(f"{path}: {_failure(results, uncovered)}")
    checks = sum(len(result.checks) for result in results)
    return f"{path}: all {checks} checks of {len(results)} runs are within their tolerances"


def _row(widths: Sequence[int], result: Result) -> str:
    """A result's line, and below it its first failed checks."""
    worst = max((check.ratio for check in result.checks), default=math.nan)
    verdict, numbers = "pass" if result.passed else "FAIL", (len(result.checks), f"{worst:.2g}")
    names = result.case.file, result.case.function.__name__, _name(result.precision)
    lines = [_line(widths, *names, *numbers, verdict)]
    failed = [str(check) for check in result.checks if not check.passed]
    lines += [f"    {text}" for text in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"    and {len(failed) - SHOWN} more")
    if result.problem is not None:
        lines.append(f"    stopped: {result.problem}")
    elif not result.checks:
        lines.append(f"    {result.reason}")
    return "\n".join(lines)


def _line(widths: Sequence[int], *texts: str | int) -> str:
    layout = f"{{:<{widths[0]}}}  {{:<{widths[1]}}}  {{:<9}}  {{:>6}}  {{:>9}}  {{}}"
    return layout.format(*texts)


def _coverage(folder: Folder, uncovered: Mapping[str, list[str]]) -> list[str]:
    """Lines that say which tensors no case has read."""
    if not uncovered:
        return ["Tensors that no case reads: there are none."]
    lines = ["Tensors that no case reads:"]
    for name, keys in uncovered.items():
        whole = set(keys) == set(folder.load(name).tensors)
        lines.append(f"  {name}: the whole file" if whole else f"  {name}:")
        lines += [] if whole else [f"    {key}" for key in keys]
    return lines


def _failure(results: Sequence[Result], uncovered: Mapping[str, list[str]]) -> str:
    """How many runs failed and the worst of them, and what was not read."""
    parts = []
    if failed := [result for result in results if not result.passed]:
        worst = max(failed, key=lambda result: result.severity)
        reason = textwrap.shorten(worst.reason, 300, placeholder=" …")
        parts.append(
            f"{len(failed)} of {len(results)} runs failed, worst {worst.case.name} in "
            f"{_name(worst.precision)} ({reason})"
        )
    if uncovered:
        count = sum(len(keys) for keys in uncovered.values())
        name, keys = next(iter(uncovered.items()))
        first = f"{name}: {keys[0]}" if keys else f"{name}, an empty file"
        parts.append(f"no case reads {count} tensors of the set, the first {first}")
    return ", and ".join(parts) or "there is no case to run"


def _entry(result: Result) -> dict[str, Any]:
    return {
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


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
