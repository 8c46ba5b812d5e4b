r"""Random projections of a feature pyramid, drawn once and never trained (Sauer et al. 2021).

Cross-channel mixing (``ccm``) is a 1 x 1 convolution of each map to w, 2w, 4w and 8w channels.
Cross-scale mixing (``csm``) goes from the coarsest map to the finest,

.. math::
    y_3 = M_3(c_3), \qquad y_l = M_l(c_l + y_{l+1}),

:math:`M_l` doubling the side (bilinearly, corners aligned) and mixing to 4w, 2w, w and w channels.
No nonlinearity anywhere; w = 64 as released.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ctm_core.training.discriminator.projected_layers import Conv2d


class ScaleMixing(nn.Module):
    """Double the side and mix channels: (B, C, H, W) to (B, C', 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_conv = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The published order is reversed: the two commute, and so it takes a quarter of the work.
        mixed = self.out_conv(x)
        return functional.interpolate(mixed, scale_factor=2, mode="bilinear", align_corners=True)


class Projection(nn.Module):
    """Four maps of a feature network, finest first, to the pyramid that the heads see."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        mixed = [width << level for level in range(len(in_channels))]
        #: Channels of the pyramid, finest first.
        self.channels = (width, *mixed[:-1])
        for level, (incoming, outgoing) in enumerate(zip(in_channels, mixed, strict=True)):
            self.add_module(f"layer{level}_ccm", Conv2d(incoming, outgoing, 1))
        for level in reversed(range(len(mixed))):
            mixing = ScaleMixing(mixed[level], self.channels[level])
            self.add_module(f"layer{level}_csm", mixing)
        self.requires_grad_(False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid, finest first, of maps each half the side of the one before."""
        pyramid: list[Tensor] = []
        for level in reversed(range(len(maps))):
            x = getattr(self, f"layer{level}_ccm")(maps[level])
            x = x + pyramid[0] if pyramid else x
            pyramid.insert(0, getattr(self, f"layer{level}_csm")(x))
        return pyramid
