"""What every raw network F is to the rest of the library: sizes, one call, one marked weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ctm_core.runtime.errors import UserError


class Level(NamedTuple):
    """The blocks of one resolution: side of their maps, their channels, whether they attend."""

    side: int
    width: int
    attends: bool


class RawNetwork(nn.Module):
    """Base of the U-Nets; a subclass makes the layers.

    It is called as ``F(x, c_noise, c_noise_s, labels, augment_labels)``:

    x
        (B, channels, resolution, resolution), already scaled by c_in.
    c_noise, c_noise_s
        (B,) noise conditions ln(t)/4 of t and, in a network with ``time_s``, of s.
    labels
        (B, label_dim) one-hot floats; None means all zero.
    augment_labels
        (B, augment_dim) where the network has such a width; None means all zero.

    and returns a tensor shaped like ``x``. A target time where there is none, or none where there
    must be one, is a :class:`~ctm_core.runtime.errors.UserError`.

    Parameters
    ----------
    resolution, channels
        Side and channels of the square images; the side is halved at every level but the first.
    model_channels, channel_mult
        Width, and its factor at each level.
    num_blocks, attn_resolutions
        Residual blocks per level, and sides of the feature maps at which they attend.
    label_dim
        Classes; 0 for an unconditional network.
    augment_dim
        Width of the augmentation labels; 0 for none.
    time_s
        Whether the network knows the target time s (CTM, section 5.1).
    dropout
        Probability, active in train mode.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        label_dim: int = 0,
        augment_dim: int = 0,
        time_s: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(channel_mult) - 1)
        if resolution % factor:
            raise UserError(
                f"network: images of {resolution}x{resolution} cannot be halved for "
                f"{len(channel_mult)} levels (channel_mult); the side must be a multiple "
                f"of {factor}"
            )
        self.resolution = resolution
        self.channels = channels
        self.model_channels = model_channels
        self.num_blocks = num_blocks
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.time_s = time_s
        self.dropout = dropout
        sides = [resolution >> level for level in range(len(channel_mult))]
        self.levels = [
            Level(side, model_channels * mult, side in attn_resolutions)
            for side, mult in zip(sides, channel_mult, strict=True)
        ]

    #: Modules whose outputs are all that s does to the network, by the last part of their names.
    s_outputs: ClassVar[tuple[str, ...]] = ("affine_s",)

    @torch.no_grad()
    def zero_target_time(self) -> None:
        """Make F independent of s, so that it equals the network without s that it came from."""
        for name, value in self.named_parameters():
            if {*name.split(".")} & {*self.s_outputs}:
                value.zero_()

    @property
    def output_weight(self) -> Tensor:
        """The parameter near the output on which CTM's adaptive loss weights are measured."""
        raise NotImplementedError

    def _check_target_time(self, c_noise_s: Tensor | None) -> None:
        if self.time_s and c_noise_s is None:
            raise UserError("network: this network needs the target time s")
        if not self.time_s and c_noise_s is not None:
            raise UserError("network: this network was built without a target time s")
