"""Reference statistics that other projects publish as .npz files, read without running anything.

=================  ===========================================================================
array              what it is
=================  ===========================================================================
``mu``, ``sigma``  mean (D,) and covariance (D, D) of the features, divisor n - 1
``mu_s``,          the same of spatial features (ADM's files)
``sigma_s``
``arr_0``          images, uint8 (N, H, W, 3) (ADM's files): for metrics of features themselves
=================  ===========================================================================

EDM's files have the first two. An array is read only after its header says a shape and type that
belong there; objects, which would be pickles, are refused.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.runtime.arrays import Archive
from ctm_core.runtime.errors import UserError

#: No statistics have more dimensions, and no file of them more images.
LARGEST_DIM = 16_384
LARGEST_BYTES = 2**31


class PublishedStatistics(NamedTuple):
    """What a file holds; None where it lacks something."""

    moments: Moments
    spatial: Moments | None
    images: torch.Tensor | None  #: uint8 (N, 3, H, W)


def read_published(path: Path, n: int, *, images: bool = False) -> PublishedStatistics:
    """Read a file of statistics.

    Parameters
    ----------
    path
        The .npz file.
    n
        How many images its means and covariances are of, which it does not say.
    images
        Whether to read its images.

    Raises
    ------
    UserError
        If the file is missing or corrupt, or an array has an unexpected shape or type.
    """
    try:
        with Archive(path) as archive:

            def array(name: str, ndim: int, kinds: str) -> np.ndarray[Any, Any]:
                return _array(archive, name, ndim, kinds)

            moments = _moments(array("mu", 1, "f"), array("sigma", 2, "f"), n)
            spatial = None
            if {"mu_s", "sigma_s"} <= set(archive.names):
                spatial = _moments(array("mu_s", 1, "f"), array("sigma_s", 2, "f"), n)
            pictures = None
            if images and "arr_0" in archive.names:
                pictures = _images(array("arr_0", 4, "u"))
    except ValueError as error:
        raise UserError(f"{path} holds no published statistics: {error}") from None
    return PublishedStatistics(moments, spatial, pictures)


def _array(archive: Archive, name: str, ndim: int, kinds: str) -> np.ndarray[Any, Any]:
    """One array, refused by its header before its values are read."""
    if name not in archive.names:
        raise ValueError(f"the array '{name}' is missing")
    shape, dtype = archive.header(name)
    size = dtype.itemsize * math.prod(shape)
    if dtype.kind not in kinds or len(shape) != ndim or not size:
        raise ValueError(f"{name} is {dtype} of shape {shape}")
    if size > LARGEST_BYTES or (ndim <= 2 and max(shape) > LARGEST_DIM):
        raise ValueError(f"{name} has the impossible shape {shape}")
    return next(archive.rows(name, shape[0]))


def _moments(mean: np.ndarray[Any, Any], covariance: np.ndarray[Any, Any], n: int) -> Moments:
    dim = len(mean)
    if covariance.shape != (dim, dim):
        raise ValueError(f"a mean of {dim} numbers has a covariance of {covariance.shape}")
    both = [torch.from_numpy(np.array(values, dtype=np.float64)) for values in (mean, covariance)]
    if not all(bool(values.isfinite().all()) for values in both):
        raise ValueError("the statistics hold NaN or infinity")
    symmetric = (both[1] + both[1].T) / 2
    return Moments(n, both[0], symmetric * (n - 1))


def _images(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if array.dtype != np.uint8 or array.shape[3] != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"its images are {array.dtype} of shape {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
