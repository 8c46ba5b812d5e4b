"""Is this table *the* table? Results against a reference, or against other results.

See docs/comparing.md, and :mod:`.spread` for the statistics.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ctm_core.report.agreement import spread
from ctm_core.report.agreement.observations import Observations, Quantity, Values, observe
from ctm_core.report.agreement.reference_runs import (
    Measured,
    Reference,
    read_reference,
    reference_file,
)
from ctm_core.report.agreement.spread import Parts, Score, Variance
from ctm_core.runtime.errors import UserError

__all__ = ["Agreement", "Line", "compare_with_reference", "compared_in"]

Verdict = Literal["agrees", "differs", "not comparable", "missing"]


@dataclass(frozen=True)
class Line:
    """One quantity of a comparison; standard deviations are shares where ``relative``."""

    quantity: Quantity
    verdict: Verdict = "agrees"
    why: str = ""
    value: float | None = None
    expected: float | None = None
    trainings: float | None = None
    machines: float | None = None
    relative: bool = True
    score: Score | None = None
    way: bool = False  #: a point on the way, not a cell of the table


@dataclass(frozen=True)
class Agreement:
    """A comparison of one experiment with its reference."""

    experiment: str
    reference: Path
    settings: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def cells(self) -> list[Line]:
        """The cells of the table; the other lines are points on the way there."""
        return [line for line in self.lines if not line.way]

    @property
    def agrees(self) -> bool:
        """Whether every cell of the table agrees, and every point on the way that there is."""
        return all(line.verdict == "agrees" for line in self.lines)

    def since(self, model: str) -> str:
        """Where a model's run first differs, in words."""
        steps = [
            line.quantity.step
            for line in self.lines
            if line.way and line.verdict == "differs" and line.quantity.model == model
        ]
        if steps:
            return f"since step {min(steps)}"
        trained = any(line.way and line.quantity.model == model for line in self.lines)
        return "in the final scores alone" if trained else ""

    @property
    def sentence(self) -> str:
        """The comparison in one line."""
        counts = Counter(line.verdict for line in self.cells)
        text = f"{self.experiment}: {len(self.cells)} cells, {counts['agrees']} agree"
        words: dict[Verdict, str] = {"differs": "differ", "missing": "are missing"}
        words["not comparable"] = "are not comparable"
        for verdict, word in words.items():
            text += f", {counts[verdict]} {word}" if counts[verdict] else ""
        differing = [line.quantity.model for line in self.lines if line.verdict == "differs"]
        places = (f"{model} {self.since(model)}".strip() for model in dict.fromkeys(differing))
        behind = f" ({'; '.join(places)})" if differing else ""
        if self.agrees:
            return f"{text}: this run agrees with the reference"
        if differing:
            return f"{text}{behind}: this run DIFFERS from the reference"
        return f"{text}: what there is agrees, but this run is not all of the reference"


def compared_in(results: Path, reference: Path | None = None) -> list[Agreement]:
    """Compare each experiment of ``results`` that has a reference, or the one of ``reference``.

    Raises
    ------
    UserError
        If none has one, if a file is missing or damaged, or if nothing at all can be compared.
    """
    observed = observe(results)
    if reference is not None:
        known = read_reference(reference)
        if known.experiment not in observed:
            raise UserError(
                f"{reference} is the reference of {known.experiment}, but {results}/runs.csv has "
                f"{', '.join(observed)}; name the reference of one of these"
            )
        chosen = {known.experiment: (reference, known)}
    else:
        files = {name: reference_file(name) for name in observed}
        chosen = {n: (path, read_reference(path)) for n, path in files.items() if path.exists()}
    if not chosen:
        raise UserError(
            f"there is no reference of {' or '.join(observed)} in config/reference; name one by "
            "--reference, or a second folder of results to compare with"
        )
    return [
        compare_with_reference(observed[name], known, path)
        for name, (path, known) in chosen.items()
    ]


