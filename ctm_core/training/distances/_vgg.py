r"""Comparison of VGG16 features, as LPIPS and its relatives share it.

With the features :math:`f_l` of five layers (relu1_2, 2_2, 3_3, 4_3, 5_3), scaled to unit length
over the channels at every pixel, and one non-negative weight :math:`w_{lc}` per channel,

.. math::
    d(a, b) = \sum_l \operatorname{mean}_{hw} \sum_c w_{lc}
        \big(\hat f_{lchw}(a) - \hat f_{lchw}(b)\big)^2
    \qquad \hat f_{lhw} = f_{lhw} / \|f_{lhw}\|

A sample's distance depends on that sample alone, and at 224 a layer of one image takes 13 MB. So
the gradient is computed with the value, a few images at a time, and all that autograd keeps is the
gradient at the images; and features are compared in strips that fit a processor's cache, by

.. math::
    \frac{\partial d}{\partial f_{hw}} = \rho\,\big(g - \hat f\,(g \cdot \hat f) / (\rho n)\big),
    \qquad g_c = \frac{2 w_c}{HW} \big(\hat f_c(a) - \hat f_c(b)\big),

:math:`n` being the length of :math:`f_{hw}` and :math:`\rho \approx 1/n` what it is scaled by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ctm_core.runtime.errors import UserError
from ctm_core.training.distance import Distance, at_least_single

#: Width and number of the 3 x 3 convolutions of VGG16's five stages.
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

Pair = tuple[Tensor, Tensor]
Gradients = list[Tensor | None]

#: Pixels of the images that go through the trunk at once, and numbers of a strip of features: on a
#: CPU, whose cache is small, and on a GPU, which a small kernel leaves idle.
PIXELS = {"cpu": 224 * 224, "gpu": 16 * 224 * 224}
STRIP = {"cpu": 2**16, "gpu": 2**28}


class VggDistance(Distance):
    """A distance of VGG16 features.

    The weights are frozen and nothing depends on train or eval mode; the gradient reaches the
    inputs alone. Features are computed in the weights' dtype (bf16 under autocast), their
    comparison in float32 at least. Images are resized to squares of the side ``resize`` ≥ 32,
    bilinearly with ``align_corners=False``; ``pooling`` gives the layers between two stages, for
    the number of channels there. A new instance holds uninitialised memory.
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

    #: Length of features below which :meth:`inverse` has no slope.
    floor = 0.0

    def inverse(self, norm: Tensor) -> Tensor:
        """What features are multiplied by to have unit length, of their length."""
        raise NotImplementedError

    def features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C_l, H_l, W_l) of the five stages, not scaled yet, in the trunk's dtype."""
        x = images.to(self.heads[0].dtype)
        if self.resizes(x):
            size = (self.resize, self.resize)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = self.normalised(x.expand(-1, 3, -1, -1))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`; its gradient cannot be differentiated again."""
        channels = a.shape[1]
        if channels not in (1, 3):
            raise UserError(
                f"a perceptual distance takes images of 1 or 3 channels, not {channels}; "
                "set distance to l2 or pseudo_huber"
            )
        value: Tensor = cast(Any, _Measured).apply(a, b, self)
        return value

    def measured(self, pair: Pair, needed: tuple[bool, bool]) -> tuple[Tensor, Gradients]:
        """Distances of a few samples, and their sum's gradients at both images, where needed."""
        images, features = [image.detach() for image in pair], []
        for image, need in zip(images, needed, strict=True):
            image.requires_grad_(need)
            with torch.set_grad_enabled(need):
                features.append(self.features(image))
        stages = [
            self.compared((of_a.detach(), of_b.detach()), head, needed)
            for of_a, of_b, head in zip(*features, self.heads, strict=True)
        ]
        gradients_at: list[Tensor | None] = [None, None]
        for place in (0, 1):
            if needed[place]:
                start = [slopes[place] for _, slopes in stages]
                (gradients_at[place],) = torch.autograd.grad(features[place], images[place], start)
        return torch.stack([value for value, _ in stages]).sum(0), gradients_at

    def compared(
        self, pair: Pair, head: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor, Gradients]:
        """One stage's part of the distance, (B,), and its gradients at both features.

        The comparison runs in float32 at least; gradients have the dtype of the features.
        """
        count, _, height, width = pair[0].shape
        places = height * width
        value = at_least_single(pair[0].new_zeros(count))
        gradients = [
            torch.empty_like(x) if need else None for x, need in zip(pair, needed, strict=True)
        ]
        rows = max(1, STRIP[_kind(pair[0])] // pair[0][:, :, 0].numel())
        for strip in (slice(top, top + rows) for top in range(0, height, rows)):
            wide = [at_least_single(x[:, :, strip]) for x in pair]
            norms = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in wide]
            inverses = [self.inverse(norm) for norm in norms]
            units = [x * inverse for x, inverse in zip(wide, inverses, strict=True)]
            difference = units[0] - units[1]
            weighted = difference * head[0]
            value += difference.mul_(weighted).sum((1, 2, 3)) / places
            for place, sign in ((0, 2), (1, -2)):
                gradient, norm, inverse = gradients[place], norms[place], inverses[place]
                if gradient is None:
                    continue
                along = (weighted * units[place]).sum(1, keepdim=True) / (inverse * norm)
                # Where all features vanish their length has no slope.
                along = torch.where(norm > self.floor, along, 0)
                slope = torch.addcmul(weighted, units[place], along, value=-1)
                gradient[:, :, strip] = slope.mul_(inverse * (sign / places))
        return value, gradients


def _kind(x: Tensor) -> str:
    return "cpu" if x.device.type == "cpu" else "gpu"


class _Measured(torch.autograd.Function):
    """:meth:`VggDistance.measured` for autograd, a few images at a time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, distance: VggDistance) -> Tensor:
        pixels = distance.resize**2 if distance.resizes(a) else a.shape[2] * a.shape[3]
        count, needed = max(1, PIXELS[_kind(a)] // pixels), ctx.needs_input_grad[:2]
        pairs = zip(torch.split(a, count), torch.split(b, count), strict=True)
        values, gradients = zip(*(distance.measured(pair, needed) for pair in pairs), strict=True)
        kept = (
            torch.cat(g) if need else None
            for g, need in zip(zip(*gradients, strict=True), needed, strict=True)
        )
        ctx.save_for_backward(*kept)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_a, of_b = (
            None if kept is None else slope.to(kept.dtype).view(-1, 1, 1, 1) * kept
            for kept in ctx.saved_tensors
        )
        return of_a, of_b, None
