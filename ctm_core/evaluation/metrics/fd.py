r"""Fréchet distances of n samples, with their error, at n/2 and n/4, and at infinitely many.

The expected distance of n samples is :math:`d_\infty + b/n + O(n^{-2})` with a b > 0 that depends
on the model: two models are compared fairly at infinite n alone (Chong & Forsyth, 2020). The value
at n/2 is the mean over both halves and that at n/4 over all quarters, so each size uses every
sample once. The intercept of the least-squares line through the three values over 1/n estimates
:math:`d_\infty`. It may be negative near zero. Below n/4 = 4 D the line is no approximation.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.blocks import groups, left_out, whole
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, delete_d

PARTS = (1, 2, 4)
#: Samples of the smallest part, in dimensions.
DIMENSIONS = 4
#: Blocks below which a standard error is not worth printing.
FEWEST_BLOCKS = 4


def is_long_enough(n: int, dim: int) -> bool:
    """Whether n samples of D dimensions may be extrapolated: n/4 ≥ 4 D."""
    return n // PARTS[-1] >= DIMENSIONS * dim


def intercept(values: dict[int, float]) -> float:
    """Value at 1/n = 0 of the least-squares line through values by n; at least two of them."""
    inverse = [1 / n for n in values]
    return statistics.linear_regression(inverse, list(values.values())).intercept


def at_parts(blocks: Sequence[Moments], reference: Moments) -> dict[int, float]:
    """Distances of n, n/2 and n/4 samples from the reference, by their number."""
    n = sum(block.n for block in blocks)
    return {
        n // parts: statistics.fmean(
            frechet_distance(reference, group).value for group in groups(blocks, parts)
        )
        for parts in PARTS
    }


def _distance(blocks: Sequence[Moments], reference: Moments, errors: bool) -> Estimate:
    value, deficient = frechet_distance(reference, whole(blocks))
    estimate = Estimate(value)
    if errors and len(blocks) >= FEWEST_BLOCKS:
        estimate = delete_d(
            value, [frechet_distance(reference, rest).value for rest in left_out(blocks)]
        )
    return estimate._replace(rank_deficient=deficient)


def score_fd(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The distance, and where there are enough samples those of fewer and the extrapolated one."""
    blocks, real = samples.moments(), whole(reference.moments())
    n, net = samples.samples, protocol.features
    fid = protocol.too_little_for_fid(n) is None
    name = MetricName("fid") if fid else MetricName("fd", net, n)
    estimates = {name: _distance(blocks, real, errors)}
    if is_long_enough(n, real.dim) and len(blocks) % PARTS[-1] == 0:
        deficient = estimates[name].rank_deficient
        values = at_parts(blocks, real)
        for size, value in values.items():
            if size < n:
                fewer = MetricName("fd", net, size)
                estimates[fewer] = Estimate(value, rank_deficient=deficient)
        extrapolated = Estimate(intercept(values), rank_deficient=deficient)
        estimates[MetricName("fd", net)] = extrapolated
    return estimates


score_fid = score_fd


def score_sfid(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The distance of spatial features."""
    distance = _distance(samples.moments("spatial"), whole(reference.moments("spatial")), errors)
    return {MetricName("sfid", protocol.features, samples.samples): distance}
