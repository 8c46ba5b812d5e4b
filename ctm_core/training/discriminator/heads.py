"""The trained part: one small convolutional head for each map of the pyramid.

A head halves its map by spectral-norm 4 x 4 convolutions of stride 2, each followed by batch norm
and LeakyReLU(0.2), and closes with a spectral-norm 4 x 4 convolution to one channel, without bias
or padding. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from ctm_core.training.discriminator.normalisation import GlobalBatchNorm2d
from ctm_core.training.discriminator.projected_layers import SpectralConv2d

BatchNorm = Literal["local", "global"]


class DownBlock(nn.Module):
    """Convolution, batch norm and LeakyReLU: (B, C, H, W) to (B, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, batch_norm: BatchNorm) -> None:
        super().__init__()
        norm = GlobalBatchNorm2d if batch_norm == "global" else nn.BatchNorm2d
        self.main = nn.Sequential(
            SpectralConv2d(in_channels, out_channels, 4, stride=2, padding=1),
            norm(out_channels),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x)
        return out


class Head(nn.Module):
    """Logits of one map; ``channels`` are those after each down block."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], batch_norm: BatchNorm) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        blocks = [DownBlock(a, b, batch_norm) for a, b in pairwise(widths)]
        self.main = nn.Sequential(*blocks, SpectralConv2d(widths[-1], 1, 4, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of a map (B, C, H, W)."""
        logits: Tensor = self.main(x)
        return logits


def heads(
    in_channels: tuple[int, ...], downs: tuple[int, ...], width: int, batch_norm: BatchNorm
) -> nn.ModuleDict:
    """Heads by the name of their map, ``0`` being the finest, which each halves ``downs`` times.

    Down blocks end with 8, the one before with 4, 2 and 1 times ``width`` channels.
    """
    ladder = (width, 2 * width, 4 * width, 8 * width)
    levels = enumerate(zip(in_channels, downs, strict=True))
    return nn.ModuleDict(
        {
            str(n): Head(channels, ladder[4 - count :], batch_norm)
            for n, (channels, count) in levels
        }
    )
