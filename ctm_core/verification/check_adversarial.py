"""The other losses of the training file: LPIPS, and the two steps against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ctm_core.training.adversary import HIGH, LOW, hinge_discriminator, hinge_generator
from ctm_core.training.balance import Rule, adaptive_weight
from ctm_core.training.batches import Batch
from ctm_core.training.distances._vgg import VGG16_STAGES
from ctm_core.training.distances.lpips_vgg import LpipsVgg
from ctm_core.verification import case
from ctm_core.verification.check_training import GoldenBatch, loss_checks, objective, step_values
from ctm_core.verification.golden import Check, Golden, compare, exact


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


class ToyAdversary:
    """Stands in for :class:`ctm_core.training.adversary.Adversary` with linear logits."""

    period = 2
    rule = Rule(low=LOW, high=HIGH)

    def __init__(self, golden: Golden) -> None:
        self.golden = golden

    def generator_loss(self, fake: Tensor, batch: Batch) -> Tensor:
        """L_G of the file's discriminator."""
        return hinge_generator(_judged(self.golden, fake))


@case("ctm_training")
def gan_g(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The generator's step against a linear discriminator, through the objective that trains."""
    made = objective(golden, precision)
    made.adversary = ToyAdversary(golden)  # type: ignore[assignment]
    terms, ours = step_values(golden, precision, made)
    gradients = made.last_layer
    unclipped = adaptive_weight(gradients["consistency"], gradients["gan"], high=float("inf"))
    ours |= {
        "lambda_gan_before_clip": unclipped,
        "weighted_g_loss": terms["lambda_gan"] * terms["gan"],
    }
    for name, value in ours.items():
        expected = golden.expected(f"gan_g/{name}", precision)
        yield compare(f"gan_g/{name}", value, expected, precision, solve=True)


@case("ctm_training")
def gan_d(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The discriminator's step, which is its loss and nothing else."""
    made = objective(golden, precision)
    batch = GoldenBatch(golden, precision)
    estimate = made.generated(batch)
    losses = {
        "logits_real": _judged(golden, batch.images),
        "logits_fake": _judged(golden, estimate),
    }
    losses["d_loss"] = hinge_discriminator(losses["logits_real"], losses["logits_fake"])
    for name, value in losses.items():
        expected = golden.expected(f"gan_d/{name}", precision)
        yield compare(f"gan_d/{name}", value, expected, precision, solve=True)
    only = golden.expected("gan_d/keys_only_d_loss", precision)
    yield exact("gan_d/keys_only_d_loss", int(not estimate.requires_grad), int(only))


def _judged(golden: Golden, images: Tensor) -> Tensor:
    """Logits (B, 3) of the file's discriminator: linear functionals of the image."""
    return torch.einsum("bchw,kchw->bk", images, golden.input("toyD_w", images.dtype))


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
