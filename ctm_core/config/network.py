"""The denoiser's network and the diffusion process it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from pydantic import Field, field_validator

from ctm_core.config._section import Factor, Few, Later, Name, Positive, Section
from ctm_core.config._traits import PACKAGE, literal, modules, read_traits

FOLDER = PACKAGE / "models" / "networks"

Tap = Annotated[float, Field(ge=-1e3, le=1e3)]
#: Largest width of a level, and weights of all its convolutions; the paper's networks have 3e8.
MOST_CHANNELS, MOST_WEIGHTS = 16_384, 10**10


class ArchitectureTraits(Section):
    """What the literal ``TRAITS`` in an architecture's file may say."""

    time_s: bool = Field(False, description="it can know s, so it can be a student")
    keys: dict[str, Any] = Field({}, description="keys of its own and their defaults")
    width_multiple: Positive = Field(1, description="what every level's width divides by")


@cache
def architectures() -> dict[str, ArchitectureTraits]:
    """The traits of every file in ``ctm_core/models/networks`` that states some, by its name."""
    return {
        name: read_traits(file, ArchitectureTraits)
        for name in modules(FOLDER)
        if literal(file := FOLDER / f"{name}.py", "TRAITS")
    }


def with_target_time() -> list[str]:
    """Architectures that can know the target time s, so can be students."""
    return [name for name, traits in architectures().items() if traits.time_s]


class Diffusion(Section):
    """The process and EDM's preconditioning constants (Karras et al. 2022, table 1)."""

    sigma_min: Factor = 0.002
    sigma_max: Factor = 80.0
    rho: float = Field(7.0, ge=0.1, le=1000)
    sigma_data: Factor = 0.5

    def _problems(self) -> Iterator[str]:
        if self.sigma_min >= self.sigma_max:
            yield "sigma_min must be below sigma_max"


class Network(Section):
    """Architecture and size of the U-Net; teacher and student share it.

    Keys that default to null belong to some architectures only, which state the defaults in their
    files; hashes and records hold them only where they are given.
    """

    architecture: Name = Field(
        "ddpmpp", description="a file of ctm_core/models/networks with TRAITS"
    )
    model_channels: int = Field(128, ge=4, le=4096)
    channel_mult: tuple[Few, ...] = Field((2, 2, 2), min_length=1, max_length=12)
    num_blocks: int = Field(4, ge=1, le=64)
    attn_resolutions: tuple[Few, ...] = Field(
        (16,), max_length=12, description="sides of the feature maps at which blocks attend"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    channel_mult_emb: Later[Few | None] = Field(
        None, description="width of the embedding in model_channels; null: 4"
    )
    resample_filter: Later[tuple[Tap, ...] | None] = Field(
        None,
        max_length=64,
        description="taps of up and down blocks; null: [1, 1], but [1, 3, 3, 1] in ncsnpp and "
        "ddpmpp_meanflow",
    )
    augment_dim: Later[Few | None] = Field(
        None,
        description="width of the teacher's augmentation labels (9 in EDM's); students have none",
    )
    num_head_channels: Later[Few | None] = Field(
        None, description="channels of an attention head; null: 64 unless num_heads"
    )
    num_heads: Later[Few | None] = Field(None, description="attention heads at every level")

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (known := architectures()):
            raise ValueError(f"there is no such architecture; there are {', '.join(known)}")
        return value

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

    def _problems(self) -> Iterator[str]:
        own = self.traits
        others = {key for traits in architectures().values() for key in traits.keys} - {*own.keys}
        for key in sorted(others):
            if getattr(self, key) is not None:
                having = [name for name, traits in architectures().items() if key in traits.keys]
                yield (
                    f"{self.architecture} has no {key}; leave it out (it belongs to "
                    f"{', '.join(having)})"
                )
        if self.num_heads is not None and self.num_head_channels is not None:
            yield "give num_heads or num_head_channels, not both"
        widths = [self.model_channels * mult for mult in self.channel_mult]
        if max(widths) > MOST_CHANNELS:
            yield (
                f"channel_mult: a level has model_channels * channel_mult = {max(widths):,} "
                f"channels; at most {MOST_CHANNELS:,}"
            )
        # Two convolutions in each block of either side.
        weights = sum(2 * self.num_blocks * 2 * 9 * width**2 for width in widths)
        if weights > MOST_WEIGHTS:
            yield (
                f"num_blocks: {self.num_blocks} blocks of {max(widths):,} channels make some "
                f"{weights:.1e} weights; at most {MOST_WEIGHTS:.0e}"
            )
        for mult in self.channel_mult:
            if self.model_channels * mult % own.width_multiple:
                yield (
                    f"{self.architecture} needs a multiple of {own.width_multiple} channels at "
                    f"every level, not {self.model_channels * mult} (model_channels * "
                    "channel_mult)"
                )

    @property
    def traits(self) -> ArchitectureTraits:
        """What the architecture's file says of it."""
        return architectures()[self.architecture]

    @property
    def own_sizes(self) -> dict[str, Any]:
        """Values of the architecture's own keys, its defaults where none is given."""
        defaults = self.traits.keys
        return defaults | {k: v for k in defaults if (v := getattr(self, k)) is not None}

    @property
    def target_time(self) -> bool:
        """Whether the architecture can know the target time s."""
        return self.traits.time_s
