"""From levels to images and from nats to bits, by the conventions of the package."""

from __future__ import annotations

import math

from torch import Tensor

#: log₂ 127.5: bits of one level's width.
DEQUANTISATION_BITS = math.log2(127.5)


def dequantise(levels: Tensor, uniform: Tensor) -> Tensor:
    """(v + u)/127.5 - 1 - 1/255 of uint8 levels v and u in [0, 1), same shape; float64."""
    return (levels.double() + uniform.double()) / 127.5 - 1 - 1 / 255


def bits_per_dim(nats: Tensor, dims: int, constant: float = DEQUANTISATION_BITS) -> Tensor:
    """Bits per dimension from log densities (B,) in nats of images of ``dims`` elements."""
    return -nats / (dims * math.log(2)) + constant


def prior_mismatch(x: Tensor, sigma_max: float) -> float:
    """Bits per dimension that N(0, sigma_max² I) for p_T costs at most; x (B, C, H, W)."""
    return float(x.double().square().mean()) / (2 * sigma_max**2 * math.log(2))
