"""What the configuration has to know of each training objective.

Each file of ``ctm_core/training/objectives`` says it in its own literal ``TRAITS``, which is read
without importing the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ctm_core.config._section import Name, Section
from ctm_core.config._traits import PACKAGE, Registry

#: A value of an objective's own setting.
Value = (
    bool
    | Annotated[int, Field(ge=-(10**12), le=10**12)]
    | Annotated[float, Field(ge=-1e12, le=1e12)]
    | Name
)


class SettingTraits(Section):
    """One of an objective's own numbers or words: a student's ``settings`` may have it."""

    default: bool | int | float | str = Field(description="its type is that of every value")
    description: str
    minimum: float | None = Field(None, description="of a number, which has both bounds")
    maximum: float | None = None
    choices: list[Name] = Field([], description="the words that are allowed")

    def _problems(self) -> Iterator[str]:
        bounds = (self.minimum, self.maximum)
        if type(self.default) in (int, float) and None in bounds:
            yield "a number needs minimum and maximum"
        if (problem := self.problem(self.default)) is not None:
            yield f"its default {problem}"

    def typed(self, value: Any) -> Any:
        """The value, with whole numbers as floats where the default is one."""
        return float(value) if type(self.default) is float and type(value) is int else value

    def problem(self, value: Any) -> str | None:
        """Why a value, as :meth:`typed` returns it, is not allowed; None if it is."""
        if isinstance(self.default, str):
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if type(value) is not type(self.default):
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            return f"must be {kinds[type(self.default)]}"
        if isinstance(value, bool) or (self.minimum or 0) <= value <= (self.maximum or 0):
            return None
        return f"must lie between {self.minimum:g} and {self.maximum:g}"


class ObjectiveTraits(Section):
    """Which networks an objective trains with, which keys it has, what its models can do."""

    time_s: bool = Field(True, description="the network knows the target time s")
    inner: Literal["edm", "cm", "ect", "native"] = Field(
        "edm", description="parametrisation of the network: ctm_core.diffusion.scalings"
    )
    teacher: bool = Field(True, description="training evaluates a teacher")
    initial: Literal["teacher", "random"] | None = Field(
        None,
        description="what students start from unless the file says otherwise; null: the teacher "
        "if it is evaluated, else random weights",
    )
    final_only: bool = Field(
        False,
        description="models jump to one time alone, so they are sampled with gamma = 1",
    )
    end: float | None = Field(
        None, description="that time, at which models are the identity; null: sigma_min"
    )
    ctm_loss: bool = Field(
        True, description="the keys of CTM's loss apply: grid, target, distance, dsm, adversary"
    )
    settings: dict[Name, SettingTraits] = Field(
        {}, description="keys of its own, with their defaults"
    )
    group: Name | None = Field(
        None, description="the setting that says how many consecutive samples share a draw"
    )
    second: Literal["init", "weak_teacher"] | None = Field(
        None,
        description="a second frozen network: the EMA that the model starts from, which it then "
        "needs, or an earlier snapshot of the teacher, which it can have",
    )
    zero_s: bool = Field(
        False, description="the new layers of s start at zero, so that step 0 is the teacher"
    )
    jvp: bool | Literal["differentiated"] = Field(
        False,
        description="training takes a derivative of the network in forward mode, and "
        "`differentiated` the gradient of what it returns",
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

    def _problems(self) -> Iterator[str]:
        if self.end is not None and (self.time_s or not self.final_only):
            yield "end is of models without s that are final_only"
        if self.group is not None and self.group not in self.settings:
            yield f"group must name one of settings, not {self.group}"

    def only_end(self, sigma_min: float) -> float | None:
        """The one time that models jump to; None: any."""
        if not self.final_only:
            return None
        return sigma_min if self.end is None else self.end


OBJECTIVES = Registry(
    PACKAGE / "training" / "objectives",
    ObjectiveTraits,
    "there is no such objective; there are {known}",
)
objectives, traits = OBJECTIVES.names, OBJECTIVES.traits
ObjectiveName = Annotated[Name, AfterValidator(OBJECTIVES.known)]
