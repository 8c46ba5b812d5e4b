"""Scores of sets of images.

A metric is one module and one entry of :mod:`ctm_core.config.metric_registry`. :mod:`.state` is
what a pass over images leaves, of samples and of the reference alike; :mod:`.scoring` turns two
states into values named by :mod:`.names`.
"""

from ctm_core.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.evaluation.metrics.reference import Reference, load_reference, write_reference
from ctm_core.evaluation.metrics.scoring import scores
from ctm_core.evaluation.metrics.state import State

__all__ = [
    "FrechetDistance",
    "Moments",
    "Reference",
    "State",
    "frechet_distance",
    "load_reference",
    "scores",
    "write_reference",
]
