r"""Density and coverage (Naeem et al., 2020).

Closed balls reach from each image of the reference to its k-th nearest other one (k = 5 in the
paper). Density is the mean number of balls that hold a sample, over k; it may exceed 1. Coverage
is the share of balls that hold at least one sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ctm_core.evaluation.metrics.neighbours import distance_pieces, radii
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent

__all__ = ["DensityCoverage", "K", "density_coverage"]

K = 5


class DensityCoverage(NamedTuple):
    """Both; given the reference, density is a mean of independent terms."""

    density: Estimate
    coverage: Estimate


def density_coverage(
    samples: torch.Tensor,
    reference: torch.Tensor,
    k: int = K,
    reference_radii: torch.Tensor | None = None,
) -> DensityCoverage:
    """Density and coverage; parameters and errors as :func:`precision_recall`'s.

    The samples may be fewer than k.
    """
    reach = radii(reference, k) if reference_radii is None else reference_radii
    balls = torch.empty(len(samples), dtype=torch.float64)
    held = torch.zeros(len(reference), dtype=torch.bool)
    for place, squared in distance_pieces(samples, reference):
        within = squared <= reach
        balls[place] = within.sum(dim=1).double()
        held |= within.any(dim=0)
    return DensityCoverage(of_independent(balls / k), Estimate(float(held.double().mean())))
