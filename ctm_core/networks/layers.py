r"""Parts of the EDM U-Nets (Karras et al. 2022, appendix F): convolution, norm, embedding, block.

Parameter names and numbers follow the published checkpoints, so their weights load strictly; every
part runs in the dtype of its parameters (float32, float64) and under bf16 autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.errors import UserError

__all__ = ["Conv2d", "PositionalEmbedding", "UNetBlock", "group_norm", "initialise"]

#: Scale of the layers that end a residual branch: at the start each block is nearly the identity.
BRANCH_END_SCALE = 1e-5


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group norm with min(32, channels / 4) groups, as every EDM network has it.

    Raises
    ------
    UserError
        If the groups cannot be of equal size.
    """
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise UserError(
            f"network: a layer of {channels} channels cannot be split into {max(groups, 1)} equal "
            "norm groups; make model_channels a multiple of 32, or small enough that no layer has "
            "more than 128 channels (concatenated skips included) and a multiple of 4"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class Conv2d(nn.Conv2d):
    r"""Convolution of odd kernel size that keeps the size, with an optional resampling before it.

    With filter f the kernel is :math:`K = f f^\top / (\sum f)^2`. Down: depthwise convolution with
    K, stride 2; up: depthwise transposed convolution with 4K, stride 2; zero padding
    :math:`(|f|-1)/2`. For f = [1, 1] these are the 2x2 average and the nearest neighbour, which is
    how they are computed. The buffer ``resample_filter`` (1, 1, \|f\|, \|f\|) holds K.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        if up and down:
            raise ValueError("a convolution resamples up or down, not both")
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.up = up
        self.down = down
        self.box = list(resample_filter) == [1, 1]
        if up or down:
            taps = torch.as_tensor(resample_filter, dtype=torch.get_default_dtype())
            kernel2d = taps.outer(taps) / taps.sum() ** 2
            self.register_buffer("resample_filter", kernel2d[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W'), H' = 2H, H/2 or H."""
        if not (self.up or self.down):
            return super().forward(x)
        if not self.box:
            return super().forward(self._filtered(x))
        if self.down:
            return super().forward(functional.avg_pool2d(x, 2))
        if self.kernel_size == (1, 1):  # pointwise maps commute with copying
            return functional.interpolate(super().forward(x), scale_factor=2, mode="nearest")
        return super().forward(functional.interpolate(x, scale_factor=2, mode="nearest"))

    def _filtered(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        padding = (self.resample_filter.shape[-1] - 1) // 2
        if self.down:
            return functional.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
        return functional.conv_transpose2d(
            x, 4 * kernel, stride=2, padding=padding, groups=channels
        )


class PositionalEmbedding(nn.Module):
    r"""Sinusoids of a scalar :math:`a`, in the order of DDPM++.

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


class UNetBlock(nn.Module):
    r"""Residual block with an optional resampling and an optional self-attention.

    .. math::
       h &= \mathrm{conv}_0(\mathrm{silu}(\mathrm{norm}_0(x))) \\
       p &= \mathrm{affine}(e_t) + \mathrm{affine}_s(e_s) \\
       h &= \mathrm{conv}_1(\mathrm{dropout}(\mathrm{silu}(\mathrm{norm}_1(h + p)))) \\
       y &= (h + \mathrm{skip}(x))\,k \\
       y &\leftarrow (y + \mathrm{proj}(\mathrm{attention}(\mathrm{qkv}(\mathrm{norm}_2(y)))))\,k

    with :math:`k=\sqrt{1/2}`. ``skip`` is a 1x1 convolution where channels or size change. The
    output channels of ``qkv`` are ordered (head, channel, {q, k, v}). ``affine_s`` exists only in
    a network that knows the target time s (CTM, section 5.1).

    Parameters
    ----------
    in_channels, out_channels, emb_channels
        Widths of input, output and time embedding.
    up, down
        Doubles or halves the image before ``conv0``.
    attention, heads
        Self-attention after the block and its number of heads.
    dropout
        Probability, active in train mode.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        heads: int = 1,
        dropout: float = 0.0,
        skip_scale: float = math.sqrt(0.5),
        eps: float = 1e-6,
        resample_filter: Sequence[float] = (1, 1),
        time_s: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.heads = heads if attention else 0
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Conv2d(
            in_channels, out_channels, 3, up=up, down=down, resample_filter=resample_filter
        )
        self.affine = nn.Linear(emb_channels, out_channels)
        self.affine_s = nn.Linear(emb_channels, out_channels) if time_s else None
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        self.skip = (
            Conv2d(in_channels, out_channels, 1, up=up, down=down, resample_filter=resample_filter)
            if up or down or in_channels != out_channels
            else None
        )
        if attention:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, emb_s: Tensor | None = None) -> Tensor:
        """(B, in, H, W) and embeddings (B, emb) to (B, out, H', W')."""
        shift = self.affine(emb)
        if self.affine_s is not None:
            shift = shift + self.affine_s(emb_s)
        h = self.conv0(functional.silu(self.norm0(x)))
        h = functional.silu(self.norm1(h + shift[:, :, None, None].to(h.dtype)))
        if self.dropout and self.training:
            h = functional.dropout(h, self.dropout)
        y: Tensor = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (y + self._attention(y)) * self.skip_scale if self.heads else y

    def _attention(self, y: Tensor) -> Tensor:
        batch, channels, height, width = y.shape
        # Contiguous: on channels_last strides bmm would copy matrix by matrix.
        qkv = self.qkv(self.norm2(y)).contiguous()
        qkv = qkv.view(batch * self.heads, channels // self.heads, 3, height * width)
        q, k, v = qkv.unbind(2)
        # Softmax in float32 at least: bf16 would lose the small weights.
        scores = torch.bmm(q.transpose(1, 2) / math.sqrt(q.shape[1]), k)
        weights = scores.softmax(2, dtype=torch.promote_types(scores.dtype, torch.float32))
        mixed: Tensor = torch.bmm(v, weights.to(v.dtype).transpose(1, 2))
        out: Tensor = self.proj(mixed.reshape(batch, channels, height, width))
        return out


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw starting weights in place: Xavier-uniform, zero biases.

    Layers that end a residual branch or the network (``conv1``, ``proj``, ``aux_conv``) are scaled
    by 1e-5, so the network starts near a linear map of its input. The layers of the target time s
    are Xavier-uniform like the rest, not zero (CTM, section 5.1): a student made from a teacher
    starts as the teacher with a small perturbation.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if name.endswith(("conv1", "proj", "aux_conv")):
                with torch.no_grad():
                    module.weight.mul_(BRANCH_END_SCALE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
