"""With the exact G, gamma-sampling from p_T has the law p_{sigma_min} at every gamma and NFE."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.gaussian import exact_model
from ctm_core.diffusion.samplers.gamma import plan as gamma_jumps
from ctm_core.diffusion.sampling import sample, sample_jumps, sigmas
from ctm_core.diffusion.trajectory import Trajectory

from .truth import ALPHA, MIXTURE, SIGMA_MAX, SIGMA_MIN, draws, fit

COUNT = 2000
GAMMAS = (0.0, 0.2, 0.5, 0.9, 1.0)
#: 1e-8 of error in G is nothing to 2000 samples, and saves half the time.
MODEL = exact_model(MIXTURE, tolerance=1e-8)


def noise(k: int, seed: int = 0) -> Tensor:
    return randomness.normal(seed, "inject", k, 0, COUNT, MIXTURE.shape).double()


@cache
def run(sampler: str, nfe: int, gamma: float) -> Tensor:
    return sample(
        MODEL,
        sampler=sampler,
        nfe=nfe,
        gamma=gamma,
        latents=draws(COUNT, SIGMA_MAX) / SIGMA_MAX,
        noise=noise,
        clamp=False,
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("nfe", [1, 2, 4, 8])
def test_marginals(nfe: int, gamma: float) -> None:
    made = run("gamma", nfe, gamma)
    assert min(fit(made, SIGMA_MIN).values()) > ALPHA
    if nfe == 1:  # no noise is injected: gamma is void
        assert torch.equal(made, run("gamma", 1, 0.0))
    elif gamma > 0:
        assert not torch.allclose(made, run("gamma", 1, 0.0), atol=0.1)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_marginals_of_the_printed_form(gamma: float) -> None:
    """Its floor at sigma_min changes the law by less than 2000 samples can tell."""
    assert min(fit(run("gamma_paper", 4, gamma), SIGMA_MIN).values()) > ALPHA


# -- the same test finds wrong samplers ---------------------------------------------------------


def euler_jump(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return x * (s / t) + (1 - s / t) * MIXTURE.denoise(x, t)


def noise_by_difference(nfe: int, gamma: float) -> Tensor:
    """Adds noise of deviation t' - s instead of √(t'² - s²)."""
    jumps = gamma_jumps(sigmas(nfe), gamma)
    after = sigmas(nfe)[1:]
    return follow(MODEL, jumps.s, (after - jumps.s))


def noise_without_descent(nfe: int, gamma: float) -> Tensor:
    """Adds the noise of gamma, but jumps as with gamma = 0."""
    return follow(MODEL, sigmas(nfe)[1:], gamma_jumps(sigmas(nfe), gamma).noise)


def descent_without_noise(nfe: int, gamma: float) -> Tensor:
    """Jumps as gamma says, and forgets the noise."""
    jumps = gamma_jumps(sigmas(nfe), gamma)
    return follow(MODEL, jumps.s, torch.zeros_like(jumps.noise))


def euler_for_g(nfe: int, gamma: float) -> Tensor:
    """The right plan with one Euler step in place of G."""
    jumps = gamma_jumps(sigmas(nfe), gamma)
    start = draws(COUNT, SIGMA_MAX)
    return sample_jumps(euler_jump, start, jumps, noise)


def follow(model: Trajectory, s: Tensor, deviation: Tensor) -> Tensor:
    levels = sigmas(len(s))
    jumps = gamma_jumps(levels, 0.0)._replace(s=s, noise=deviation)
    start = draws(COUNT, SIGMA_MAX)
    with torch.no_grad():
        return sample_jumps(lambda x, t, s: model.G(x, t, s), start, jumps, noise)


@pytest.mark.parametrize(
    "wrong", [noise_by_difference, noise_without_descent, descent_without_noise, euler_for_g]
)
def test_wrong_samplers_fail(wrong: Callable[[int, float], Tensor]) -> None:
    assert min(fit(wrong(4, 0.5), SIGMA_MIN).values()) < ALPHA


def test_wrong_starts_fail() -> None:
    """Half the spread at 80 is seen, and so is the law of a neighbouring noise level."""
    start = draws(COUNT, SIGMA_MAX)
    assert min(fit(start, SIGMA_MAX).values()) > ALPHA
    half = MIXTURE.flow(start / 2, SIGMA_MAX, SIGMA_MIN, tolerance=1e-8)
    assert min(fit(half, SIGMA_MIN).values()) < ALPHA
    assert min(fit(run("gamma", 2, 1.0), 0.05).values()) < ALPHA
