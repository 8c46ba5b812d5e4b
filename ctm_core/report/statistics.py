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

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scipy.special import stdtrit

__all__ = [
    "Difference",
    "Method",
    "Outcome",
    "SampleSeed",
    "StandardError",
    "Summary",
    "half_width",
    "paired",
    "rounded",
    "summarise",
]

#: A sampling seed, or several whose samples were scored together, e.g. ``"0+1+2"``.
SampleSeed = int | str
#: Training seed and sampling seed.
Seeds = tuple[int, SampleSeed]
Outcome = Literal["lower", "higher", "undecided"]
Method = Literal["training_seeds", "sampling_seeds", "subsampling", ""]

LEVEL = 0.95
TRAINING_SEEDS_NEEDED = 3


class StandardError(NamedTuple):
    """Standard error of a single value, and its degrees of freedom."""

    value: float
    freedom: int


@dataclass(frozen=True)
class Summary:
    """What the values of one cell and metric say.

    Attributes
    ----------
    mean
        Mean over both kinds of seeds.
    std
        Standard deviation (divisor n - 1) of the values that the interval is taken over; None
        where it is not taken over several.
    low, high
        Ends of the 95% interval of the mean; None where there is none.
    method
        What the interval is taken over; empty where there is none.
    minimum_of_three
        Smallest of the first three sampling seeds, averaged over training seeds: the number that
        EDM and its successors print. None with fewer.
    by_train_seed
        Mean over sampling seeds, for each training seed.
    values, errors
        What it was made of, by (training seed, sampling seed).
    """

    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    method: Method = ""
    minimum_of_three: float | None = None
    by_train_seed: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[Seeds, float] = field(default_factory=dict, repr=False, compare=False)
    errors: Mapping[Seeds, StandardError] = field(default_factory=dict, repr=False, compare=False)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    def __str__(self) -> str:
        """``8.21 [8.10, 8.33]``: as many decimals as give the half-width two digits."""
        text = self.text(self.mean)
        if self.interval is not None:
            text += f" [{self.text(self.interval[0])}, {self.text(self.interval[1])}]"
        return text

    def text(self, value: float) -> str:
        """A value of this cell with the decimals that its interval allows."""
        return rounded(value, self.half)


def rounded(value: float, half: float | None) -> str:
    """A value with as many decimals as give the half-width of its interval two digits."""
    if half is None:
        return f"{value:.4g}"
    if half <= 1e-9 * abs(value):  # rounding errors of equal values
        half = 0.0
    decimals = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
    return f"{value:.{decimals}f}"


def half_width(values: Sequence[float]) -> float:
    """Half-width of Student's 95% interval of the mean of at least two independent values."""
    return _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def summarise(
    values: Mapping[Seeds, float], errors: Mapping[Seeds, StandardError] | None = None
) -> Summary:
    """Summarise the values of one cell and metric.

    Parameters
    ----------
    values
        Keyed by (training seed, sampling seed); every training seed has the same sampling seeds.
    errors
        Standard errors of single values, where they are known. Used only where there are neither
        several sampling seeds nor three training seeds.

    Raises
    ------
    ValueError
        If there is no value, or a training seed lacks a sampling seed that another has.
    """
    if not values:
        raise ValueError("no values to summarise")
    train_seeds, sample_seeds = _seeds(values)
    missing = [(t, s) for t in train_seeds for s in sample_seeds if (t, s) not in values]
    if missing:
        raise ValueError(
            f"training seed {missing[0][0]} has no value of sampling seed {missing[0][1]}"
        )
    known = dict(errors or {})
    by_train = {t: statistics.fmean(values[t, s] for s in sample_seeds) for t in train_seeds}
    single = [s for s in sample_seeds if isinstance(s, int)][:3]
    minimum = None
    if len(single) == 3:
        minimum = statistics.fmean(min(values[t, s] for s in single) for t in train_seeds)
    found = _interval(
        len(train_seeds),
        sample_seeds,
        lambda i, s: values[train_seeds[i], s],
        _joint_error(values, known),
    )
    mean = statistics.fmean(by_train.values())
    return Summary(
        mean,
        std=found.std,
        low=None if found.half is None else mean - found.half,
        high=None if found.half is None else mean + found.half,
        method=found.method,
        minimum_of_three=minimum,
        by_train_seed=by_train,
        values=dict(values),
        errors=known,
    )


