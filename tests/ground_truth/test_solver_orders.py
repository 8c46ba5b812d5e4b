"""Solvers against the exact flow: Euler has order 1, all others order 2, ending at sigma_min."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_core.diffusion.gaussian import GaussianMixture
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import MULTISTEP, euler_step, heun_solve, multistep

from .truth import DOUBLE, MIXTURE, SIGMA_MAX, SIGMA_MIN, draws

SINGLE = GaussianMixture(
    torch.ones(1),
    torch.tensor([0.3, -0.2], dtype=DOUBLE).view(1, 1, 1, 2),
    torch.tensor([0.25, 0.04], dtype=DOUBLE).view(1, 1, 1, 2),
)


def solve(mixture: GaussianMixture, solver: str, x: Tensor, grid: Tensor) -> Tensor:
    """From grid[0] to grid[-1], which is sigma_min and not 0."""
    assert float(grid[-1]) == SIGMA_MIN
    if solver == "heun":
        start = torch.zeros(len(x), dtype=torch.int64)
        return heun_solve(mixture.denoise, x, grid, start, len(grid) - 1)
    if solver in MULTISTEP:
        before = None
        for t, t_next in pairwise(grid):
            x, kept = multistep(solver, mixture.denoise, x, t, t_next, before)
            before = kept, t
        return x
    for t, t_next in pairwise(grid):
        x = euler_step(mixture.denoise, x, t, t_next)
    return x


@pytest.mark.parametrize("mixture", [SINGLE, MIXTURE], ids=["one Gaussian", "mixture"])
@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("dpmpp_2m", 2)]
)
def test_orders_to_sigma_min(mixture: GaussianMixture, solver: str, order: int) -> None:
    x = draws(64, SIGMA_MAX, mixture=mixture)
    exact = mixture.flow(x, SIGMA_MAX, SIGMA_MIN)
    steps = [256, 512, 1024]
    errors = []
    for n in steps:
        made = solve(mixture, solver, x, karras_grid(n + 1, SIGMA_MIN, SIGMA_MAX))
        errors.append(float((made - exact).square().mean().sqrt()))
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1)
    assert -slope == pytest.approx(order, abs=0.1)
    assert errors[-1] < (3e-2 if order == 1 else 1e-3)


def test_the_exact_flow_is_finer_than_what_it_judges() -> None:
    """Two tolerances and a detour over a time between agree to 1e-10."""
    x = draws(64, SIGMA_MAX)
    exact = MIXTURE.flow(x, SIGMA_MAX, SIGMA_MIN)
    rougher = MIXTURE.flow(x, SIGMA_MAX, SIGMA_MIN, tolerance=1e-12)
    detour = MIXTURE.flow(MIXTURE.flow(x, SIGMA_MAX, 0.7), 0.7, SIGMA_MIN)
    assert float((rougher - exact).abs().max()) < 1e-10
    assert float((detour - exact).abs().max()) < 1e-10
