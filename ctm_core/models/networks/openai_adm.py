r"""ADM (Dhariwal and Nichol 2021) in OpenAI's form, with an optional second time s.

It is the network of OpenAI's EDM for ImageNet-64 and, with s, of CTM's student there. The noise
level enters as :math:`r = 250 \ln t`, which is 1000 times the ``c_noise`` that
:class:`~.trajectory.Trajectory` passes. With n its sinusoids, :math:`y` a one-hot class
and L the table of labels,

.. math:: e_t = \mathrm{mlp}(n(r_t)) + L^\top y, \qquad e_s = \mathrm{mlp}_s(n(r_s)),

so the class enters the branch of t alone. Lists ``input_blocks`` (first a convolution, then
per level ``num_blocks`` residual blocks and, but for the lowest, a down block), ``middle_block``
and ``output_blocks`` (``num_blocks + 1`` per level, the last of which ends with an up block) name
the parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.models.networks.embeddings import TimestepEmbedding
from ctm_core.models.networks.initial import zero
from ctm_core.models.networks.layers import Recomputing, attend
from ctm_core.models.networks.raw import RawNetwork
from ctm_core.runtime.errors import UserError

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {
    "time_s": True,
    "keys": {"num_head_channels": 64, "num_heads": None},
    "width_multiple": 32,
}

#: r = 250 ln t in units of c_noise = ln(t) / 4.
TIMESTEPS = 1000.0

GROUPS: int = TRAITS["width_multiple"]


class OpenAIADM(RawNetwork):
    """Raw network F(x, c_noise(t), c_noise(s), y).

    ``sizes`` are those of :class:`~ctm_core.models.networks.raw.RawNetwork`; widths are multiples
    of 32. ``num_heads``, the number of heads at every level, decides over ``num_head_channels``.
    The middle always attends. The published argument ``attention_resolutions`` lists
    ``resolution / side`` instead of sides. With ``time_s`` there are further parameters
    ``time_embed_s`` and an ``emb_layers_s`` in each residual block.
    """

    s_outputs = ("emb_layers_s",)

    def __init__(
        self, *, num_head_channels: int = 64, num_heads: int | None = None, **sizes: Any
    ) -> None:
        super().__init__(**sizes)
        model_channels, time_s = self.model_channels, self.time_s
        emb_channels = 4 * model_channels

        def mlp() -> nn.Sequential:
            first = nn.Linear(model_channels, emb_channels)
            return nn.Sequential(first, nn.SiLU(), nn.Linear(emb_channels, emb_channels))

        block = partial(ResBlock, emb_channels=emb_channels, dropout=self.dropout, time_s=time_s)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, num_heads or _heads(width, num_head_channels))

        self.timestep = TimestepEmbedding(model_channels)
        self.time_embed = mlp()
        self.time_embed_s = mlp() if time_s else None
        labels = self.label_dim
        self.label_emb = nn.Embedding(labels, emb_channels) if labels else None

        width = self.levels[0].width
        skips = [width]  # channels of the encoder's outputs, in order
        first = nn.Conv2d(self.channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        for level in self.levels:
            for _ in range(self.num_blocks):
                layers: list[nn.Module] = [block(width, level.width)]
                width = level.width
                layers += [attention(width)] if level.attends else []
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(width)
            if level is not self.levels[-1]:
                self.input_blocks.append(nn.ModuleList([block(width, width, down=True)]))
                skips.append(width)

        middle = [block(width, width), attention(width), block(width, width)]
        self.middle_block = nn.ModuleList(middle)

        self.output_blocks = nn.ModuleList()
        for level in reversed(self.levels):
            for index in range(self.num_blocks + 1):
                layers = [block(width + skips.pop(), level.width)]
                width = level.width
                layers += [attention(width)] if level.attends else []
                if level is not self.levels[0] and index == self.num_blocks:
                    layers.append(block(width, width, up=True))
                self.output_blocks.append(nn.ModuleList(layers))

        end = nn.Conv2d(width, self.channels, 3, padding=1)
        self.out = nn.Sequential(_norm(width), nn.SiLU(), end)
        zero(self, ("out_layers.3", "proj_out", "out.2"))

    @property
    def output_weight(self) -> Tensor:
        """Weight of the second convolution of the last residual block, (width, width, 3, 3)."""
        weight: Tensor = self.output_blocks[-1][0].out_layers[3].weight  # type: ignore[index]
        return weight

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_noise_s: Tensor | None = None,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F; see :class:`~ctm_core.models.networks.raw.RawNetwork`.

        It knows no augmentation: ``augment_labels`` are refused by UserError.
        """
        self._check_target_time(c_noise_s)
        if augment_labels is not None:
            raise UserError("network: openai_adm takes no augmentation labels")
        emb = self.time_embed(self.timestep(TIMESTEPS * c_noise).to(x.dtype))
        if self.label_emb is not None and labels is not None:
            emb = emb + labels.to(x.dtype) @ self.label_emb.weight
        emb_s = None
        if self.time_embed_s is not None and c_noise_s is not None:
            emb_s = self.time_embed_s(self.timestep(TIMESTEPS * c_noise_s).to(x.dtype))

        def run(layers: nn.Module, x: Tensor) -> Tensor:
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = layer(x, emb, emb_s) if isinstance(layer, ResBlock) else layer(x)
            return x

        skips = []
        for layers in self.input_blocks:
            x = run(layers, x)
            skips.append(x)
        x = run(self.middle_block, x)
        for layers in self.output_blocks:
            x = run(layers, torch.cat([x, skips.pop()], dim=1))
        out: Tensor = self.out(x)
        return out


