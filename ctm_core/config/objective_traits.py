"""What the configuration has to know of each training objective.

Each file of ``ctm_core/training/objectives`` says it in its own literal ``TRAITS``, which is read
without importing the file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ctm_core.config._section import Name, Section
from ctm_core.config._traits import PACKAGE, Registry


class ObjectiveTraits(Section):
    """Which networks an objective trains with, which keys it has, what its models can do."""

    time_s: bool = Field(True, description="the network knows the target time s")
    inner: Literal["edm", "cm"] = Field(
        "edm", description="parametrisation of the network: ctm_core.diffusion.scalings"
    )
    teacher: bool = Field(
        True,
        description="a teacher is integrated; without one, students start from random weights "
        "unless the file says otherwise",
    )
    final_only: bool = Field(
        False,
        description="s is sigma_min in every draw, so models are sampled with gamma = 1",
    )
    matching: bool = Field(
        True,
        description="u and k are a choice; otherwise the solver goes one step of the grid",
    )
    target_inner: bool = Field(
        True, description="the weights of the target's inner map are a choice"
    )
    dsm: bool = Field(True, description="denoising score matching can be added")
    scratch_solver: bool = Field(False, description="the solver is made of its average")


OBJECTIVES = Registry(
    PACKAGE / "training" / "objectives",
    ObjectiveTraits,
    "there is no such objective; there are {known}",
)
objectives, traits = OBJECTIVES.names, OBJECTIVES.traits
ObjectiveName = Annotated[Name, AfterValidator(OBJECTIVES.known)]
