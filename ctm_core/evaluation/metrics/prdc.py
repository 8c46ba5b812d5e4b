r"""Precision, recall, density and coverage, from nearest neighbours among features.

A ball reaches from each member of a set of features to its k-th nearest other member; the union of
a set's closed balls is its manifold.

* Improved precision is the share of samples on the manifold of the reference, recall the share of
  the reference on the manifold of the samples (Kynkäänniemi et al., 2019; k = 3).
* Density is the mean number of the reference's balls that hold a sample, over k; it may exceed 1.
  Coverage is the share of these balls that hold at least one sample (Naeem et al., 2020; k = 5).

Squared distances are |a|² + |b|² - 2 a·b in float64, after the mean of one set is taken from both.
Below 1e-12 of |a|² + |b|² they are rounding, float32's own included, and count as 0: copies of an
image must lie within a ball of radius 0 about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent

#: Elements of one piece of distances: 64 MB.
PIECE = 2**23
ROUNDING = 1e-12


def distance_pieces(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some rows of (n, D) to all of (m, D) at a time.

    Yields the rows' place in (n,), and float64 (piece, m), not negative.
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(
            f"features {tuple(rows.shape)} and {tuple(columns.shape)} have no distances"
        )
    if not len(rows) or not len(columns):
        raise ValueError("an empty set of features has no neighbours")
    mean = columns.mean(dim=0, dtype=torch.float64)
    b = columns.to(torch.float64) - mean
    b_norm = b.square().sum(dim=1)
    step = max(1, PIECE // len(columns))
    for start in range(0, len(rows), step):
        place = slice(start, min(start + step, len(rows)))
        a = rows[place].to(torch.float64) - mean
        norms = a.square().sum(dim=1)[:, None] + b_norm
        squared = torch.addmm(norms, a, b.T, alpha=-2.0)
        yield place, squared.masked_fill_(squared < ROUNDING * norms, 0.0)


def radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row; float64 (n,)."""
    if not 1 <= k < len(features):
        raise ValueError(f"{len(features)} rows have no {k}-th nearest other row")
    reach = torch.empty(len(features), dtype=torch.float64)
    for place, squared in distance_pieces(features, features):
        own = torch.arange(place.start, place.stop)
        squared[torch.arange(len(own)), own] = torch.inf
        reach[place] = squared.kthvalue(k, dim=1).values
    return reach


def precision_recall(
    samples: Tensor, reference: Tensor, k: int, reference_radii: Tensor | None = None
) -> dict[str, Estimate]:
    """Improved precision and recall, by name, from features (n, D) and (m, D).

    ``reference_radii`` is ``radii(reference, k)``, if known. Given the reference, precision is a
    mean of independent terms.
    """
    reach = radii(reference, k) if reference_radii is None else reference_radii
    own = radii(samples, k)
    real = torch.zeros(len(samples), dtype=torch.bool)
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    for place, squared in distance_pieces(samples, reference):
        real[place] = (squared <= reach).any(dim=1)
        recalled |= (squared <= own[place, None]).any(dim=0)
    recall = Estimate(float(recalled.double().mean()))
    return {"precision": of_independent(real), "recall": recall}


def density_coverage(
    samples: Tensor, reference: Tensor, k: int, reference_radii: Tensor | None = None
) -> dict[str, Estimate]:
    """Density and coverage, by name; parameters and errors as :func:`precision_recall`'s.

    Given the reference, density is a mean of independent terms. The samples may be fewer than k.
    """
    reach = radii(reference, k) if reference_radii is None else reference_radii
    balls = torch.empty(len(samples), dtype=torch.float64)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for place, squared in distance_pieces(samples, reference):
        within = squared <= reach
        balls[place] = within.sum(dim=1).double()
        covered |= within.any(dim=0)
    coverage = Estimate(float(covered.double().mean()))
    return {"density": of_independent(balls / k), "coverage": coverage}


def _score(
    compare: Callable[[Tensor, Tensor, int, Tensor], dict[str, Estimate]],
    samples: State,
    reference: State,
    protocol: Protocol,
    errors: bool,
) -> dict[MetricName, Estimate]:
    """Two shares by the k that the protocol has for them."""
    x, y = samples["features"], reference["features"]
    k = getattr(protocol.neighbours, compare.__name__)
    reach = reference.remembered(f"radii {k}", lambda: radii(y, k))
    shares = compare(x, y, k, reach)
    return {MetricName(family, protocol.features, len(x)): shares[family] for family in shares}


score_precision_recall = partial(_score, precision_recall)
score_density_coverage = partial(_score, density_coverage)
