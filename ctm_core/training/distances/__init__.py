"""Distances d of the consistency loss, one file each; one value per sample.

A distance is a subclass of :class:`ctm_core.training.distance.Distance` with a module-level name
``DISTANCE`` in a file of this folder, and its traits, a literal ``TRAITS``
(:mod:`ctm_core.config.distance_traits`); the file's name is the distance's name in configurations.
"""

from __future__ import annotations

import importlib

from ctm_core.config import Perceptual
from ctm_core.config.distance_traits import distances
from ctm_core.runtime.errors import UserError
from ctm_core.training.distance import Distance

__all__ = ["build_distance", "find"]


def find(name: str) -> type[Distance]:
    """The class of the distance called ``name``; raises UserError if there is none."""
    if name not in distances():
        raise UserError(f"no distance {name!r}; there are: {', '.join(distances())}")
    kind: type[Distance] = importlib.import_module(f"{__name__}.{name}").DISTANCE
    return kind


def build_distance(name: str, perceptual: Perceptual | None = None) -> Distance:
    """The distance of a configuration, its weights loaded and frozen, on the CPU in float32."""
    distance = find(name).configured(perceptual)
    distance.read_weights()
    return distance
