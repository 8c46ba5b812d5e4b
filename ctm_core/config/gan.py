"""The adversarial loss beside an objective: its discriminator, and how the two alternate."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from ctm_core.config._section import Factor, Few, LearningRate, Rate, Section, distinct

Backbone = Literal["deit_base_distilled_patch16_224", "tf_efficientnet_lite0", "tiny"]

#: External files of the feature networks, by their names in config/assets.yaml.
BACKBONE_FILES: dict[str, tuple[str, ...]] = {
    "deit_base_distilled_patch16_224": ("deit",),
    "tf_efficientnet_lite0": ("efficientnet-lite0",),
}


def down_blocks(resolution: int) -> tuple[int, ...]:
    """Down blocks of the four heads at a side of the feature networks' input.

    The pyramid's maps have 1/2, 1/4, 1/8 and 1/16 of that side. At 224 each head ends in a map of
    14/2 - 3 = 4 pixels a side; below 128 with one block fewer the map is never smaller than the
    4 x 4 kernel that closes a head.
    """
    if resolution >= 64 and resolution % 32 == 0:
        return (4, 3, 2, 1) if resolution >= 128 else (3, 2, 1, 0)
    raise ValueError("resolution must be a multiple of 32 and at least 64; 224 is the paper's")


class Discriminator(Section):
    """A projected discriminator: frozen feature networks and what is trained on them."""

    backbones: Annotated[tuple[Backbone, ...], distinct("backbone")] = Field(
        ("deit_base_distilled_patch16_224", "tf_efficientnet_lite0"),
        min_length=1,
        max_length=len(get_args(Backbone)),
        description="frozen feature networks; tiny is a random one, for tests and trials",
    )
    resolution: int = Field(
        224, ge=0, le=2048, description="side to which images are resized: 64, 96, 128, 160, …"
    )
    width: Few = Field(64, description="channels of the finest map; 64 as released")
    batch_norm: Literal["local", "global"] = Field(
        "local", description="statistics of each process (released) or of all together"
    )

    @field_validator("resolution")
    @classmethod
    def _taken(cls, value: int) -> int:
        down_blocks(value)
        return value


class Adversarial(Section):
    """Real images against those that the objective generates (paper section 3.3)."""

    discriminator: Discriminator = Discriminator()
    loss: Literal["hinge", "log"] | None = Field(
        None, description="null: hinge if released, else the logarithms as printed"
    )
    discriminator_weight: Factor = Field(1.0, description="factor on lambda_gan")
    learning_rate: LearningRate = Field(2e-3, description="of the discriminator's RAdam")
    betas: tuple[Rate, Rate] = Field((0.5, 0.9), description="of the same")
    share_augmentation: bool = Field(
        False, description="the same DiffAugment draws for real and generated images"
    )
    period: int = Field(
        2, ge=2, le=1024, description="of so many steps the first moves G, the others D"
    )

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the external files it reads."""
        networks = self.discriminator.backbones
        return tuple(file for name in networks for file in BACKBONE_FILES.get(name, ()))
