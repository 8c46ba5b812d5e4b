"""The interface of distances: d of the consistency loss."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from ctm_core.config import Perceptual


class Distance(nn.Module):
    """d(a, b), without trainable parameters."""

    #: Hash of the weight files it reads; None if it reads none.
    weights_sha256: str | None = None

    @classmethod
    def configured(cls, section: Perceptual | None) -> Self:
        """The distance as the configuration has it, its weights not read yet."""
        return cls()

    def read_weights(self) -> None:
        """Read the external files that its traits name; raises UserError if one is not usable."""

    def features(self, images: Tensor) -> list[Tensor]:
        """What is compared, of images (B, C, H, W): the images themselves by default."""
        return [images]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of samples: shape (B,), float32 or float64.

        Differentiable with respect to both images (B, C, H, W), which are in [-1, 1]; values
        beyond are taken as they are, never clamped.
        """
        # Broadcasting would hide the mistake.
        if a.shape != b.shape:
            raise ValueError(f"distance between shapes {tuple(a.shape)} and {tuple(b.shape)}")
        value: Tensor = super().__call__(a, b)
        return value


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
