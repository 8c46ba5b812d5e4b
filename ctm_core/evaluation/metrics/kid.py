r"""The kernel distance (KID), an unbiased squared MMD (Bińkowski et al., 2018).

With the kernel :math:`k(x, y) = (x^\top y / D + 1)^3`, n samples x and m reference features y,

.. math:: \widehat{\mathrm{MMD}}^2 = \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j)
            + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm} \sum_{i,j} k(x_i, y_j).

:func:`kid` takes all pairs, in pieces. Its standard error is that of the samples, by leaving out
one at a time: with the row sums :math:`r_i = \sum_{j \ne i} k(x_i, x_j)` and
:math:`c_i = \sum_j k(x_i, y_j)` every such value is known at no cost. :func:`kid_of_subsets` is
the mean over random subsets that clean-fid, torch-fidelity and the authors print. It has the same
expectation and more noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ctm_core.config.protocols import Protocol
from ctm_core.diffusion import randomness
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, delete_d, of_independent

PIECE = 4096


def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """k(x, y) for all pairs of rows: float64 (n, m)."""
    product = x.to(torch.float64) @ y.to(torch.float64).T
    return product.div_(x.shape[1]).add_(1.0).pow_(3)


def _row_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums of the kernel over all other rows: float64 (n,)."""
    sums = torch.zeros(len(x), dtype=torch.float64)
    starts = range(0, len(x), PIECE)
    for i in starts:
        for j in (j for j in starts if j >= i):
            values = kernel(x[i : i + PIECE], x[j : j + PIECE])
            if i == j:
                values.fill_diagonal_(0.0)
            else:
                sums[j : j + PIECE] += values.sum(dim=0)
            sums[i : i + PIECE] += values.sum(dim=1)
    return sums


def self_similarity(features: torch.Tensor) -> float:
    """The mean of the kernel over pairs of different rows; of the reference it is wanted once."""
    n = len(features)
    if n < 2:
        raise ValueError(f"a kernel distance needs two rows of each set, not {n}")
    return float(_row_sums(features).sum()) / (n * (n - 1))


def kid(
    samples: torch.Tensor, reference: torch.Tensor, reference_similarity: float | None = None
) -> Estimate:
    """The distance over all pairs, with the standard error of the samples.

    Features (n, D) and (m, D), n ≥ 3 and m ≥ 2; ``self_similarity(reference)``, if known.
    """
    n, m = len(samples), len(reference)
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"features {tuple(samples.shape)} and {tuple(reference.shape)} have no distance"
        )
    if n < 3:
        raise ValueError(f"a kernel distance with its error needs three samples, not {n}")
    if reference_similarity is None:
        reference_similarity = self_similarity(reference)
    own = _row_sums(samples)
    across = torch.zeros(n, dtype=torch.float64)
    for i in range(0, n, PIECE):
        for j in range(0, m, PIECE):
            across[i : i + PIECE] += kernel(samples[i : i + PIECE], reference[j : j + PIECE]).sum(
                dim=1
            )
    all_own, all_across = own.sum(), across.sum()
    value = all_own / (n * (n - 1)) + reference_similarity - 2 * all_across / (n * m)
    left_out = (
        (all_own - 2 * own) / ((n - 1) * (n - 2))
        + reference_similarity
        - 2 * (all_across - across) / ((n - 1) * m)
    )
    return delete_d(float(value), left_out.tolist())


def subset_draws(
    seed: int, n: int, m: int, subsets: int, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random rows, without repetition, of n samples and m reference features; int64 (size,)."""
    if not 2 <= size <= min(n, m):
        raise ValueError(f"subsets of {size} cannot be drawn from {n} samples and {m} images")
    for subset in range(subsets):
        ours = randomness.permutation(seed, "kid/samples", subset, n)[:size]
        theirs = randomness.permutation(seed, "kid/reference", subset, m)[:size]
        yield torch.from_numpy(ours), torch.from_numpy(theirs)


def kid_of_subsets(
    samples: torch.Tensor,
    reference: torch.Tensor,
    draws: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> Estimate:
    """The mean over subsets: rows of (n, D) and (m, D) as :func:`subset_draws` draws them.

    The value alone: subsets overlap, so their spread is no standard error.
    """
    values = []
    for ours, theirs in draws:
        x, y = samples[ours], reference[theirs]
        across = float(kernel(x, y).mean())
        values.append(self_similarity(x) + self_similarity(y) - 2 * across)
    return Estimate(of_independent(torch.tensor(values, dtype=torch.float64)).value)


def score_kid(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The distance over all pairs of kept features, or over the protocol's subsets."""
    x, y = samples["features"], reference["features"]
    if protocol.kid.subsets:
        draws = subset_draws(0, len(x), len(y), protocol.kid.subsets, protocol.kid.size)
        estimate = kid_of_subsets(x, y, draws)
    else:
        estimate = kid(x, y, reference.remembered("similarity", lambda: self_similarity(y)))
    return {MetricName("kid", protocol.features, len(x)): estimate}
