r"""ADM (Dhariwal and Nichol 2021) in EDM's form, with the names of Karras et al. (2022).

ADM differs from DDPM++ in that

- blocks scale and shift after their second norm, and do not divide by :math:`\sqrt 2`;
- every block of an attending level attends, in encoder and decoder, with heads of about 64
  channels;
- up and down blocks that keep their channels have no convolution in the skip;
- the class enters after the embedding's layers:
  :math:`e = \mathrm{silu}(\mathrm{layer}_1(\mathrm{silu}(\mathrm{layer}_0(n(t) + A a))) + L y)`
  for augmentation labels a and a one-hot class y.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ctm_core.models.networks.embeddings import TimestepEmbedding
from ctm_core.models.networks.initial import zero
from ctm_core.models.networks.layers import Conv2d, UNetBlock, group_norm
from ctm_core.models.networks.levels import LevelledUNet

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {"keys": {"channel_mult_emb": 4, "augment_dim": 0}}

#: Channels of a head; a level of C channels has the whole part of C / 64 heads.
CHANNELS_PER_HEAD = 64

EPS = 1e-5


class ADM(LevelledUNet):
    """Raw network F(x, c_noise(t), y); it has no target time s, so it can only be a teacher.

    ``sizes`` are those of :class:`~ctm_core.models.networks.raw.RawNetwork`; the embedding is
    ``channel_mult_emb * model_channels`` wide. The bottleneck always attends. A level of fewer
    than 64 channels has no head and so does not attend, whatever ``attn_resolutions`` says; so do
    the published networks.
    """

    every_decoder_block_attends = True

    def __init__(self, *, channel_mult_emb: int = 4, **sizes: Any) -> None:
        super().__init__(**sizes)
        model_channels = self.model_channels
        label_dim, augment_dim = self.label_dim, self.augment_dim
        emb_channels = channel_mult_emb * model_channels

        self.map_noise = TimestepEmbedding(model_channels)
        self.map_augment = (
            nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None

        def block(width_in: int, width_out: int, **kind: Any) -> UNetBlock:
            return UNetBlock(
                width_in,
                width_out,
                emb_channels,
                heads=width_out // CHANNELS_PER_HEAD,
                dropout=self.dropout,
                skip_scale=1.0,
                eps=EPS,
                adaptive_scale=True,
                resample_proj=False,
                **kind,
            )

        width = self._add_levels(block, self.levels[0].width)
        self.out_norm = group_norm(width, EPS)
        self.out_conv = Conv2d(width, self.channels, 3)
        zero(self, ("conv1", "proj", "out_conv"))

    @property
    def output_weight(self) -> Tensor:
        """Weight of the last convolution, (channels, width, 3, 3)."""
        return self.out_conv.weight

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
        emb = self.map_noise(c_noise).to(x.dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(x.dtype))
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels.to(x.dtype))
        emb = functional.silu(emb)

        x = self._run_levels(x, emb)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out


NETWORK = ADM
