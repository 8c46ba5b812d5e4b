"""The other losses of the training file: LPIPS, and the two steps against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ctm_core.objectives.adversarial import hinge_discriminator, hinge_generator
from ctm_core.objectives.ctm import adaptive_weight
from ctm_core.objectives.dsm import dsm_loss
from ctm_core.perceptual import LpipsVgg
from ctm_core.perceptual.vgg import VGG16_STAGES
from ctm_core.verification import case
from ctm_core.verification.golden import Check, Golden, compare, exact
from ctm_core.verification.training import GoldenBatch, loss_checks, objective


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


@case("ctm_training")
def gan_g(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The generator's step against a linear discriminator."""
    made = objective(golden, precision)
    batch = GoldenBatch(golden, precision)
    k, i, j = made.draw(batch)
    grid = made.grid.to(precision)
    t, s = grid[i], grid[j]
    x_t = batch.images + t.view(-1, 1, 1, 1) * batch.normal("noise")
    raw = made.student.raw(x_t, t, s, batch.labels)
    estimate = made.to_data(made.student.jump(raw, x_t, t, s), s, batch.labels)
    target = made.matching_target(x_t, grid, i, j, k, batch.labels)
    per_sample = made.distance(estimate, target)
    gan = hinge_generator(_judged(golden, estimate))
    dsm, dsm_raw = made.denoising(batch)

    (at_ctm,) = torch.autograd.grad(per_sample.mean(), raw, retain_graph=True)
    (at_gan,) = torch.autograd.grad(gan, raw)
    (at_dsm,) = torch.autograd.grad(dsm, dsm_raw)
    w = made.student.output_weight
    lambda_dsm = made.dsm_weight((raw, at_ctm), (dsm_raw, at_dsm))
    (ctm_w,) = torch.autograd.grad(raw, w, at_ctm, retain_graph=True)
    (gan_w,) = torch.autograd.grad(raw, w, at_gan, retain_graph=True)
    lambda_gan = adaptive_weight(ctm_w, gan_w, low=0.01, high=10.0)
    seeds = [at_ctm + lambda_gan * at_gan, lambda_dsm * at_dsm]
    torch.autograd.backward([raw, dsm_raw], seeds)
    gradients = [p.grad for p in made.student.parameters() if p.grad is not None]
    with torch.no_grad():
        sigma, noise = golden["in/dsm_sigma"], batch.normal("dsm_noise")
        each, _ = dsm_loss(made.student, batch.images, sigma, noise, batch.labels)
    ours: dict[str, Tensor | float] = {
        "consistency_loss": per_sample,
        "denoising_loss": lambda_dsm * each,
        "lambda_dsm": lambda_dsm,
        "lambda_gan_before_clip": adaptive_weight(ctm_w, gan_w, high=float("inf")),
        "weighted_g_loss": lambda_gan * gan,
        "total": per_sample.mean() + lambda_dsm * dsm + lambda_gan * gan,
        "grad_norm": torch.nn.utils.get_total_norm(gradients),
    }
    for name, value in ours.items():
        expected = golden.expected(f"gan_g/{name}", precision)
        yield compare(f"gan_g/{name}", value, expected, precision, solve=True)


@case("ctm_training")
def gan_d(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The discriminator's step, which is its loss and nothing else."""
    made = objective(golden, precision)
    batch = GoldenBatch(golden, precision)
    _, i, j = made.draw(batch)
    grid = made.grid.to(precision)
    t, s = grid[i], grid[j]
    with torch.no_grad():
        x_t = batch.images + t.view(-1, 1, 1, 1) * batch.normal("noise")
        estimate = made.to_data(made.student.G(x_t, t, s, batch.labels), s, batch.labels)
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
