"""A model distilled from the teacher: its objective, and the parts of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ctm_core.config._section import Positive, Rate, Section
from ctm_core.config.training import Training

#: Distances that look through a perceptual network, and the external files of each.
PERCEPTUAL_DISTANCES: dict[str, tuple[str, ...]] = {
    "lpips_vgg": ("vgg16", "lpips-vgg"),
    "stlpips_vgg": ("stlpips-vgg",),
}


class Perceptual(Section):
    """How images are fed to a perceptual network."""

    resize: int = Field(description="side; 224 in the paper, max(32, side) for small images")
    pooling: Literal["average", "max"] | None = Field(
        default=None,
        description="of lpips_vgg, and only there: average (null) as CTM was released, or max as "
        "VGG16 was trained",
    )

    @field_validator("resize")
    @classmethod
    def _at_least_32(cls, value: int) -> int:
        if value < 32:
            raise ValueError("resize must be at least 32: VGG16 halves its input four times")
        return value


class Dsm(Section):
    """Denoising score matching beside the consistency loss (paper section 3.2)."""

    enabled: bool = True
    adaptive: bool = Field(default=True, description="lambda from the ratio of gradient norms")
    weight: float = Field(default=1.0, gt=0, description="factor on lambda, or lambda itself")
    p_mean: float = -1.2
    p_std: float = Field(default=1.2, gt=0)
    uniform_max: float = Field(
        default=0.7, gt=0, le=1, description="upper end of xi; 0.7 as released"
    )
    group: int = Field(
        default=2, ge=2, description="the first half of each group draws log-normally"
    )


class Student(Section):
    """A model distilled from the teacher."""

    objective: Literal["ctm"] = "ctm"
    matching: Literal["soft", "local", "global"] = "soft"
    grid_points: int = Field(default=18, ge=3, description="N: points of the time grid")
    max_heun_steps: Positive | None = Field(
        default=None, description="M: upper end of k; null: N - 1"
    )
    variant: Literal["released", "printed"] = "released"
    target_inner: Literal["model", "ema"] | None = Field(
        default=None,
        description="weights of the target's inner map; null: model if released, else ema",
    )
    target_ema: Rate = Field(default=0.999, description="decay of the stop-gradient network")
    distance: Literal["l2", "pseudo_huber", "lpips_vgg", "stlpips_vgg"] = "l2"
    perceptual: Perceptual | None = Field(
        None, description="for a perceptual distance, and only there"
    )
    dsm: Dsm = Dsm()
    initial: Literal["teacher", "random"] = "teacher"
    training: Training

    @model_validator(mode="after")
    def _consistent(self) -> Student:
        if self.max_heun_steps is not None and self.max_heun_steps > self.grid_points - 1:
            raise ValueError("max_heun_steps must be at most grid_points - 1")
        if self.matching == "global" and self.target_inner is not None:
            raise ValueError("global matching has no inner target map; leave target_inner out")
        perceptual = self.distance in PERCEPTUAL_DISTANCES
        if perceptual and self.perceptual is None:
            raise ValueError(
                f"the distance {self.distance} needs perceptual.resize: 224 as in the paper, or "
                "max(32, side)"
            )
        if not perceptual and self.perceptual is not None:
            raise ValueError(f"perceptual belongs to perceptual distances, not to {self.distance}")
        pooling = None if self.perceptual is None else self.perceptual.pooling
        if pooling is not None and self.distance != "lpips_vgg":
            raise ValueError(f"perceptual.pooling belongs to lpips_vgg, not to {self.distance}")
        return self

    @property
    def heun_steps(self) -> int:
        """M, the largest number of Heun steps of the teacher."""
        return self.grid_points - 1 if self.max_heun_steps is None else self.max_heun_steps

    @property
    def inner(self) -> Literal["model", "ema"]:
        """Weights of the target's inner map: live as released, EMA as printed (eq. 3)."""
        if self.target_inner is not None:
            return self.target_inner
        return "model" if self.variant == "released" else "ema"