def compare_with_reference(run: Observations, reference: Reference, path: Path) -> Agreement:
    """Compare all that was observed of an experiment with its reference."""
    lines: list[Line] = []
    numbers: dict[int, _Numbers] = {}
    for measured in reference.measured:
        quantity = measured.quantity
        way = quantity.of_training or quantity.step != reference.last_steps[quantity.model]
        line = Line(quantity, way=way)
        if why := _why_not(run, reference, quantity):
            line = replace(line, verdict="not comparable", why=why)
        elif own := run.values.get(quantity, {}):
            known = _numbers(own, measured)
            if known is None:
                why = "sampling seeds: none in common"
                line = replace(line, verdict="not comparable", why=why)
            else:
                numbers[len(lines)] = known
        elif quantity.of_training and _logs(run, quantity):
            line = replace(line, verdict="differs", why="this run logs no such term")
        elif not way:
            line = replace(line, verdict="missing", why="this run has no such value")
        else:
            continue  # nobody has to evaluate snapshots
        if not way or line.verdict != "not comparable":
            lines.append(line)
    known_there = {measured.quantity for measured in reference.measured}
    for quantity in sorted(run.values.keys() - known_there, key=_order):
        if not quantity.of_training and quantity.step == run.last_steps[quantity.model]:
            lines.append(Line(quantity, "not comparable", "the reference has no such cell"))
    if not numbers:
        raise UserError(
            f"nothing of {run.experiment} can be compared with {path}: "
            f"{next((line.why for line in lines if line.why), 'it holds no values')}; name the "
            "reference of this configuration by --reference"
        )
    _judge(lines, numbers, reference)
    return Agreement(run.experiment, path, tuple(reference.settings), tuple(lines))


def _order(quantity: Quantity) -> tuple[object, ...]:
    return quantity.order


def _logs(run: Observations, quantity: Quantity) -> bool:
    """Whether the run logged losses of a training up to a step."""
    place = quantity.model, quantity.step
    return any(q.of_training and (q.model, q.step) == place for q in run.values)


def _why_not(run: Observations, reference: Reference, quantity: Quantity) -> str:
    model, protocol = quantity.model, quantity.protocol
    if model not in run.hashes:
        return ""
    if run.fingerprint != reference.dataset_fingerprint:
        return "data: another fingerprint"
    if run.hashes[model] not in reference.hashes(model):
        return f"config: another train_hash of {model}"
    mine, theirs = run.protocols.get(protocol), reference.protocols.get(protocol)
    if mine is None or theirs is None or mine == theirs:
        return ""
    unequal = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
    return f"protocol: another {', '.join(unequal)}"


class _Numbers(NamedTuple):
    """The values of a quantity on both sides, as means over the samplings that both have."""

    run: Mapping[int, float]
    reference: Mapping[str, Mapping[int, float]]
    relative: bool  #: of logarithms


def _numbers(own: Values, measured: Measured) -> _Numbers | None:
    every = {setting: measured.by_seed(setting) for setting in measured.values}
    shared = set(measured.sample_seeds).intersection(*own.values())
    if not shared:
        return None
    sides = (own, *every.values())
    relative = all(one[seed] > 0 for side in sides for one in side.values() for seed in shared)
    scale = math.log if relative else float

    def means(values: Values) -> dict[int, float]:
        return {
            train_seed: math.fsum(scale(one[seed]) for seed in shared) / len(shared)
            for train_seed, one in values.items()
        }

    return _Numbers(means(own), {name: means(values) for name, values in every.items()}, relative)


def _judge(lines: list[Line], numbers: Mapping[int, _Numbers], reference: Reference) -> None:
    """Fill in scores and verdicts, all of which share one probability of a false alarm."""
    known: dict[int, Parts] = {i: spread.parts(both.reference) for i, both in numbers.items()}
    alone = dict(known)
    groups: dict[object, list[int]] = defaultdict(list)
    for i in numbers:
        place = lines[i].quantity
        share = place.step / reference.last_steps[place.model] if place.of_training else None
        groups[share, numbers[i].relative].append(i)
    for group in groups.values():
        trainings = spread.moderated([known[i].trainings for i in group])
        machines = spread.moderated([known[i].machines for i in group])
        for i, one, other in zip(group, trainings, machines, strict=True):
            known[i] = replace(known[i], trainings=one, machines=other)
    scores = {i: spread.score(both.run, both.reference, known[i]) for i, both in numbers.items()}
    tested = [i for i, score in scores.items() if score is not None]
    rejected = spread.holm([score.p for score in scores.values() if score is not None])
    differing = {i for i, wrong in zip(tested, rejected, strict=True) if wrong}
    for i, both in numbers.items():
        back = math.exp if both.relative else float
        lines[i] = replace(
            lines[i],
            verdict="differs" if i in differing else "agrees" if scores[i] else "not comparable",
            why="" if scores[i] else "the reference has a single value",
            value=back(_mean(both.run.values())),
            expected=back(known[i].mean),
            trainings=_deviation(known[i].trainings) if alone[i].trainings.freedom else None,
            machines=_deviation(known[i].machines) if alone[i].machines.freedom else None,
            relative=both.relative,
            score=scores[i],
        )


def _deviation(variance: Variance) -> float:
    return math.sqrt(variance.value)


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)
