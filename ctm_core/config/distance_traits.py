"""What the configuration has to know of each distance of the consistency loss.

Each file of ``ctm_core/training/distances`` says it in its own literal ``TRAITS``, which is read
without importing the file.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ctm_core.config._section import Name, Section
from ctm_core.config._traits import PACKAGE, Registry


class DistanceTraits(Section):
    """Which keys a distance has, and which files it reads."""

    perceptual: bool = Field(
        False, description="it compares features of a network: `perceptual` is needed"
    )
    pooling: bool = Field(False, description="that network's pooling is a choice")
    assets: tuple[str, ...] = Field((), description="names in config/assets.yaml")


DISTANCES = Registry(
    PACKAGE / "training" / "distances",
    DistanceTraits,
    "there is no such distance; there are {known}",
)
distances, distance_traits = DISTANCES.names, DISTANCES.traits
DistanceName = Annotated[Name, AfterValidator(DISTANCES.known)]