# -- differences --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """``first - factor * second`` for two cells, as far as their seeds can be paired.

    Attributes
    ----------
    mean
        Over the pairs; over everything where nothing can be paired.
    low, high
        Ends of its 95% interval; None where there is none.
    method
        What the interval is taken over; empty where there is none.
    pairs
        Independent differences behind the interval.
    why
        Why there is no interval, as a clause; empty where there is one.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    method: Method = ""
    pairs: int = 0
    why: str = ""

    @property
    def outcome(self) -> Outcome:
        """How the first compares: on which side of 0 the interval lies."""
        if self.high is not None and self.high < 0:
            return "lower"
        if self.low is not None and self.low > 0:
            return "higher"
        return "undecided"

    def __str__(self) -> str:
        """``-4.2 [-4.5, -3.9]``."""
        if self.low is None or self.high is None:
            return rounded(self.mean, None)
        half = (self.high - self.low) / 2
        mean, low, high = (rounded(value, half) for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


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

    Parameters
    ----------
    first, second
        As :func:`summarise` gives them.
    factor
        c.
    """
    everything = first.mean - factor * second.mean
    if not first.values or not second.values:
        return Difference(everything, why="single values are not known")
    trainings = _pairs_of_trainings(_seeds(first.values)[0], _seeds(second.values)[0])
    theirs = _seeds(second.values)[1]
    samplings = [seed for seed in _seeds(first.values)[1] if seed in theirs]
    if not trainings:
        return Difference(everything, why="the two have no training seed in common")
    if not samplings:
        return Difference(everything, why="the two have no sampling seed in common")

    def difference(pair: int, seed: SampleSeed) -> float:
        one, two = trainings[pair]
        return first.values[one, seed] - factor * second.values[two, seed]

    mine = {(one, s): 0.0 for one, _ in trainings for s in samplings}
    other = {(two, s): 0.0 for _, two in trainings for s in samplings}
    error = None
    one, two = _joint_error(mine, first.errors), _joint_error(other, second.errors)
    if one is not None and two is not None:
        error = StandardError(one.value + abs(factor) * two.value, min(one.freedom, two.freedom))
    found = _interval(len(trainings), samplings, difference, error)
    mean = statistics.fmean(difference(i, s) for i in range(len(trainings)) for s in samplings)
    if found.half is None:
        return Difference(mean, why="there is a single pair of values without a standard error")
    low, high = mean - found.half, mean + found.half
    return Difference(mean, low, high, found.method, found.size)


def _pairs_of_trainings(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    if len(first) == 1:
        return [(first[0], seed) for seed in second]
    if len(second) == 1:
        return [(seed, second[0]) for seed in first]
    return [(seed, seed) for seed in first if seed in second]


# -- the rule -----------------------------------------------------------------------------------


class _Interval(NamedTuple):
    half: float | None
    method: Method
    std: float | None
    size: int


def _interval(
    trainings: int,
    samplings: Sequence[SampleSeed],
    value: Callable[[int, SampleSeed], float],
    error: StandardError | None,
) -> _Interval:
    """The interval by the rule above, of ``value(training, sampling seed)``."""
    method: Method
    if trainings >= TRAINING_SEEDS_NEEDED:
        method = "training_seeds"
        spread = [statistics.fmean(value(t, s) for s in samplings) for t in range(trainings)]
    elif len(samplings) > 1:
        method = "sampling_seeds"
        spread = [statistics.fmean(value(t, s) for t in range(trainings)) for s in samplings]
    elif error is not None:
        return _Interval(_quantile(error.freedom) * error.value, "subsampling", None, 1)
    else:
        return _Interval(None, "", None, 0)
    return _Interval(half_width(spread), method, statistics.stdev(spread), len(spread))


def _joint_error(
    values: Mapping[Seeds, float], errors: Mapping[Seeds, StandardError]
) -> StandardError | None:
    """Standard error of the mean over training seeds of values of one sampling seed.

    They share their noises, so their errors may be correlated; the mean of the errors bounds the
    error of the mean whatever the correlation.
    """
    if any(seeds not in errors for seeds in values):
        return None
    known = [errors[seeds] for seeds in values]
    return StandardError(
        statistics.fmean(error.value for error in known), min(error.freedom for error in known)
    )


def _quantile(freedom: int) -> float:
    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _seeds(values: Mapping[Seeds, float]) -> tuple[list[int], list[SampleSeed]]:
    """Training seeds and sampling seeds, each once and sorted."""
    return (
        sorted({train for train, _ in values}),
        sorted({sample for _, sample in values}, key=_order),
    )


def _order(seed: SampleSeed) -> tuple[int, int, str]:
    return (0, seed, "") if isinstance(seed, int) else (1, 0, seed)
