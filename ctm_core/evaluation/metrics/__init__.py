"""Scores of sets of images, one module a metric.

:mod:`.state` is what a pass over images leaves, of samples and of the reference
alike; :mod:`.scoring` turns two states into named values, by
:mod:`.names`.
"""

from ctm_core.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.reference import (
    Reference,
    load_reference,
    settings,
    write_reference,
)
from ctm_core.evaluation.metrics.scoring import Settings, scores
from ctm_core.evaluation.metrics.state import Outputs, State

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
