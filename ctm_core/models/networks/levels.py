r"""Encoder and decoder of the EDM U-Nets, with the parameter names of Karras et al. (2022).

Level :math:`l = 0, …, L-1` has resolution :math:`R / 2^l`, written into its names
(``32x32_block0``), and :math:`c_l = \text{model\_channels}\cdot\text{channel\_mult}_l` channels.
Encoder: a convolution, then per level a down block (not at the first) and ``num_blocks`` blocks.
Decoder: per level two blocks (``in0`` with attention, ``in1``) at the lowest or an up block at the
others, then ``num_blocks + 1`` blocks, each of which also takes the encoder's output of the same
size as input channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctm_core.models.networks.layers import Conv2d, UNetBlock
from ctm_core.models.networks.raw import RawNetwork


class LevelledUNet(RawNetwork):
    """Base of DDPM++, NCSN++ and ADM in EDM's form; parameters as in :class:`RawNetwork`."""

    #: Whether every decoder block of an attending level attends (ADM), or only its last one.
    every_decoder_block_attends = False

    def _add_levels(
        self,
        block: Callable[..., UNetBlock],
        first: int,
        residual: Callable[[int, int], nn.Module] | None = None,
    ) -> int:
        """Add ``enc`` and ``dec``; returns the channels that the decoder ends with.

        ``block(in, out, attention=…, up=…, down=…)`` makes a block, ``first`` is the width of the
        first convolution, and ``residual(in, out)`` makes a layer of the residual encoder.
        """
        self.enc = nn.ModuleDict()
        skips = []  # channels of the encoder's outputs, in order
        width, carried = first, self.channels
        for level in self.levels:
            name = f"{level.side}x{level.side}"
            if level is self.levels[0]:
                self.enc[f"{name}_conv"] = Conv2d(self.channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                if residual is not None:
                    self.enc[f"{name}_aux_residual"] = residual(carried, width)
                    carried = width
            skips.append(width)
            for index in range(self.num_blocks):
                made = block(width, level.width, attention=level.attends)
                self.enc[f"{name}_block{index}"] = made
                width = level.width
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level in reversed(self.levels):
            name = f"{level.side}x{level.side}"
            if level is self.levels[-1]:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for index in range(self.num_blocks + 1):
                last = self.every_decoder_block_attends or index == self.num_blocks
                made = block(width + skips.pop(), level.width, attention=level.attends and last)
                self.dec[f"{name}_block{index}"] = made
                width = level.width
        return width

    def _run_levels(self, x: Tensor, emb: Tensor, emb_s: Tensor | None = None) -> Tensor:
        """The decoder's output (B, width, resolution, resolution), before the final layers."""
        skips: list[Tensor] = []
        shrunken = x  # the input as the residual encoder carries it down
        for name, module in self.enc.items():
            if name.endswith("_aux_residual"):
                x = shrunken = (skips.pop() + module(shrunken)) * math.sqrt(0.5)
            else:
                x = module(x, emb, emb_s) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if isinstance(module, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, emb, emb_s)
        return x
