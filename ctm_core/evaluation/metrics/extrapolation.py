r"""The Fréchet distance at n, n/2 and n/4, and at infinitely many samples.

The expected distance of n samples is :math:`d_\infty + b/n + O(n^{-2})` with a b > 0 that depends
on the model: two models are compared fairly at infinite n alone (Chong & Forsyth, 2020). The value
at n/2 is the mean over both halves and that at n/4 over all quarters, so each size uses every
sample once. The intercept of the least-squares line through the three values over 1/n estimates
:math:`d_\infty`. It may be negative near zero. Below n/4 = 4 D the line is no approximation.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from ctm_core.evaluation.metrics.blocks import Blocks
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments

__all__ = ["PARTS", "Series", "intercept", "is_long_enough", "series"]

PARTS = (1, 2, 4)
#: Samples of the smallest part, in dimensions.
DIMENSIONS = 4


class Series(NamedTuple):
    """Sizes n, n/2, n/4 with the distance at each, and the extrapolated distance."""

    values: dict[int, float]
    extrapolated: float


def is_long_enough(n: int, dim: int) -> bool:
    """Whether n samples of D dimensions may be extrapolated: n/4 ≥ 4 D."""
    return n // PARTS[-1] >= DIMENSIONS * dim


def intercept(values: dict[int, float]) -> float:
    """Value at 1/n = 0 of the least-squares line through values by n; at least two of them."""
    inverse = [1 / n for n in values]
    return statistics.linear_regression(inverse, list(values.values())).intercept


def series(blocks: Blocks, reference: Moments) -> Series:
    """Distances of parts of the samples from the reference.

    Raises
    ------
    ValueError
        If the number of blocks is not a multiple of 4.
    """
    n = sum(part.n for part in blocks.parts)
    values = {}
    for parts in PARTS:
        groups = blocks.groups(parts)
        values[n // parts] = statistics.fmean(
            frechet_distance(reference, group).value for group in groups
        )
    return Series(values, intercept(values))
