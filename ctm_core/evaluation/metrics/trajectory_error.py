r"""Trajectory error: how far jumps land from the teacher's ODE; needs no feature network.

From noises :math:`x_{\sigma_\max}` a fine Heun solve of the teacher gives :math:`x_\sigma` at
every level that is wanted. The error of a step from t to s is

.. math:: e(t, s) = \Bigl(\frac1n \sum_i \frac1d
             \bigl\lVert M(x^{(i)}_t, t, s) - x^{(i)}_s \bigr\rVert^2\Bigr)^{1/2}

for the model's step M, a jump G or a step of a solver, in units of images in [-1, 1]. Each step
starts from the teacher's own :math:`x_t`, so errors of earlier steps do not enter. The trajectory
error of a sampler is the mean of e over its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import Denoiser, euler_step, heun_step
from ctm_core.evaluation.metrics.subsampling import Estimate

#: A step from t to s < t.
Step = tuple[float, float]

#: M(x, t, s): images (B, C, H, W) at t, times () in their dtype; images at s.
Move = Callable[[Tensor, Tensor, Tensor], Tensor]


def path(
    denoiser: Denoiser,
    x: Tensor,
    levels: Collection[float],
    *,
    points: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
) -> dict[float, Tensor]:
    """States of the probability-flow ODE at some levels.

    Heun steps go down a grid that does not depend on the levels. A level between two of its points
    is reached by one more step aside, so the state at a level does not depend on which others
    are wanted. Level 0 is an Euler step from sigma_min, as the samplers take it.

    ``x`` (B, C, H, W) is at sigma_max, in the dtype to solve in; a grid of ``points`` takes
    2 (points - 1) evaluations. Returns ``{level: images (B, C, H, W)}``.
    """
    outside = [level for level in levels if level and not sigma_min <= level <= sigma_max]
    if outside:
        raise ValueError(f"the levels {outside} are not between {sigma_max} and {sigma_min}")
    grid = karras_grid(points, sigma_min, sigma_max, rho).tolist()
    states = {sigma_max: x}
    for high, low in pairwise(grid):
        for level in levels:
            if low < level < high:
                states[level] = heun_step(denoiser, x, _time(high, x), _time(level, x))
        x = heun_step(denoiser, x, _time(high, x), _time(low, x))
        states[low] = x
    if 0 in levels:
        states[0.0] = euler_step(denoiser, x, _time(sigma_min, x), _time(0.0, x))
    return {level: states[level] for level in levels}


def _time(level: float, x: Tensor) -> Tensor:
    return torch.tensor(level, dtype=x.dtype, device=x.device)


def squared_errors(move: Move, states: dict[float, Tensor], steps: Sequence[Step]) -> Tensor:
    """Mean squared error of every step (t, s) and image: float64 (steps, B).

    ``states`` are those of :func:`path` at both ends of every step.
    """
    errors = []
    for t, s in steps:
        x, exact = states[t], states[s]
        landed = move(x, _time(t, x), _time(s, x))
        errors.append((landed.double() - exact.double()).square().flatten(1).mean(1).cpu())
    return torch.stack(errors)


def rms(squares: Tensor) -> Tensor:
    """e(t, s) of every step, float64 (steps,), from squared errors (steps, n)."""
    return squares.mean(dim=1).sqrt()


def trajectory_error(squares: Tensor) -> Estimate:
    r"""The mean of e over the steps, from squared errors (steps, n).

    Its standard error is that of the noises: to first order noise i moves the value by
    :math:`\frac1J \sum_j q_{ij} / 2 e_j` over n, with q the squared errors.
    """
    each = rms(squares)
    value = float(each.mean())
    n = squares.shape[1]
    if n < 2:
        return Estimate(value)
    moved = (squares / (2 * each.clamp(min=1e-300))[:, None]).mean(dim=0)
    return Estimate(value, float(moved.std() / n**0.5), n - 1)