class ResBlock(Recomputing):
    r"""Residual block whose second norm is scaled and shifted by the times.

    .. math::
       h &= \mathrm{conv}(r(\mathrm{silu}(\mathrm{norm}(x)))), \qquad
       (a, b) = W\,\mathrm{silu}(e_t) + W_s\,\mathrm{silu}(e_s) \\
       y &= \mathrm{skip}(r(x))
          + \mathrm{conv}(\mathrm{dropout}(\mathrm{silu}(\mathrm{norm}(h)\,(1 + a) + b)))

    where r doubles by copying (``up``), halves by averaging 2x2 (``down``), or does nothing, and
    ``skip`` is a 1x1 convolution where channels change. :math:`W_s` exists with ``time_s``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        dropout: float = 0.0,
        time_s: bool = False,
    ) -> None:
        super().__init__()
        self.up = up
        self.down = down

        def embedded() -> nn.Sequential:
            return nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))

        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(_norm(in_channels), nn.SiLU(), conv)
        self.emb_layers = embedded()
        self.emb_layers_s = embedded() if time_s else None
        conv, drop = nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.Dropout(dropout)
        self.out_layers = nn.Sequential(_norm(out_channels), nn.SiLU(), drop, conv)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, emb_s: Tensor | None = None) -> Tensor:
        """(B, in, H, W) and embeddings (B, emb) to (B, out, H', W')."""
        h = self._run(self._first, x)
        modulation = self.emb_layers(emb)
        if self.emb_layers_s is not None:
            modulation = modulation + self.emb_layers_s(emb_s)
        h = self._run(self._second, h, modulation[:, :, None, None].to(h.dtype))
        y: Tensor = self.skip_connection(self._resampled(x)) + h
        return y

    def _first(self, x: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h: Tensor = conv(self._resampled(silu(norm(x))))
        return h

    def _second(self, h: Tensor, modulation: Tensor) -> Tensor:
        norm, silu, dropout, conv = self.out_layers
        scale, shift = modulation.chunk(2, dim=1)
        y: Tensor = conv(dropout(silu(norm(h) * (1 + scale) + shift)))
        return y

    def _resampled(self, x: Tensor) -> Tensor:
        if self.up:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return functional.avg_pool2d(x, 2) if self.down else x


class AttentionBlock(nn.Module):
    """Residual self-attention over places; ``qkv`` puts out ({q, k, v}, head, d)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(
                f"network: attention over {channels} channels cannot be split into {heads} equal "
                "heads; change num_heads or model_channels"
            )
        self.heads = heads
        self.attention_kernel = "math"
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).contiguous()
        qkv = qkv.view(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = (part.flatten(0, 1) for part in qkv.unbind(1))
        mixed = attend(q, k, v, self.attention_kernel)
        out: Tensor = x + self.proj_out(mixed.reshape(batch, channels, height, width))
        return out


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


def _heads(channels: int, per_head: int) -> int:
    if channels % per_head:
        raise UserError(
            f"network: attention over {channels} channels cannot be split into heads of "
            f"{per_head}; change num_head_channels or model_channels"
        )
    return channels // per_head


NETWORK = OpenAIADM
