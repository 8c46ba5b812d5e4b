"""Which samplers there are, and which of them can sample which model with which γ and NFE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from ctm_core.config._section import OneOf, Positive, Section
from ctm_core.config._traits import PACKAGE, Registry

#: What students and teachers are sampled by unless another is named.
JUMP_SAMPLER, ODE_SAMPLER = "gamma", "heun"


class SamplerTraits(Section):
    """What a sampler's file says of it in ``TRAITS``."""

    jumps: bool = Field(description="by G; otherwise it follows the ODE of the denoiser")
    gamma: bool = Field(False, description="whether it takes a γ")
    evaluations_per_step: Positive = Field(
        1, description="of an ODE sampler, whose last step takes one"
    )
    label: str | None = Field(
        None, description="in tables and figures, '' for none; default: the file's name"
    )


SAMPLERS = Registry(
    PACKAGE / "diffusion" / "samplers",
    SamplerTraits,
    "unknown sampler {name!r}; allowed: {known}",
    first=(JUMP_SAMPLER, ODE_SAMPLER),
)
sampler_traits = SAMPLERS.traits


def samplers(*, jumps: bool | None = None) -> list[str]:
    """Names of all samplers, or of those that jump or do not; the default ones first."""
    return [n for n in SAMPLERS.names() if jumps in (None, sampler_traits(n).jumps)]


def sampler_label(name: str) -> str:
    """What tables and figures call a sampler; empty for the one that needs no name.

    Results may name a sampler that there is no more.
    """
    label = sampler_traits(name).label if name in samplers() else None
    return name if label is None else label


def sampling_problem(
    sampler: str,
    nfe: int,
    gamma: float | None,
    times: Sequence[float] = (),
    *,
    jumps: bool = True,
    final_only: bool = False,
    span: tuple[float, float] = (0.0, math.inf),
) -> str | None:
    """Why a model cannot be sampled this way, as a sentence; None if it can.

    γ may be None at NFE 1, where no noise is added. ``jumps``: the model has a G; ``final_only``:
    it jumps to one time alone. ``times`` are empty for a grid, or lie within ``span``, the end
    and the start of sampling.
    """
    try:
        traits = sampler_traits(SAMPLERS.known(sampler))
    except ValueError as error:
        return str(error)
    if nfe < 1:
        return f"sampling needs at least one evaluation, not nfe = {nfe}"
    per_step = traits.evaluations_per_step
    if (nfe - 1) % per_step:
        return (
            f"sampler {sampler} takes {per_step} evaluations per step and one for the last, so "
            f"nfe must be 1, {1 + per_step}, {1 + 2 * per_step}, …, not {nfe}"
        )
    if gamma is not None and not traits.gamma:
        return f"sampler {sampler} has no gamma; leave it out"
    if gamma is not None and not 0 <= gamma <= 1:
        return f"gamma must lie in [0, 1], not {gamma:g}"
    if traits.jumps and not (jumps or final_only):
        return (
            f"sampler {sampler} needs a model that jumps, and this one is a denoiser (a teacher); "
            f"use {' or '.join(samplers(jumps=False))}"
        )
    if gamma is None and traits.gamma and nfe > 1:
        return f"sampler {sampler} with nfe = {nfe} needs a gamma in [0, 1]"
    if final_only and not (traits.gamma and gamma in (None, 1)):
        given = f"sampler {sampler}" if gamma is None else f"gamma {gamma:g}"
        return f"a model that only jumps to the end is sampled with gamma 1, not {given}"
    return _times_problem(sampler, nfe, times, span) if times else None


def _times_problem(
    sampler: str, nfe: int, times: Sequence[float], span: tuple[float, float]
) -> str | None:
    if not sampler_traits(sampler).jumps:
        return f"sampler {sampler} follows the ODE on the grid; leave times out"
    if len(times) != nfe - 1:
        return f"nfe = {nfe} needs {nfe - 1} times between its jumps, but got {len(times)}"
    levels = [span[1], *times, span[0]]
    if any(after >= before for before, after in pairwise(levels)):
        given = ", ".join(f"{time:g}" for time in times)
        start, end = (f"{level:g}" for level in reversed(span))
        return f"times must decrease and lie between {start} and {end}, but got {given}"
    return None


#: A sampler's name in a configuration file.
SamplerName = Annotated[str, OneOf(tuple(samplers()))]
