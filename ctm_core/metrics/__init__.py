"""Scores of sets of images, one module a metric.

:mod:`~ctm_core.metrics.state` is what a pass over images leaves, of samples and of the reference
alike; :mod:`~ctm_core.metrics.scoring` turns two states into named values, by
:mod:`~ctm_core.metrics.names`.
"""

from ctm_core.metrics.frechet import FrechetDistance, frechet_distance
from ctm_core.metrics.moments import Moments
from ctm_core.metrics.reference import Reference, load_reference, settings, write_reference
from ctm_core.metrics.scoring import Settings, scores
from ctm_core.metrics.state import Outputs, State

__all__ = [
    "FrechetDistance",
    "Moments",
    "Outputs",
    "Reference",
    "Settings",
    "State",
    "frechet_distance",
    "load_reference",
    "scores",
    "settings",
    "write_reference",
]
