r"""Means and 95% intervals over two kinds of seeds that are never pooled.

A score depends on the *training seed* of the weights and on the *sampling seed* of the noises.
Values that share a training seed are not independent draws of "the method", so the two axes stay
apart:

* three or more training seeds: each is averaged over its sampling seeds, and the interval is
  Student's over those means (``training_seeds``);
* fewer: each sampling seed is averaged over the training seeds, and the interval is Student's over
  those (``sampling_seeds``); it says how well *these weights* were measured;
* one value: no interval.

With n values of mean :math:`\bar x` and standard deviation s (divisor n - 1) the interval is
:math:`\bar x \pm t_{n-1,\,0.975}\, s/\sqrt n`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy.special import stdtrit

__all__ = ["Method", "SampleSeed", "Summary", "Verdict", "below", "half_width", "summarise"]

#: A sampling seed, or several whose samples were scored together, e.g. ``"0+1+2"``.
SampleSeed = int | str
Method = Literal["training_seeds", "sampling_seeds", ""]
Verdict = Literal["yes", "no", "undecided"]

LEVEL = 0.95
TRAINING_SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Summary:
    """What the values of one cell and metric say.

    Attributes
    ----------
    mean
        Mean over both kinds of seeds.
    std
        Standard deviation (divisor n - 1) of the values that the interval is taken over; None
        where there is no interval.
    low, high
        Ends of the 95% interval of the mean; None with a single value.
    method
        What the interval is taken over; empty with a single value.
    minimum_of_three
        Smallest of the first three sampling seeds, averaged over training seeds: the number that
        EDM and its successors print. None with fewer.
    by_train_seed
        Mean over sampling seeds, for each training seed.
    """

    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    method: Method = ""
    minimum_of_three: float | None = None
    by_train_seed: Mapping[int, float] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def __str__(self) -> str:
        """``8.21 [8.10, 8.33]``: as many decimals as give the half-width two digits."""
        text = self.text(self.mean)
        if self.interval is not None:
            text += f" [{self.text(self.interval[0])}, {self.text(self.interval[1])}]"
        return text

    def text(self, value: float) -> str:
        """A value of this cell with the decimals that its interval allows."""
        if self.interval is None:
            return f"{value:.4g}"
        half = (self.interval[1] - self.interval[0]) / 2
        decimals = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
        return f"{value:.{decimals}f}"


def half_width(values: Sequence[float]) -> float:
    """Half-width of Student's 95% interval of the mean of at least two independent values."""
    freedom = len(values) - 1
    quantile = float(stdtrit(freedom, 0.5 + LEVEL / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def summarise(values: Mapping[tuple[int, SampleSeed], float]) -> Summary:
    """Summarise the values of one cell and metric.

    Parameters
    ----------
    values
        Keyed by (training seed, sampling seed); every training seed has the same sampling seeds.

    Raises
    ------
    ValueError
        If there is no value, or a training seed lacks a sampling seed that another has.
    """
    if not values:
        raise ValueError("no values to summarise")
    train_seeds = sorted({train for train, _ in values})
    sample_seeds = sorted({sample for _, sample in values}, key=_order)
    missing = [(t, s) for t in train_seeds for s in sample_seeds if (t, s) not in values]
    if missing:
        raise ValueError(
            f"training seed {missing[0][0]} has no value of sampling seed {missing[0][1]}"
        )
    by_train = {t: statistics.fmean(values[t, s] for s in sample_seeds) for t in train_seeds}
    by_sample = {s: statistics.fmean(values[t, s] for t in train_seeds) for s in sample_seeds}
    mean = statistics.fmean(by_train.values())

    method: Method = ""
    spread: list[float] = []
    if len(train_seeds) >= TRAINING_SEEDS_NEEDED:
        method, spread = "training_seeds", list(by_train.values())
    elif len(sample_seeds) > 1:
        method, spread = "sampling_seeds", list(by_sample.values())

    single = [s for s in sample_seeds if isinstance(s, int)][:3]
    minimum = None
    if len(single) == 3:
        minimum = statistics.fmean(min(values[t, s] for s in single) for t in train_seeds)
    if not method:
        return Summary(mean, minimum_of_three=minimum, by_train_seed=by_train)
    half = half_width(spread)
    return Summary(
        mean,
        std=statistics.stdev(spread),
        low=mean - half,
        high=mean + half,
        method=method,
        minimum_of_three=minimum,
        by_train_seed=by_train,
    )


def below(first: Summary, second: Summary, factor: float = 1.0) -> Verdict:
    """Whether ``first < factor * second``, as far as the two intervals tell.

    "yes" if the upper end of the first interval lies below ``factor`` times the lower end of the
    second; "no" if its lower end lies above ``factor`` times the upper end; else, and where an
    interval is missing, "undecided". Intervals that do not overlap are a stricter test than a 95%
    interval of the difference.
    """
    one, two = first.interval, second.interval
    if one is None or two is None:
        return "undecided"
    if one[1] < factor * two[0]:
        return "yes"
    if one[0] > factor * two[1]:
        return "no"
    return "undecided"


def _order(seed: SampleSeed) -> tuple[int, int, str]:
    return (0, seed, "") if isinstance(seed, int) else (1, 0, seed)
