r"""Improved precision and recall (Kynkäänniemi et al., 2019).

The manifold of a set is the union of closed balls about its members, each reaching to the member's
k-th nearest other member (k = 3 in the paper). Precision is the share of samples on the manifold
of the reference, recall the share of the reference on the manifold of the samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ctm_core.evaluation.metrics.neighbours import distance_pieces, radii
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent

__all__ = ["K", "PrecisionRecall", "precision_recall"]

K = 3


class PrecisionRecall(NamedTuple):
    """Both shares; given the reference, precision is a mean of independent terms."""

    precision: Estimate
    recall: Estimate


def precision_recall(
    samples: torch.Tensor,
    reference: torch.Tensor,
    k: int = K,
    reference_radii: torch.Tensor | None = None,
) -> PrecisionRecall:
    """Improved precision and recall.

    Parameters
    ----------
    samples, reference
        Features (n, D) and (m, D).
    k
        Which neighbour a ball reaches to.
    reference_radii
        ``radii(reference, k)``, if known.

    Raises
    ------
    ValueError
        If dimensions differ or a set has not more than k rows.
    """
    reach = radii(reference, k) if reference_radii is None else reference_radii
    own = radii(samples, k)
    real = torch.zeros(len(samples), dtype=torch.bool)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for place, squared in distance_pieces(samples, reference):
        real[place] = (squared <= reach).any(dim=1)
        covered |= (squared <= own[place, None]).any(dim=0)
    return PrecisionRecall(of_independent(real), Estimate(float(covered.double().mean())))
