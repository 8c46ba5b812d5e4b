"""Distances between sets of images, from streaming moments of their features."""

from ctm_core.metrics.frechet import FrechetDistance, frechet_distance
from ctm_core.metrics.moments import Moments
from ctm_core.metrics.reference import (
    Reference,
    load_reference,
    reference_moments,
    score,
    write_reference,
)

__all__ = [
    "FrechetDistance",
    "Moments",
    "Reference",
    "frechet_distance",
    "load_reference",
    "reference_moments",
    "score",
    "write_reference",
]
