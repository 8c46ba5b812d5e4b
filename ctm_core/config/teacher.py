"""The denoiser that students are distilled from."""

from __future__ import annotations

from pydantic import Field

from ctm_core.config._section import Section, Seed
from ctm_core.config.training import Training


class Teacher(Section):
    """An EDM denoiser trained from nothing (Karras et al. 2022)."""

    training: Training
    seed: Seed = 0
    p_mean: float = Field(default=-1.2, description="mean of ln sigma")
    p_std: float = Field(default=1.2, gt=0, description="standard deviation of ln sigma")
