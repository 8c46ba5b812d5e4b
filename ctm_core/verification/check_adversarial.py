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
from ctm_core.verification.golden import Check, Golden, exact


@case("ctm_training")
def lpips(golden: Golden) -> Iterator[Check]:
    """The weights' sums, then losses, adaptive weight and gradient norm under LPIPS."""
    convolutions, heads = recipe(int(golden.meta["lpips_recipe_seed"]))
    sums = torch.stack([weight.double().abs().sum() for weight, _ in convolutions])
    yield golden.check("lpips_recipe/abs_sums", sums)
    sums = torch.stack([head.double().sum() for head in heads])
    yield golden.check("lpips_recipe/lin_sums", sums)
    yield golden.check("lpips_recipe/conv0_weight_first9", convolutions[0][0].flatten()[:9])

    distance = LpipsVgg(resize=224, pooling="average")
    distance.fill(convolutions, heads)
    made = objective(golden, distance=distance.to(golden.device, golden.precision))
    yield from loss_checks("lpips", golden, made)


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
def gan_g(golden: Golden) -> Iterator[Check]:
    """The generator's step against a linear discriminator, through the objective that trains."""
    made = objective(golden)
    made.adversary = ToyAdversary(golden)  # type: ignore[assignment]
    terms, ours = step_values(golden, made)
    at_w = made.last_layer
    unclipped = adaptive_weight(at_w["consistency"], at_w["gan"], high=float("inf"))
    ours |= {"lambda_gan_before_clip": unclipped}
    ours |= {"weighted_g_loss": terms["lambda_gan"] * terms["gan"]}
    for name, value in ours.items():
        yield golden.check(f"gan_g/{name}", value, solve=True)


@case("ctm_training")
def gan_d(golden: Golden) -> Iterator[Check]:
    """The discriminator's step, which is its loss and nothing else."""
    made = objective(golden)
    batch = GoldenBatch(golden)
    estimate = made.generated(batch)
    real, fake = _judged(golden, batch.images), _judged(golden, estimate)
    losses = {"logits_real": real, "logits_fake": fake, "d_loss": hinge_discriminator(real, fake)}
    for name, value in losses.items():
        yield golden.check(f"gan_d/{name}", value, solve=True)
    only = golden.expected("gan_d/keys_only_d_loss")
    yield exact("gan_d/keys_only_d_loss", int(not estimate.requires_grad), int(only))


def _judged(golden: Golden, images: Tensor) -> Tensor:
    """Logits (B, 3) of the file's discriminator: linear functionals of the image."""
    return torch.einsum("bchw,kchw->bk", images, golden.input("toyD_w"))


def recipe(seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Weights of the golden LPIPS network, as golden/README.md section 2 draws them.

    (weight, bias) of the 13 convolutions and the five linear weights (C_l,), float32.
    """

    def normal(key: int, *shape: int) -> np.ndarray:
        return np.random.default_rng([seed, key]).standard_normal(shape)

    def single(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    convolutions: list[tuple[Tensor, Tensor]] = []
    incoming = 3
    for width, count in VGG16_STAGES:
        for _ in range(count):
            k = len(convolutions)
            weight = normal(k, width, incoming, 3, 3) * np.sqrt(2 / (9 * incoming))
            bias = 0.05 * normal(100 + k, width)
            convolutions.append((single(weight), single(bias)))
            incoming = width
    heads = [
        single(np.abs(normal(200 + layer, width)) / width)
        for layer, (width, _) in enumerate(VGG16_STAGES)
    ]
    return convolutions, heads
