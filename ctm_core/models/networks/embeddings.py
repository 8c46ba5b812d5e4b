r"""Embeddings of a noise condition: a scalar :math:`a` as a vector of sines and cosines.

Angles are computed in the dtype of ``a``: they reach hundreds of radians, so a condition in half
precision would lose them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Standard deviation of NCSN++'s random frequencies (Song et al. 2021, appendix C).
FOURIER_SCALE = 16.0


class PositionalEmbedding(nn.Module):
    r"""Sinusoids in the order of DDPM++.

    .. math:: [\sin(a\,\omega_0), …, \sin(a\,\omega_{h-1}), \cos(a\,\omega_0), …],
       \qquad \omega_i = 10000^{-i/(h-1)}, \quad h = \text{channels}/2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, a: Tensor) -> Tensor:
        """(B,) to (B, channels), in the dtype of ``a``."""
        half = self.channels // 2
        powers = torch.arange(half, dtype=a.dtype, device=a.device) / max(half - 1, 1)
        angles = a[:, None] * (1 / 10000) ** powers
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimestepEmbedding(nn.Module):
    r"""Sinusoids in the order of ADM (Dhariwal and Nichol 2021).

    .. math:: [\cos(a\,\omega_0), …, \cos(a\,\omega_{h-1}), \sin(a\,\omega_0), …],
       \qquad \omega_i = 10000^{-i/h}, \quad h = \text{channels}/2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, a: Tensor) -> Tensor:
        """(B,) to (B, channels), in the dtype of ``a``."""
        half = self.channels // 2
        powers = torch.arange(half, dtype=a.dtype, device=a.device) / half
        angles = a[:, None] * torch.exp(-math.log(10000) * powers)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    r"""Random Fourier features of NCSN++ (Tancik et al. 2020; Song et al. 2021).

    .. math:: [\sin(2\pi a f_0), …, \sin(2\pi a f_{h-1}), \cos(2\pi a f_0), …],
       \qquad f_i \sim \mathcal N(0, 16^2), \quad h = \text{channels}/2.

    The frequencies are drawn once and kept in the buffer ``freqs`` (h,), which is saved and loaded
    with the weights.
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        freqs = torch.empty(channels // 2)
        self.register_buffer("freqs", freqs)
        if not freqs.is_meta:
            freqs.normal_(std=FOURIER_SCALE)

    def forward(self, a: Tensor) -> Tensor:
        """(B,) to (B, channels), in the dtype of ``a``."""
        angles = a[:, None] * (2 * math.pi * self.freqs.to(a.dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=1)
