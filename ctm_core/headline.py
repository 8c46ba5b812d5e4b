"""What a table says in sentences, each decided by its intervals.

Whether few-step generation works is asked of one student against its teacher:

* with one or two evaluations it should be below *half* the teacher's distance at 3 and at 5, and
  below the teacher's at 9, where the teacher's solver is still too coarse;
* its best cell should be within 3 times the distance of the teacher's finest solve.

Whether it even reaches the finest solve with one or two evaluations is told too, but the answer
does not hang on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ctm_core.config import Cell
from ctm_core.metrics.names import is_distance
from ctm_core.scores import Row, best, last_steps, main_protocol, metrics_of
from ctm_core.statistics import Summary, Verdict, below

__all__ = [
    "Answer",
    "Effect",
    "Finding",
    "answer",
    "cell_name",
    "effects",
    "findings",
    "headline_metric",
]

Answer = Literal["yes", "partly", "no", "undecided", "nothing"]

#: The share of the teacher's distance, by its NFE, that one or two evaluations should stay below.
BARS = {3: 0.5, 5: 0.5, 9: 1.0}
STUDENT_CELLS = (Cell("gamma", 1, None), Cell("gamma", 2, 0.0))
BEST_WITHIN = 3.0


@dataclass(frozen=True)
class Finding:
    """A claim, the two cells it compares, and what their intervals say.

    ``required`` claims decide the answer; the others are only told.
    """

    claim: str
    first: Summary
    second: Summary
    verdict: Verdict
    required: bool

    @property
    def evidence(self) -> str:
        """Both values with their intervals, and their ratio."""
        text = f"{self.first} against {self.second}"
        if self.first.mean > 0 and self.second.mean > 0:
            ratio = self.second.mean / self.first.mean
            lower = ratio >= 1
            times = ratio if lower else 1 / ratio
            text += f": {times:.2g} times " if times < 99.5 else f": {times:.0f} times "
            text += "lower" if lower else "higher"
        if self.first.interval is None or self.second.interval is None:
            text += " (without intervals nothing is decided)"
        return text


@dataclass(frozen=True)
class Effect:
    """Two cells that differ in one thing. ``outcome`` says how the first compares."""

    group: str
    first: str
    second: str
    first_value: Summary
    second_value: Summary
    outcome: Literal["lower", "higher", "undecided"]


def headline_metric(rows: Iterable[Row]) -> str | None:
    """The Fréchet distance of most samples among the metrics of ``rows``; None without one."""
    return next((metric for metric in metrics_of(rows) if is_distance(metric)), None)


def findings(rows: Sequence[Row], experiment: str, student: str = "ctm") -> list[Finding]:
    """The claims about ``student`` that the experiment's table can be asked.

    Only the main protocol, its distance of most samples, and each model's last step are read.
    """
    cells, metric = _cells(rows, experiment)
    if metric is None:
        return []
    teacher = {
        row.cell.nfe: row.metrics[metric]
        for (model, cell), row in cells.items()
        if model == "teacher" and cell.sampler == "heun"
    }
    finest = max(teacher, default=0)
    found = []
    for cell in STUDENT_CELLS:
        row = cells.get((student, cell))
        if row is None:
            continue
        first = row.metrics[metric]
        name = f"{student} at {cell_name(cell)}"
        for nfe, factor in BARS.items():
            if nfe in teacher:
                claim = f"{name} has a lower FD than the teacher at NFE {nfe}"
                if factor < 1:
                    claim = f"{name} has less than half the teacher's FD at NFE {nfe}"
                verdict = below(first, teacher[nfe], factor)
                found.append(Finding(claim, first, teacher[nfe], verdict, required=True))
        if finest > max(BARS):
            claim = f"{name} has a lower FD than the teacher at NFE {finest}"
            verdict = below(first, teacher[finest])
            found.append(Finding(claim, first, teacher[finest], verdict, required=False))
    winner = best((row for (model, _), row in cells.items() if model == student), metric)
    if winner is not None and finest > max(BARS):
        first = winner.metrics[metric]
        claim = (
            f"{student} at its best ({cell_name(winner.cell)}) is within {BEST_WITHIN:g} times "
            f"the teacher's FD at NFE {finest}"
        )
        verdict = below(first, teacher[finest], BEST_WITHIN)
        found.append(Finding(claim, first, teacher[finest], verdict, required=True))
    return found


def answer(found: Iterable[Finding]) -> Answer:
    """Yes if every required claim holds, no if none does; nothing if there is no such claim."""
    verdicts = [finding.verdict for finding in found if finding.required]
    if not verdicts:
        return "nothing"
    if all(verdict == "yes" for verdict in verdicts):
        return "yes"
    if "no" not in verdicts:
        return "undecided"
    return "partly" if "yes" in verdicts else "no"


def effects(rows: Sequence[Row], experiment: str, student: str = "ctm") -> list[Effect]:
    """What γ, NFE and the choice of student do: pairs of cells that differ in that alone."""
    cells, metric = _cells(rows, experiment)
    if metric is None:
        return []
    own = sorted(
        (cell for model, cell in cells if model == student and cell.sampler == "gamma"),
        key=lambda cell: (cell.nfe, cell.gamma or 0.0),
    )
    pairs: list[tuple[str, tuple[str, Cell], tuple[str, Cell]]] = []
    for nfe in dict.fromkeys(cell.nfe for cell in own if cell.gamma is not None):
        same = [cell for cell in own if cell.nfe == nfe]
        if len(same) > 1:
            pairs.append(("γ", (student, same[0]), (student, same[-1])))
    for gamma in dict.fromkeys(cell.gamma for cell in own if cell.gamma is not None):
        line = [cell for cell in own if cell.gamma in (None, gamma)]
        pairs += [("NFE", (student, more), (student, less)) for less, more in pairwise(line)]
    for other in dict.fromkeys(model for model, _ in cells if model not in ("teacher", student)):
        shared = [cell for cell in own if (other, cell) in cells]
        pairs += [("student", (student, cell), (other, cell)) for cell in shared]
    found = []
    for group, one, two in pairs:
        first, second = cells[one].metrics[metric], cells[two].metrics[metric]
        verdict = below(first, second)
        outcome: Literal["lower", "higher", "undecided"]
        outcome = "lower" if verdict == "yes" else "higher" if verdict == "no" else "undecided"
        names = [f"{model}, {cell_name(cell)}" for model, cell in (one, two)]
        found.append(Effect(group, names[0], names[1], first, second, outcome))
    return found


def _cells(rows: Sequence[Row], experiment: str) -> tuple[dict[tuple[str, Cell], Row], str | None]:
    """Rows of the main protocol and last steps by (model, cell), and the metric to read."""
    own = [row for row in rows if row.experiment == experiment]
    if not own:
        return {}, None
    protocol = main_protocol(own, experiment)
    chosen = last_steps(row for row in own if row.protocol == protocol)
    metric = headline_metric(chosen)
    return {(row.model, row.cell): row for row in chosen if metric in row.metrics}, metric


def cell_name(cell: Cell) -> str:
    """A cell as text reads it: ``NFE 4, γ = 0.5``; unusual samplers are named."""
    text = f"NFE {cell.nfe}"
    if cell.gamma is not None:
        text += f", γ = {cell.gamma:g}"
    return text + {"gamma_paper": " (as printed)", "euler": " (Euler)"}.get(cell.sampler, "")
