"""The adversarial loss beside an objective: its discriminator, and how the two alternate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ctm_core.config._section import Rate, Section
from ctm_core.config.discriminator_section import Discriminator

#: External files of the feature networks, by their names in config/assets.yaml.
BACKBONE_FILES: dict[str, tuple[str, ...]] = {
    "deit_base_distilled_patch16_224": ("deit",),
    "tf_efficientnet_lite0": ("efficientnet-lite0",),
}


class Adversarial(Section):
    """Real images against those that the objective generates (paper section 3.3)."""

    discriminator: Discriminator = Discriminator()
    loss: Literal["hinge", "log"] | None = Field(
        default=None, description="null: hinge if released, else the logarithms as printed"
    )
    discriminator_weight: float = Field(default=1.0, gt=0, description="factor on lambda_gan")
    learning_rate: float = Field(default=2e-3, gt=0, description="of the discriminator's RAdam")
    betas: tuple[Rate, Rate] = Field(default=(0.5, 0.9), description="of the same")
    share_augmentation: bool = Field(
        default=False, description="the same DiffAugment draws for real and generated images"
    )
    period: int = Field(
        default=2, ge=2, description="of so many steps the first moves G, the others D"
    )

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the external files it reads."""
        networks = self.discriminator.backbones
        return tuple(file for name in networks for file in BACKBONE_FILES.get(name, ()))
