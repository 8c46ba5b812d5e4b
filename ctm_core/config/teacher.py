"""The denoiser that students are distilled from."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ctm_core.config._section import Later, LogMean, LogStd, Name, Section, Seed
from ctm_core.config.optimization import Training


class Teacher(Section):
    """An EDM denoiser (Karras et al. 2022), trained here or converted from somebody's file."""

    training: Training | None = Field(None, description="to train one from nothing")
    asset: Name | None = Field(None, description="instead: a file's name in config/assets.yaml")
    seed: Seed = 0
    p_mean: LogMean = Field(-1.2, description="mean of ln sigma in its training")
    p_std: LogStd = Field(1.2, description="standard deviation of ln sigma")
    augment: Later[float] = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of each of EDM's augmentations, 0.12 for CIFAR-10; the network "
        "is told of them, so network.augment_dim must be 9",
    )

    def _problems(self) -> Iterator[str]:
        if (self.training is None) == (self.asset is None):
            yield "a teacher has either `training` or `asset`, the file it comes from"
        if self.training is not None and self.training.frozen_precision is not None:
            yield "training.frozen_precision: a teacher has no frozen networks; leave it out"
        if self.augment and self.asset is not None:
            yield "`augment` belongs to a teacher's training; this one is converted"
