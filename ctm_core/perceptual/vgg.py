r"""Comparison of VGG16 features, as LPIPS and its relatives share it.

With the features :math:`f_l` of five layers (relu1_2, 2_2, 3_3, 4_3, 5_3), scaled to unit length
over the channels at every pixel, and one non-negative weight :math:`w_{lc}` a channel,

.. math::
    d(a, b) = \sum_l \operatorname{mean}_{hw} \sum_c w_{lc}
        \big(\hat f_{lchw}(a) - \hat f_{lchw}(b)\big)^2
    \qquad \hat f_{lhw} = f_{lhw} / \|f_{lhw}\|
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.errors import UserError
from ctm_core.perceptual.distance import Distance, at_least_single

__all__ = ["VGG16_STAGES", "VggDistance"]

#: Width and number of the 3 x 3 convolutions of VGG16's five stages.
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VggDistance(Distance):
    """A distance of VGG16 features.

    The weights are frozen and nothing depends on train or eval mode; the gradient reaches the
    inputs alone. Features are computed in the weights' dtype (bf16 under autocast), their
    comparison in float32 at least.

    Parameters
    ----------
    resize : int, ≥ 32
        Side of the square to which images are resized, bilinearly with ``align_corners=False``.
    pooling
        The layers between two stages, for the number of channels there.

    Notes
    -----
    A new instance holds uninitialised memory.
    """

    def __init__(self, resize: int, pooling: Callable[[int], list[nn.Module]]) -> None:
        super().__init__()
        self.resize = resize
        self.stages = nn.ModuleList()
        incoming = 3
        for width, convolutions in VGG16_STAGES:
            layers = pooling(incoming) if self.stages else []
            for _ in range(convolutions):
                # Through "meta" no initial values are drawn from the global random state.
                convolution = nn.Conv2d(incoming, width, 3, padding=1, device="meta")
                layers += [convolution.to_empty(device="cpu"), nn.ReLU(inplace=True)]
                incoming = width
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(torch.empty(1, width, 1, 1) for width, _ in VGG16_STAGES)
        self.requires_grad_(False)
        self.eval()

    def resizes(self, images: Tensor) -> bool:
        """Whether images of this shape are resized."""
        return images.shape[2:] != (self.resize, self.resize)

    def normalised(self, x: Tensor) -> Tensor:
        """What the trunk takes, of images (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def unit(self, features: Tensor) -> Tensor:
        """Features scaled to unit length over the channels; zero stays zero, with a gradient."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of the five stages.

        Parameters
        ----------
        images : Tensor, shape (B, 1 or 3, H, W), floating, in [-1, 1]

        Returns
        -------
        list of Tensor
            Shapes (B, C_l, H_l, W_l), of unit length along C_l, float32 or float64.
        """
        channels = images.shape[1]
        if channels not in (1, 3):
            raise UserError(
                f"the distance {self.name} takes images of 1 or 3 channels, not {channels}; "
                "set distance to l2 or pseudo_huber"
            )
        x = images.to(self.heads[0].dtype)
        if self.resizes(x):
            size = (self.resize, self.resize)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = self.normalised(x.expand(-1, 3, -1, -1))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(self.unit(at_least_single(x)))
        return features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        # Two passes, not one of the pair: the target's features then need no graph.
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        stages = [
            ((of_a - of_b).square().mean((2, 3)) * head.flatten()).sum(1)
            for of_a, of_b, head in pairs
        ]
        return torch.stack(stages).sum(0)
