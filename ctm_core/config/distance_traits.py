"""What the configuration has to know of each distance of the consistency loss.

Each file of ``ctm_core/training/distances`` says it in its own literal ``TRAITS``, which is read
without importing the file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ctm_core.config._section import Section
from ctm_core.config._traits import modules, read_traits

FOLDER = Path(__file__).parents[1] / "training" / "distances"


class DistanceTraits(Section):
    """Which keys a distance has, and which files it reads."""

    perceptual: bool = Field(
        default=False, description="it compares features of a network: `perceptual` is needed"
    )
    pooling: bool = Field(default=False, description="that network's pooling is a choice")
    assets: tuple[str, ...] = Field(default=(), description="names in config/assets.yaml")


def distances() -> list[str]:
    """Names of all distances: the files of ctm_core/training/distances."""
    return modules(FOLDER)


def distance_traits(name: str) -> DistanceTraits:
    """What the file of a distance says of it; raises UserError if a trait is wrong."""
    return read_traits(FOLDER / f"{name}.py", DistanceTraits)
