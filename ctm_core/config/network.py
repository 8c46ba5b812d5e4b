"""The denoiser's network and the diffusion process it belongs to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ctm_core.config._section import Later, Positive, Section

#: Architectures and the keys that are theirs beside those that all have.
ARCHITECTURE_KEYS: dict[str, tuple[str, ...]] = {
    "ddpmpp": ("channel_mult_emb", "resample_filter", "augment_dim"),
    "ncsnpp": ("channel_mult_emb", "resample_filter", "augment_dim"),
    "adm": ("channel_mult_emb", "augment_dim"),
    "openai_adm": ("num_head_channels", "num_heads"),
}

#: Architectures that can know the target time s, so can be students.
WITH_TARGET_TIME = ("ddpmpp", "openai_adm")


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
    """Architecture and size of the U-Net; teacher and student share it.

    Keys that default to null are some architectures' own (:data:`ARCHITECTURE_KEYS`); null leaves
    the choice to the architecture, and they stand in hashes and records only where they are given.
    """

    architecture: Literal["ddpmpp", "ncsnpp", "adm", "openai_adm"] = "ddpmpp"
    model_channels: Positive = 128
    channel_mult: tuple[Positive, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: Positive = 4
    attn_resolutions: tuple[Positive, ...] = Field(
        default=(16,), description="sides of the feature maps at which blocks attend"
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    channel_mult_emb: Later[Positive | None] = Field(
        default=None, description="width of the embedding in model_channels; null: 4"
    )
    resample_filter: Later[tuple[float, ...] | None] = Field(
        default=None, description="taps of up and down blocks; null: [1, 1], ncsnpp [1, 3, 3, 1]"
    )
    augment_dim: Later[Positive | None] = Field(
        default=None,
        description="width of the teacher's augmentation labels (9 in EDM's); students have none",
    )
    num_head_channels: Later[Positive | None] = Field(
        default=None, description="channels of an attention head; null: 64 unless num_heads"
    )
    num_heads: Later[Positive | None] = Field(
        default=None, description="attention heads at every level"
    )

    @field_validator("model_channels")
    @classmethod
    def _whole_groups(cls, value: int) -> int:
        if value % 4:
            raise ValueError("model_channels must be a multiple of 4 (the group norms need it)")
        return value

    @field_validator("resample_filter")
    @classmethod
    def _a_filter(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or len(value) % 2 or sum(value) == 0):
            raise ValueError(
                "resample_filter must have an even number of taps whose sum is not zero"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Network:
        own = ARCHITECTURE_KEYS[self.architecture]
        for key in sorted({key for keys in ARCHITECTURE_KEYS.values() for key in keys}):
            if key not in own and getattr(self, key) is not None:
                having = [name for name, keys in ARCHITECTURE_KEYS.items() if key in keys]
                raise ValueError(
                    f"{self.architecture} has no {key}; leave it out (it belongs to "
                    f"{', '.join(having)})"
                )
        if self.num_heads is not None and self.num_head_channels is not None:
            raise ValueError("give num_heads or num_head_channels, not both")
        if self.architecture == "openai_adm":
            for mult in self.channel_mult:
                if self.model_channels * mult % 32:
                    raise ValueError(
                        "openai_adm needs a multiple of 32 channels at every level, not "
                        f"{self.model_channels * mult} (model_channels * channel_mult)"
                    )
        return self

    @property
    def target_time(self) -> bool:
        """Whether the architecture can know the target time s."""
        return self.architecture in WITH_TARGET_TIME
