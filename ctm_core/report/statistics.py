r"""Means, differences and 95% intervals over two kinds of seeds that are never pooled.

A score depends on the *training seed* of the weights and on the *sampling seed* of the noises.
Values that share a training seed are not independent draws of "the method", so the two axes stay
apart:

* three or more training seeds: each is averaged over its sampling seeds, and the interval is
  Student's over those means (``training_seeds``);
* fewer: each sampling seed is averaged over the training seeds, and the interval is Student's over
  those (``sampling_seeds``); it says how well *these weights* were measured;
* one sampling seed, too: the value's own standard error, from leaving out blocks of its samples
  (``subsampling``);
* otherwise: no interval.

With n values of mean :math:`\bar x` and standard deviation s (divisor n - 1) the interval is
:math:`\bar x \pm t_{n-1,\,0.975}\, s/\sqrt n`; with a standard error e of f degrees of freedom
it is :math:`\bar x \pm t_{f,\,0.975}\, e`.

Two cells are compared by the *paired* difference (:func:`paired`): seed by seed on the axis that
the same rule picks, so that what the cells share (noises, classes, the teacher) cancels.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scipy.special import stdtrit

#: A sampling seed, or several whose samples were scored together, e.g. ``"0+1+2"``.
SampleSeed = int | str
#: Training seed and sampling seed.
Seeds = tuple[int, SampleSeed]
Outcome = Literal["lower", "higher", "undecided"]
Method = Literal["training_seeds", "sampling_seeds", "subsampling", ""]

LEVEL = 0.95
TRAINING_SEEDS_NEEDED = 3

#: Behind every interval that leaves the spread between trainings out, and what it stands for.
MARK = "‡"
MARKED = (
    f"{MARK} The interval is over sampling alone, of fewer than three training runs: it says "
    "nothing about another training run."
)


def over(method: str, trainings: int, samplings: Sequence[object]) -> str:
    """What an interval is taken over, in words, from the seeds of its row."""
    runs = f"{trainings} training run{'' if trainings == 1 else 's'}"
    seeds = f"{len(samplings)} sampling seed{'' if len(samplings) == 1 else 's'}"
    if len(samplings) == 1 and "+" in str(samplings[0]):
        seeds = f"{str(samplings[0]).count('+') + 1} sampling seeds pooled"
    if method == "training_seeds":
        return f"{runs} × {seeds}"
    if method == "sampling_seeds":
        return f"sampling alone: {seeds}, {runs}"
    return f"sampling alone: parts of the samples, {runs}" if method == "subsampling" else ""


class StandardError(NamedTuple):
    """Standard error of a single value, and its degrees of freedom."""

    value: float
    freedom: int


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, if there is one, and what the interval is taken over."""

    mean: float
    low: float | None = None
    high: float | None = None
    method: Method = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends; the mean twice where there is none."""
        return self.interval or (self.mean, self.mean)

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def mark(self) -> str:
        """:data:`MARK` if the interval is over sampling alone."""
        return MARK if self.method in ("sampling_seeds", "subsampling") else ""

    def __str__(self) -> str:
        """``8.21 [8.10, 8.33]``; `` ‡`` behind it if that is over sampling alone."""
        if self.interval is None:
            return self.text(self.mean)
        shown = f"{self.text(self.mean)} [{', '.join(map(self.text, self.interval))}]"
        return f"{shown} {self.mark}".rstrip()

    def text(self, value: float) -> str:
        """A value with as many decimals as give half the interval two digits."""
        half = self.half
        if half is None:
            return f"{value:.4g}"
        if half <= 1e-9 * abs(value):  # rounding errors of equal values
            half = 0.0
        decimals = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
        return f"{value:.{decimals}f}"


@dataclass(frozen=True)
class Summary(Estimate):
    """What the values of one cell and metric say; the mean is over both kinds of seeds."""

    #: Standard deviation (divisor n - 1) of what the interval is taken over, if that is several.
    std: float | None = None
    #: Smallest of the first three sampling seeds, averaged over training seeds: the number that
    #: EDM and its successors print. None with fewer.
    minimum_of_three: float | None = None
    by_train_seed: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[Seeds, float] = field(default_factory=dict, repr=False, compare=False)
    errors: Mapping[Seeds, StandardError] = field(default_factory=dict, repr=False, compare=False)


def half_width(values: Sequence[float]) -> float:
    """Half-width of Student's 95% interval of the mean of at least two independent values."""
    return _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def summarise(
    values: Mapping[Seeds, float], errors: Mapping[Seeds, StandardError] | None = None
) -> Summary:
    """Summarise the values of one cell and metric.

    ``errors`` are used only where there are neither several sampling seeds nor three training
    seeds. A ValueError if a training seed lacks a sampling seed that another has.
    """
    if not values:
        raise ValueError("no values to summarise")
    train_seeds, sample_seeds = _seeds(values)
    missing = [(t, s) for t in train_seeds for s in sample_seeds if (t, s) not in values]
    if missing:
        raise ValueError(
            f"training seed {missing[0][0]} has no value of sampling seed {missing[0][1]}"
        )
    known = errors or {}
    table = [[values[t, s] for s in sample_seeds] for t in train_seeds]
    by_train = dict(zip(train_seeds, map(statistics.fmean, table), strict=True))
    single = [s for s in sample_seeds if isinstance(s, int)][:3]
    minimum = None
    if len(single) == 3:
        minimum = statistics.fmean(min(values[t, s] for s in single) for t in train_seeds)
    mean = statistics.fmean(by_train.values())
    interval = _interval(table, _joint_error(values, known))
    return Summary(
        mean,
        *interval.around(mean),
        interval.method,
        std=interval.std,
        minimum_of_three=minimum,
        by_train_seed=by_train,
        values=values,
        errors=known,
    )


