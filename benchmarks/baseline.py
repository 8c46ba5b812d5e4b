"""A plain training step of CTM: the baseline of the benchmark, for speed and for gradients.

It uses the library's mathematics and networks, and differs only in how they are called.

==============================  ==================================================================
here                            in the library
==============================  ==================================================================
one sum of losses; lambda by    gradients at the raw output F serve the norms and the sum
separate backward passes
both graphs live until the end  the graph of a call is freed before the next call
the distance's graph, for all   its gradient with its value, a few images at a time
images, until the end
every map on every row          rows on which a map is the identity are not evaluated
a loop over tensors             optimiser and EMA update all tensors in one call
fp32, contiguous                as configured: bf16 autocast, channels_last
float64 sampling loop           float32
==============================  ==================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sizes import FixedSteps

from ctm_core.training.balance import adaptive_weight
from ctm_core.training.batches import Batch
from ctm_core.training.distance import Distance
from ctm_core.training.distances._vgg import VggDistance

Tensor = torch.Tensor


class Plain(FixedSteps):
    """The objective with its step written like the paper's formulas."""

    def backward(
        self,
        batch: Batch,
        share: float,
        weights: Mapping[str, Any] | None = None,
        average: Callable[[list[Tensor]], None] | None = None,
    ) -> dict[str, float]:
        """Gradients of the weighted sum; see :meth:`.objective.Objective.backward`."""
        drawn, grid, x_t = self.noised(batch)
        with torch.no_grad():
            target = self.matching_target(batch, x_t, grid, drawn)
        t, s = grid[drawn.i], grid[drawn.j]
        estimate = self.to_data(self.student.G(x_t, t, s, batch.labels), s, batch.labels)
        losses = {"ctm": compare(self.distance, estimate, target).mean()}
        if self.adversary is not None:
            losses["gan"] = self.adversary.generator_loss(estimate, batch)
        losses["dsm"] = self.denoising(batch)[0]
        w = self.student.output_weight
        at_w = {name: at_weight(loss, w) for name, loss in losses.items()}
        total, terms = losses["ctm"], {}
        for name, rule in self.rules().items():
            ratio = adaptive_weight(at_w["ctm"], at_w[name], low=rule.low, high=rule.high)
            total = total + rule.scale * ratio * losses[name]
            terms[f"lambda_{name}"] = float(rule.scale * ratio)
        through_network(total * share)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        return {"loss": float(total.detach()), **values, **terms}

    def solve(self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Any) -> Tensor:
        """Three Heun steps on every row."""
        with torch.no_grad():
            for m in range(int(steps.max())):
                t, t_next = grid[i + m], grid[i + m + 1]
                step = (t_next - t).view(-1, 1, 1, 1)
                slope = (x - self.teacher.denoise(x, t, labels)) / t.view(-1, 1, 1, 1)
                ahead = x + step * slope
                denoised = self.teacher.denoise(ahead, t_next, labels)
                x = x + step * (slope + (ahead - denoised) / t_next.view(-1, 1, 1, 1)) / 2
        return x

    def to_data(self, x: Tensor, s: Tensor, labels: Any) -> Tensor:
        """The outer map on every row."""
        return self.target.G(x, s, torch.full_like(s, self.sigma_min), labels)

    def inner_map(self, x_u: Tensor, grid: Tensor, at: Tensor, j: Tensor, labels: Any) -> Tensor:
        """The inner map on every row."""
        network = self.student if self.section.inner == "model" else self.target
        return network.G(x_u, grid[at], grid[j], labels)


def compare(distance: Distance, a: Tensor, b: Tensor) -> Tensor:
    """The distance; a perceptual one by its formula, with the graph of the whole batch."""
    if not isinstance(distance, VggDistance):
        return distance(a, b)
    total = a.new_zeros(len(a))
    features = zip(distance.features(a), distance.features(b), distance.heads, strict=True)
    for *pair, head in features:
        norms = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in pair)
        one, other = (x / (norm + 1e-10) for x, norm in zip(pair, norms, strict=True))
        total = total + ((one - other).square().mean((2, 3)) * head.flatten()).sum(1)
    return total


def at_weight(loss: Tensor, w: Tensor) -> Tensor:
    """Gradient of a loss at w by a separate backward pass."""
    return torch.autograd.grad(loss, w, retain_graph=True)[0]


def through_network(loss: Tensor) -> None:
    """The backward pass that fills the gradient."""
    loss.backward()


@torch.no_grad()
def one_jump(model: Any, latents: Tensor) -> Tensor:
    """A sample in one evaluation."""
    times = latents.new_full((len(latents),), 80.0)
    return model.G(80.0 * latents, times, torch.full_like(times, 0.002))


@torch.no_grad()
def heun(model: Any, latents: Tensor, grid: Tensor) -> Tensor:
    """EDM's deterministic sampler (Karras et al. 2022, algorithm 1) down ``grid`` and to 0."""
    x = 80.0 * latents.double()
    times = [float(t) for t in grid] + [0.0]
    for t, t_next in itertools.pairwise(times):

        def slope(z: Tensor, time: float) -> Tensor:
            at = torch.full((len(z),), time)
            return (z - model.denoise(z.float(), at).double()) / time

        first = slope(x, t)
        ahead = x + (t_next - t) * first
        x = ahead if t_next == 0 else x + (t_next - t) * (first + slope(ahead, t_next)) / 2
    return x
