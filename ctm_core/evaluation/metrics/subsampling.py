r"""Standard errors of a metric from the samples of one seed.

**Delete-d subsampling** (Shao & Wu, 1989). Let :math:`\theta_b` be the metric of all n samples but
the d = n/B of block b. Then

.. math:: \hat v = \frac{n - d}{d\,B} \sum_b (\theta_b - \bar\theta)^2
              = \frac{B - 1}{B} \sum_b (\theta_b - \bar\theta)^2

estimates the variance of the metric over sets of n samples, with B - 1 degrees of freedom. All
:math:`\theta_b` have one number of samples, so a bias that depends on it cancels. Of metrics that
are means of independent terms the error is that of the mean.

The reference stays as it is: the error says how far another set of samples would move the value,
which is what rows of one table differ by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Estimate(NamedTuple):
    """A value, the standard error of its samples, and the error's degrees of freedom.

    ``rank_deficient`` as :class:`ctm_core.evaluation.metrics.frechet.FrechetDistance` has it.
    """

    value: float
    standard_error: float | None = None
    freedom: int | None = None
    rank_deficient: bool = False


def delete_d(value: float, left_out: Sequence[float]) -> Estimate:
    """A value with its error, from those without each of at least two blocks of equal size."""
    count = len(left_out)
    if count < 2:
        raise ValueError(f"delete-d subsampling needs two blocks, not {count}")
    theta = torch.tensor(left_out, dtype=torch.float64)
    variance = (count - 1) / count * (theta - theta.mean()).square().sum()
    return Estimate(value, float(variance.sqrt()), count - 1)


def of_independent(terms: torch.Tensor) -> Estimate:
    """The mean of independent terms (n,); no error for a single one."""
    terms = terms.to(torch.float64)
    n = len(terms)
    if n == 0:
        raise ValueError("there is nothing to average")
    if n == 1:
        return Estimate(float(terms[0]))
    return Estimate(float(terms.mean()), float(terms.std() / n**0.5), n - 1)