@dataclass(frozen=True)
class Difference(Estimate):
    """``first - factor * second`` for two cells, as far as their seeds can be paired.

    The mean is over the pairs; over everything where nothing can be paired.
    """

    pairs: int = 0  #: independent differences behind the interval
    why: str = ""  #: there is no interval, as a clause

    @property
    def outcome(self) -> Outcome:
        """How the first compares: on which side of 0 the interval lies."""
        if self.high is not None and self.high < 0:
            return "lower"
        if self.low is not None and self.low > 0:
            return "higher"
        return "undecided"


def paired(first: Summary, second: Summary, factor: float = 1.0) -> Difference:
    r"""The difference :math:`x - c\,y` of two cells, seed by seed.

    Equal seeds mean equal noises and classes, and equal training seeds equal data order, so the
    seeds in common are what is paired:

    * three or more pairs of training seeds: each is averaged over the common sampling seeds, and
      the interval is Student's over those. A side that has one training seed only (the teacher,
      which all students share) is paired with every training seed of the other;
    * fewer: each sampling seed is averaged over those pairs first;
    * one sampling seed: both values' standard errors are *added*, :math:`e_x + |c|\,e_y`, which
      bounds the error of the difference whatever the two have in common.
    """
    everything = first.mean - factor * second.mean
    if not first.values or not second.values:
        return Difference(everything, why="single values are not known")
    (mine, my_samplings), (theirs, their_samplings) = _seeds(first.values), _seeds(second.values)
    trainings = _pairs_of_trainings(mine, theirs)
    samplings = [seed for seed in my_samplings if seed in their_samplings]
    if not trainings:
        return Difference(everything, why="the two have no training seed in common")
    if not samplings:
        return Difference(everything, why="the two have no sampling seed in common")
    table = [
        [first.values[one, s] - factor * second.values[two, s] for s in samplings]
        for one, two in trainings
    ]
    error = None
    one = _joint_error(itertools.product(dict(trainings), samplings), first.errors)
    two = _joint_error(itertools.product({t for _, t in trainings}, samplings), second.errors)
    if one is not None and two is not None:
        error = StandardError(one.value + abs(factor) * two.value, min(one.freedom, two.freedom))
    interval = _interval(table, error)
    mean = statistics.fmean(itertools.chain(*table))
    if interval.half is None:
        return Difference(mean, why="there is a single pair of values without a standard error")
    return Difference(mean, *interval.around(mean), interval.method, interval.size)


def _pairs_of_trainings(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    if len(first) == 1:
        return [(first[0], seed) for seed in second]
    if len(second) == 1:
        return [(seed, second[0]) for seed in first]
    return [(seed, seed) for seed in first if seed in second]


class _Interval(NamedTuple):
    half: float | None = None
    method: Method = ""
    std: float | None = None
    size: int = 0

    def around(self, mean: float) -> tuple[float | None, float | None]:
        return (None, None) if self.half is None else (mean - self.half, mean + self.half)


def _interval(table: Sequence[Sequence[float]], error: StandardError | None) -> _Interval:
    """The interval by the rule above, of values by training and sampling seed."""
    method: Method = "training_seeds"
    if len(table) < TRAINING_SEEDS_NEEDED:
        method, table = "sampling_seeds", list(zip(*table, strict=True))
    if len(table) > 1:
        spread = [statistics.fmean(values) for values in table]
        return _Interval(half_width(spread), method, statistics.stdev(spread), len(spread))
    if error is not None:
        return _Interval(_quantile(error.freedom) * error.value, "subsampling", size=1)
    return _Interval()


def _joint_error(
    seeds: Iterable[Seeds], errors: Mapping[Seeds, StandardError]
) -> StandardError | None:
    """Bounds the error of a mean over training seeds, whose noises are shared, by their mean."""
    known = [errors.get(one) for one in seeds]
    if None in known:
        return None
    values, freedoms = zip(*filter(None, known), strict=True)
    return StandardError(statistics.fmean(values), min(freedoms))


def _quantile(freedom: int) -> float:
    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _seeds(values: Mapping[Seeds, float]) -> tuple[list[int], list[SampleSeed]]:
    """Training seeds and sampling seeds, each once and sorted."""
    return sorted({train for train, _ in values}), in_order(sample for _, sample in values)


def in_order(seeds: Iterable[SampleSeed]) -> list[SampleSeed]:
    """Sampling seeds, each once and sorted, those that were pooled last."""
    return sorted(set(seeds), key=lambda seed: (isinstance(seed, str), seed))
