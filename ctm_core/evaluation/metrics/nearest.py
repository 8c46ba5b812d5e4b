r"""Memorisation: how near samples lie to training images, beside images the model never saw.

The distance of an image is the root of the mean squared difference, in levels 0 … 255, between it
and the nearest training image: in the space of pixels, so that a copy shows whatever a feature
network thinks of it, and no network is needed. Distances of samples are compared with those of
held-out images to the same training images.

* ``probability``: that a random sample lies nearer to the training set than a random held-out
  image, ties counting half (the area under the ROC curve). 0.5 for samples that are as far from
  the training set as held-out images, towards 1 for copies. Towards 0 means farther than held-out
  images: poor samples are no copies.
* ``ratio``: median distance of the samples over that of the held-out images.

Neither is better when higher or lower, so no row wins. Pixels do not see a copy that was shifted,
and blurred samples lie near everything: read it beside a Fréchet distance. Mirror images count as
other images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ctm_core.config.protocols import Protocol
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.state import State
from ctm_core.evaluation.metrics.subsampling import Estimate, of_independent

#: Training images compared at a time.
PIECE = 8192


class Memorisation(NamedTuple):
    """What the two sets of distances say."""

    probability: Estimate
    ratio: float | None


class Nearest(NamedTuple):
    """Which training image is nearest to each of n images."""

    distances: torch.Tensor  #: float64 (n,), in levels
    indices: torch.Tensor  #: int64 (n,); of several equally near, the first


def find_nearest(
    images: torch.Tensor,
    training: torch.Tensor | NDArray[np.uint8],
    *,
    own: torch.Tensor | None = None,
) -> Nearest:
    """Nearest training image of each image.

    uint8 (n, C, H, W) and (m, C, H, W); products of levels are whole numbers, exact in float64, so
    a copy is at distance 0. ``own``, int64 (n,): the images are these training images, and each is
    compared with the others. A memory-mapped array of training images is read in pieces.
    """
    if images.shape[1:] != training.shape[1:] or not len(training):
        raise ValueError(
            f"images {tuple(images.shape)} have no nearest one among {tuple(training.shape)}"
        )
    rows = images.flatten(1).to(torch.float64)
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(rows), dtype=torch.int64)
    for start in range(0, len(training), PIECE):
        others = torch.asarray(training[start : start + PIECE], dtype=torch.float64).flatten(1)
        squared = torch.addmm(others.square().sum(dim=1)[None], rows, others.T, alpha=-2.0)
        if own is not None:
            here = ((own >= start) & (own < start + len(others))).nonzero()[:, 0]
            squared[here, own[here] - start] = torch.inf
        least, here = squared.min(dim=1)
        indices = torch.where(least < best, start + here, indices)
        best = torch.minimum(best, least)
    return Nearest(((best + rows.square().sum(dim=1)) / rows.shape[1]).sqrt(), indices)


def nearest_distances(
    images: torch.Tensor, training: torch.Tensor, *, own: torch.Tensor | None = None
) -> torch.Tensor:
    """Distances of :func:`find_nearest` alone."""
    return find_nearest(images, training, own=own).distances


def memorisation(samples: torch.Tensor, held_out: torch.Tensor) -> Memorisation:
    """Compare distances (n,) of samples with those (m,) of held-out images.

    The probability is a mean over samples, given the held-out images, and has that mean's standard
    error. The ratio is None where half of the held-out images are copies themselves.
    """
    if not len(samples) or not len(held_out):
        raise ValueError("memorisation compares samples with held-out images; a set is empty")
    sorted_ = held_out.sort().values
    farther = len(sorted_) - torch.searchsorted(sorted_, samples, right=True)
    at_least = len(sorted_) - torch.searchsorted(sorted_, samples)
    share = (farther + at_least).double() / (2 * len(sorted_))
    middle = float(held_out.quantile(0.5))
    ratio = float(samples.quantile(0.5)) / middle if middle > 0 else None
    return Memorisation(of_independent(share), ratio)


def score_memorisation(
    samples: State, reference: State, protocol: Protocol, errors: bool
) -> dict[MetricName, Estimate]:
    """The probability, and the ratio where there is one."""
    n = len(samples["nearest"])
    compared = memorisation(samples["nearest"], reference["nearest"])
    estimates = {MetricName("memorisation", n=n): compared.probability}
    if compared.ratio is not None:
        estimates[MetricName("memorisation_ratio", n=n)] = Estimate(compared.ratio)
    return estimates
