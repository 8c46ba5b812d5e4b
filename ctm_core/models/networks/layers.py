r"""Parts of the EDM U-Nets (Karras et al. 2022, appendix F): convolution, norm, attention, block.

Parameter names and numbers follow the published checkpoints, so their weights load strictly; every
part runs in the dtype of its parameters (float32, float64) and under bf16 autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ctm_core.runtime.errors import UserError

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group norm with min(32, channels / 4) equal groups, as every EDM network has it."""
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise UserError(
            f"network: a layer of {channels} channels cannot be split into {max(groups, 1)} equal "
            "norm groups; make model_channels a multiple of 32, or small enough that no layer has "
            "more than 128 channels (concatenated skips included) and a multiple of 4"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str = "math") -> Tensor:
    r"""Attention :math:`\mathrm{softmax}(q^\top k/\sqrt d)`, applied to v, over places.

    Each argument and the result are (B * heads, d, places). The softmax runs in float32 at least:
    bf16 would lose the small weights. The ``sdpa`` kernel is torch's fused one, which never holds
    the whole matrix of weights and rounds otherwise.
    """
    if kernel == "sdpa":
        q, k, v = (part.transpose(1, 2).unsqueeze(1) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.squeeze(1).transpose(1, 2)
    scores = torch.bmm(q.transpose(1, 2) / math.sqrt(q.shape[1]), k)
    weights = scores.softmax(2, dtype=torch.promote_types(scores.dtype, torch.float32))
    return torch.bmm(v, weights.to(v.dtype).transpose(1, 2))


def channels_last(network: NetworkT) -> NetworkT:
    """The network itself, its weights laid out with channels last."""
    # Stubs of torch 2.13 do not know this argument.
    moved: NetworkT = cast(Any, network).to(memory_format=torch.channels_last)
    return moved


class Resample(nn.Module):
    r"""Doubles or halves images with a filter f, and has no weights.

    The kernel is :math:`K = f f^\top / (\sum f)^2`. Down: depthwise convolution with K, stride 2;
    up: depthwise transposed convolution with 4K, stride 2; zero padding :math:`(|f|-1)/2`, rounded
    down. For f = [1, 1] these are the 2x2 average and the nearest neighbour, which is how they are
    computed. The buffer ``resample_filter`` (1, 1, \|f\|, \|f\|) holds K. The number of taps is
    even.
    """

    resample_filter: Tensor

    def __init__(self, *, up: bool, resample_filter: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.up = up
        self.box = list(resample_filter) == [1, 1]
        self.register_buffer("resample_filter", _kernel(resample_filter))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        return _resampled(x, self.resample_filter, self.up, self.box)


class Conv2d(nn.Conv2d):
    """Convolution of odd kernel size that keeps the size, with an optional resampling.

    The resampling is :class:`Resample`'s and comes first. With ``conv_first`` (NCSN++'s residual
    encoder) it is down, after the convolution, and the filter reads what the convolution yields
    around the image instead of zeros.
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
        conv_first: bool = False,
    ) -> None:
        border = (len(resample_filter) - 1) // 2 if conv_first else 0
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2 + border)
        self.up = up
        self.down = down
        self.conv_first = conv_first
        self.box = list(resample_filter) == [1, 1]
        if up or down:
            self.register_buffer("resample_filter", _kernel(resample_filter))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W'), H' = 2H, H/2 or H."""
        if not (self.up or self.down):
            return super().forward(x)
        if self.conv_first:
            h = super().forward(x)
            kernel = self.resample_filter.to(h.dtype).expand(h.shape[1], 1, -1, -1)
            return functional.conv2d(h, kernel, stride=2, groups=h.shape[1])
        if self.up and self.box and self.kernel_size == (1, 1):
            # Pointwise maps commute with copying.
            return functional.interpolate(super().forward(x), scale_factor=2, mode="nearest")
        return super().forward(_resampled(x, self.resample_filter, self.up, self.box))


class Recomputing(nn.Module):
    """A block of parts, each of which ends in a convolution.

    With :attr:`recompute`, autograd keeps a part's inputs alone and computes the convolution's
    input from them again in the backward pass: the library stops there, so no convolution runs
    twice. The gradient is the same to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    def _run(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return part(*inputs)
        # In train mode a part may draw its dropout, which has to be the same the second time.
        y: Tensor = checkpoint(
            part, *inputs, use_reentrant=False, preserve_rng_state=self.training
        )
        return y


class UNetBlock(Recomputing):
    r"""Residual block with an optional resampling and an optional self-attention.

    .. math::
       h &= \mathrm{conv}_0(\mathrm{silu}(\mathrm{norm}_0(x))) \\
       p &= \mathrm{affine}(e_t) + \mathrm{affine}_s(e_s) \\
       h &= \mathrm{conv}_1(\mathrm{dropout}(\mathrm{silu}(\mathrm{norm}_1(h + p)))) \\
       y &= (h + \mathrm{skip}(x))\,k \\
       y &\leftarrow (y + \mathrm{proj}(\mathrm{attention}(\mathrm{qkv}(\mathrm{norm}_2(y)))))\,k

    with :math:`k=\sqrt{1/2}`. The output channels of ``qkv`` are ordered (head, channel,
    {q, k, v}). ``affine_s`` exists only in a network that knows the target time s (CTM, section
    5.1). In ADM :math:`k=1` and p holds a scale and a shift, which act after the norm:
    :math:`\mathrm{norm}_1(h)\,(1 + p_\text{scale}) + p_\text{shift}`.

    With 0 heads there is no attention; a width that cannot be split into equal norm groups or
    heads is a UserError. ``skip`` is a 1x1 convolution where channels change, and with
    ``resample_proj`` (DDPM++, NCSN++) in every block that resamples, where ADM resamples alone.
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
        adaptive_scale: bool = False,
        resample_proj: bool = True,
        time_s: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.heads = heads if attention else 0
        self.attention_kernel = "math"
        self.adaptive_scale = adaptive_scale
        if self.heads and out_channels % self.heads:
            raise UserError(
                f"network: attention over {out_channels} channels cannot be split into "
                f"{self.heads} equal heads; change model_channels or attn_resolutions"
            )
        resampling: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, **resampling)
        modulation = out_channels * (2 if adaptive_scale else 1)
        self.affine = nn.Linear(emb_channels, modulation)
        self.affine_s = nn.Linear(emb_channels, modulation) if time_s else None
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        self.skip: nn.Module | None = None
        if in_channels != out_channels or (resample_proj and (up or down)):
            self.skip = Conv2d(in_channels, out_channels, 1, **resampling)
        elif up or down:
            self.skip = Resample(up=up, resample_filter=resample_filter)
        if self.heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, emb_s: Tensor | None = None) -> Tensor:
        """(B, in, H, W) and embeddings (B, emb) to (B, out, H', W')."""
        modulation = self.affine(emb)
        if self.affine_s is not None:
            modulation = modulation + self.affine_s(emb_s)
        h = self._run(self._first, x)
        h = self._run(self._second, h, modulation[:, :, None, None].to(h.dtype))
        y: Tensor = (h + (x if self.skip is None else self.skip(x))).mul_(self.skip_scale)
        return (y + self._attention(y)) * self.skip_scale if self.heads else y

    def _first(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv0(functional.silu(self.norm0(x)))
        return h

    def _second(self, h: Tensor, modulation: Tensor) -> Tensor:
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = functional.silu(torch.addcmul(shift, self.norm1(h), 1 + scale))
        else:
            h = functional.silu(self.norm1(h + modulation))
        if self.dropout and self.training:
            h = functional.dropout(h, self.dropout)
        y: Tensor = self.conv1(h)
        return y

    def _attention(self, y: Tensor) -> Tensor:
        batch, channels, height, width = y.shape
        # Contiguous: on channels_last strides bmm would copy matrix by matrix.
        qkv = self.qkv(self.norm2(y)).contiguous()
        qkv = qkv.view(batch * self.heads, channels // self.heads, 3, height * width)
        q, k, v = qkv.unbind(2)
        mixed = attend(q, k, v, self.attention_kernel)
        out: Tensor = self.proj(mixed.reshape(batch, channels, height, width))
        return out


def _kernel(taps: Sequence[float]) -> Tensor:
    row = torch.as_tensor(taps, dtype=torch.get_default_dtype())
    return (row.outer(row) / row.sum() ** 2)[None, None]


def _resampled(x: Tensor, kernel: Tensor, up: bool, box: bool) -> Tensor:
    if box and up:
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    if box:
        return functional.avg_pool2d(x, 2)
    channels, padding = x.shape[1], (kernel.shape[-1] - 1) // 2
    kernel = kernel.to(x.dtype).expand(channels, 1, -1, -1)
    strided: dict[str, Any] = {"stride": 2, "padding": padding, "groups": channels}
    if up:
        return functional.conv_transpose2d(x, 4 * kernel, **strided)
    return functional.conv2d(x, kernel, **strided)
