"""LPIPS by the recipe of its weights, and the consistency loss measured with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ctm_core.perceptual import LpipsVgg
from ctm_core.perceptual.vgg import VGG16_STAGES
from ctm_core.verification import case
from ctm_core.verification.golden import Check, Golden, compare
from ctm_core.verification.training import loss_checks, objective


@case("ctm_training")
def lpips(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The weights' sums, then losses, adaptive weight and gradient norm under LPIPS."""
    convolutions, heads = recipe(int(golden.meta["lpips_recipe_seed"]))
    sums = torch.stack([weight.double().abs().sum() for weight, _ in convolutions])
    yield compare("abs_sums", sums, golden["lpips_recipe/abs_sums"], precision)
    sums = torch.stack([head.double().sum() for head in heads])
    yield compare("lin_sums", sums, golden["lpips_recipe/lin_sums"], precision)
    first = convolutions[0][0].flatten()[:9]
    golden_first = golden["lpips_recipe/conv0_weight_first9"]
    yield compare("conv0_weight_first9", first, golden_first, precision)

    distance = LpipsVgg(resize=224, pooling="average")
    distance.fill(convolutions, heads)
    made = objective(golden, precision, distance=distance.to(precision))
    yield from loss_checks("lpips", golden, precision, made)


def recipe(seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Weights of the golden LPIPS network, as golden/README.md section 2 draws them.

    Returns
    -------
    (weight, bias) of the 13 convolutions and the five linear weights (C_l,), float32.
    """

    def normal(key: int, *shape: int) -> np.ndarray:
        return np.random.default_rng([seed, key]).standard_normal(shape)

    convolutions: list[tuple[Tensor, Tensor]] = []
    incoming = 3
    for width, count in VGG16_STAGES:
        for _ in range(count):
            k = len(convolutions)
            weight = normal(k, width, incoming, 3, 3) * np.sqrt(2 / (9 * incoming))
            bias = 0.05 * normal(100 + k, width)
            convolutions.append((_single(weight), _single(bias)))
            incoming = width
    heads = [
        _single(np.abs(normal(200 + layer, width)) / width)
        for layer, (width, _) in enumerate(VGG16_STAGES)
    ]
    return convolutions, heads


def _single(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
