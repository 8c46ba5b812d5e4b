r"""Is a value one of the reference's? Variances of few runs, moderated over many cells.

A reference value of machine m and training seed t is :math:`y_{mt} = \mu + T_t + M_{mt}`: one
training differs from another, and the same training differs from machine to machine, whose other
rounding it amplifies. Positive values enter as logarithms, so both spreads are relative.

* A run that shares training seeds with the reference is compared seed by seed, which leaves
  :math:`\sigma_M^2 (1 + 1/k)` for k machines. What a machine does may be alike in all its
  trainings, so the number of seeds does not reduce it.
* A run of other seeds, or a reference of one machine, has
  :math:`\sigma_T^2 (1/n + 1/r)` in addition, for n trainings of the run and r of the reference.

Each :math:`s^2` rests on a few values only, so it is moderated as in Smyth (2004): over all cells
of a group, :math:`s^2` scatters around a common :math:`s_0^2` that is worth :math:`d_0` degrees of
freedom, and :math:`\tilde s^2 = (d_0 s_0^2 + d s^2) / (d_0 + d)` has :math:`d_0 + d`. Cells of one
model move together, so :math:`d_0` is bounded by :data:`MOST_PRIOR`. The p-values of Student's t
are adjusted by Holm's method, which holds whatever the correlation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import polygamma, psi, stdtr

#: Probability that any cell of a run which is the reference's is said to differ.
FALSE_ALARM = 0.01
#: Relative differences below this never count.
FLOOR = 1e-3
MOST_PRIOR = 3.0

#: Values by machine and training seed, and those of a run by training seed.
ByMachine = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Variance:
    """A variance and its degrees of freedom; 0 of them: unknown."""

    value: float = 0.0
    freedom: float = 0.0


@dataclass(frozen=True)
class Parts:
    """What a reference's values say: their mean, and their spreads."""

    mean: float
    trainings: Variance
    machines: Variance
    seeds: int
    per_seed: float  #: machines behind each training seed


@dataclass(frozen=True)
class Score:
    """How far a run is from the reference: in standard errors, with its p-value."""

    difference: float
    error: float
    freedom: float
    paired: bool

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.error

    @property
    def p(self) -> float:
        """Two-sided p-value of Student's t."""
        return float(2 * stdtr(self.freedom, -abs(self.z)))


def parts(reference: ByMachine) -> Parts:
    """Mean, spread between trainings and spread between machines of a reference's values."""
    seeds = sorted({seed for values in reference.values() for seed in values})
    groups = [[v[seed] for v in reference.values() if seed in v] for seed in seeds]
    means = [math.fsum(group) / len(group) for group in groups]
    inner = sum(len(group) - 1 for group in groups)
    within = sum((v - m) ** 2 for group, m in zip(groups, means, strict=True) for v in group)
    return Parts(
        math.fsum(means) / len(means),
        Variance(float(np.var(means, ddof=1)), len(means) - 1) if len(means) > 1 else Variance(),
        Variance(within / inner, inner) if inner else Variance(),
        len(seeds),
        len(groups) / sum(1 / len(group) for group in groups),
    )


def moderated(variances: Sequence[Variance]) -> list[Variance]:
    """Each variance with what all say of their common size; unknown ones get that alone."""
    known = [v for v in variances if v.freedom]
    if len(known) < 3:
        return [Variance(v.value + FLOOR**2, v.freedom) for v in variances]
    half = np.array([v.freedom / 2 for v in known])
    logs = np.log([v.value + FLOOR**2 for v in known]) - psi(half) + np.log(half)
    excess = float(np.var(logs, ddof=1) - polygamma(1, half).mean())
    prior = min(MOST_PRIOR, 2 * _trigamma_inverse(excess) if excess > 0 else math.inf)
    common = math.exp(logs.mean() + psi(prior / 2) - math.log(prior / 2))
    return [
        Variance(
            (prior * common + v.freedom * (v.value + FLOOR**2)) / (prior + v.freedom)
            if v.freedom
            else common,
            prior + v.freedom,
        )
        for v in variances
    ]


def _trigamma_inverse(value: float) -> float:
    def excess(log: float) -> float:
        return float(polygamma(1, math.exp(log))) - value

    low, high = math.log(1e-3), math.log(1e6)
    return math.exp(brentq(excess, low, high)) if excess(low) > 0 > excess(high) else 1e-3


def score(run: Mapping[int, float], reference: ByMachine, known: Parts) -> Score | None:
    """Compare a run's values by training seed; None where no spread is known.

    ``known`` has the moderated variances.
    """
    alike = {seed for values in reference.values() for seed in values} & run.keys()
    machines = known.machines
    if alike and machines.freedom:
        groups = {seed: [v[seed] for v in reference.values() if seed in v] for seed in alike}
        difference = float(np.mean([run[seed] - np.mean(groups[seed]) for seed in alike]))
        share = float(np.mean([1 / len(group) for group in groups.values()]))
        return Score(difference, math.sqrt(machines.value * (1 + share)), machines.freedom, True)
    trainings = known.trainings
    if not trainings.freedom:
        return None
    variance = trainings.value * (1 / len(run) + 1 / known.seeds)
    variance += machines.value * (1 + 1 / known.per_seed)
    difference = float(np.mean(list(run.values()))) - known.mean
    return Score(difference, math.sqrt(variance), trainings.freedom, False)


def holm(p_values: Sequence[float], level: float = FALSE_ALARM) -> list[bool]:
    """Which hypotheses Holm's method rejects: wrongly any with at most probability ``level``."""
    order = np.argsort(p_values, kind="stable")
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
