r"""DDPM++: the U-Net of the VP models of Song et al. (2021) in EDM's form, with an optional second
time s as CTM needs it. Norm, silu and a convolution follow the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ctm_core.models.networks.embeddings import FourierEmbedding, PositionalEmbedding
from ctm_core.models.networks.initial import draw_xavier
from ctm_core.models.networks.layers import Conv2d, UNetBlock, group_norm
from ctm_core.models.networks.levels import LevelledUNet

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {
    "time_s": True,
    "keys": {"channel_mult_emb": 4, "resample_filter": (1, 1), "augment_dim": 0},
}


class DDPMpp(LevelledUNet):
    """Raw network F(x, c_noise(t), c_noise(s), y) (EDM's SongUNet, CTM section 5.1).

    ``sizes`` are those of :class:`~ctm_core.models.networks.raw.RawNetwork`; the embedding is
    ``channel_mult_emb * model_channels`` wide, ``resample_filter`` holds the taps of up and down
    blocks. In the decoder only the last block of a level attends. With ``time_s`` there are
    further parameters ``map_layer0_s``, ``map_layer1_s`` and an ``affine_s`` in each block.
    """

    #: Whether each lower level also gets the shrunken input: NCSN++ has it.
    residual_encoder = False
    #: Whether s has layers of its own, and whether every block takes what they yield.
    layers_of_s, blocks_take_s = True, True
    default_filter: Sequence[float] = TRAITS["keys"]["resample_filter"]

    def __init__(
        self,
        *,
        channel_mult_emb: int = 4,
        resample_filter: Sequence[float] | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        model_channels, time_s = self.model_channels, self.time_s
        label_dim, augment_dim = self.label_dim, self.augment_dim
        emb_channels = channel_mult_emb * model_channels
        taps = self.default_filter if resample_filter is None else resample_filter

        self.map_noise = self._embedding(model_channels)
        noise_channels = self._noise_channels()
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = (
            nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        if time_s and self.layers_of_s:
            self.map_layer0_s = nn.Linear(noise_channels, emb_channels)
            self.map_layer1_s = nn.Linear(emb_channels, emb_channels)

        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            dropout=self.dropout,
            resample_filter=taps,
            time_s=time_s and self.blocks_take_s,
        )
        residual = partial(Conv2d, kernel=3, down=True, resample_filter=taps, conv_first=True)
        width = self._add_levels(
            block, model_channels, residual if self.residual_encoder else None
        )
        name = f"{self.resolution}x{self.resolution}"
        self._last_norm, self._last_conv = f"{name}_aux_norm", f"{name}_aux_conv"
        self.dec[self._last_norm] = group_norm(width)
        self.dec[self._last_conv] = Conv2d(width, self.channels, 3)
        draw_xavier(self, ("conv1", "proj", "aux_conv"))

    def _embedding(self, model_channels: int) -> PositionalEmbedding | FourierEmbedding:
        return PositionalEmbedding(model_channels)

    def _noise_channels(self) -> int:
        """Width of what the first layer takes."""
        return self.map_noise.channels

    @property
    def output_weight(self) -> Tensor:
        """Weight of the last convolution, (channels, width, 3, 3)."""
        weight: Tensor = self.dec[self._last_conv].weight  # type: ignore[assignment]
        return weight

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_noise_s: Tensor | None = None,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F; see :class:`~ctm_core.models.networks.raw.RawNetwork`."""
        self._check_target_time(c_noise_s)
        added = None  # what both embeddings get before their layers
        if self.map_label is not None:
            if labels is None:
                labels = x.new_zeros(1, self.label_dim)
            added = self.map_label(labels.to(x.dtype) * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            augment = self.map_augment(augment_labels.to(x.dtype))
            added = augment if added is None else added + augment

        x = self._run_levels(x, *self._embedded(x, c_noise, c_noise_s, added))
        out: Tensor = self.dec[self._last_conv](functional.silu(self.dec[self._last_norm](x)))
        return out

    def _embedded(
        self, x: Tensor, c_noise: Tensor, c_noise_s: Tensor | None, added: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What every block takes: of t, and of s where blocks take it."""

        def hidden(condition: Tensor, layer0: nn.Module, layer1: nn.Module) -> Tensor:
            emb = self.map_noise(condition.to(x.dtype))
            emb = emb if added is None else emb + added
            return functional.silu(layer1(functional.silu(layer0(emb))))

        emb = hidden(c_noise, self.map_layer0, self.map_layer1)
        if c_noise_s is None:
            return emb, None
        return emb, hidden(c_noise_s, self.map_layer0_s, self.map_layer1_s)


NETWORK = DDPMpp
