"""Distances between rows of features, in pieces that fit in memory, and nearest neighbours.

Squared distances are |a|² + |b|² - 2 a·b in float64, after the mean of one set is taken from both.
Below 1e-12 of |a|² + |b|² they are rounding, float32's own included, and count as 0: copies of an
image must lie within a ball of radius 0 about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["distance_pieces", "radii"]

#: Elements of one piece of distances: 64 MB.
PIECE = 2**23
ROUNDING = 1e-12


def distance_pieces(
    rows: torch.Tensor, columns: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Squared distances of some rows to all columns at a time.

    Parameters
    ----------
    rows, columns
        Features (n, D) and (m, D).

    Yields
    ------
    The rows' place in (n,), and squared distances (piece, m), float64, not negative.

    Raises
    ------
    ValueError
        If the dimensions differ or a set is empty.
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


def radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each row to its k-th nearest other row; float64 (n,).

    Raises
    ------
    ValueError
        If there are not more than k rows.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"{len(features)} rows have no {k}-th nearest other row")
    found = torch.empty(len(features), dtype=torch.float64)
    for place, squared in distance_pieces(features, features):
        own = torch.arange(place.start, place.stop)
        squared[torch.arange(len(own)), own] = torch.inf
        found[place] = squared.kthvalue(k, dim=1).values
    return found
