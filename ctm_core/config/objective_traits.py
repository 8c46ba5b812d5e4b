"""What the configuration has to know of each training objective.

Each file of ``ctm_core/training/objectives`` says it in its own literal ``TRAITS``, which is read
without importing the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ctm_core.config._section import Section
from ctm_core.config._traits import modules, read_traits

FOLDER = Path(__file__).parents[1] / "training" / "objectives"


class ObjectiveTraits(Section):
    """Which networks an objective trains with, which keys it has, what its models can do."""

    time_s: bool = Field(default=True, description="the network knows the target time s")
    inner: Literal["edm", "cm"] = Field(
        default="edm", description="parametrisation of the network: ctm_core.diffusion.scalings"
    )
    teacher: bool = Field(
        default=True,
        description="a teacher is integrated; without one, students start from random weights "
        "unless the file says otherwise",
    )
    final_only: bool = Field(
        default=False,
        description="s is sigma_min in every draw, so models are sampled with gamma = 1",
    )
    matching: bool = Field(
        default=True,
        description="u and k are a choice; otherwise the solver goes one step of the grid",
    )
    target_inner: bool = Field(
        default=True, description="the weights of the target's inner map are a choice"
    )
    dsm: bool = Field(default=True, description="denoising score matching can be added")
    scratch_solver: bool = Field(default=False, description="the solver is made of its average")


def objectives() -> list[str]:
    """Names of all objectives: the files of ctm_core/training/objectives."""
    return modules(FOLDER)


def traits(name: str) -> ObjectiveTraits:
    """What the file of an objective says of it; the defaults if there is no such file.

    Raises
    ------
    UserError
        If a trait is unknown or not a literal.
    """
    file = FOLDER / f"{name}.py"
    return read_traits(file, ObjectiveTraits) if file.exists() else ObjectiveTraits()
