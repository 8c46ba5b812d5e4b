r"""NCSN++: the U-Net of the VE models of Song et al. (2021) in EDM's form.

It is DDPM++ but for three things: random Fourier features of twice the width embed the noise
level; up and down blocks filter with [1, 3, 3, 1]; and a residual encoder carries the shrunken
input to every lower level. After each down block, with :math:`a` the network's input at first,

.. math:: x = a = \bigl(x + \mathrm{down}(\mathrm{conv}(a))\bigr) / \sqrt 2,

which is also what the decoder gets in place of the down block's output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.embeddings import FourierEmbedding

__all__ = ["NCSNpp"]


class NCSNpp(DDPMpp):
    """Raw network F(x, c_noise(t), y); it has no target time s, so it can only be a teacher.

    Parameters are those of :class:`~ctm_core.models.networks.ddpmpp.DDPMpp` without ``time_s``.
    Each level but the first has a further layer ``enc.<side>x<side>_aux_residual``, and the buffer
    ``map_noise.freqs`` (model_channels,) holds the frequencies, drawn from ``generator`` too.
    """

    residual_encoder = True

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        channel_mult_emb: int = 4,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            resolution=resolution,
            channels=channels,
            label_dim=label_dim,
            augment_dim=augment_dim,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            dropout=dropout,
            channel_mult_emb=channel_mult_emb,
            resample_filter=resample_filter,
            generator=generator,
        )

    def _embedding(
        self, model_channels: int, generator: torch.Generator | None
    ) -> FourierEmbedding:
        return FourierEmbedding(2 * model_channels, generator)
