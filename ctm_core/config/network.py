"""The denoiser's network and the diffusion process it belongs to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ctm_core.config._section import Positive, Section


class Diffusion(Section):
    """The process and EDM's preconditioning constants (Karras et al. 2022, table 1)."""

    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Diffusion:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class Network(Section):
    """Size of the U-Net; teacher and student share it."""

    architecture: Literal["ddpmpp"] = "ddpmpp"
    model_channels: Positive = 128
    channel_mult: tuple[Positive, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: Positive = 4
    attn_resolutions: tuple[Positive, ...] = (16,)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @field_validator("model_channels")
    @classmethod
    def _whole_groups(cls, value: int) -> int:
        if value % 4:
            raise ValueError("model_channels must be a multiple of 4 (the group norms need it)")
        return value
