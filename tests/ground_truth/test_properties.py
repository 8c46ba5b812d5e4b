"""Properties that hold for every mixture, grid, index and gamma, found by hypothesis."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.gaussian import GaussianMixture, exact_model
from ctm_core.diffusion.samplers.gamma import plan as gamma_jumps
from ctm_core.diffusion.samplers.gamma_paper import plan as gamma_paper_jumps
from ctm_core.diffusion.sampling import sample, sample_jumps, sigmas
from ctm_core.diffusion.schedule import (
    dsm_sigma,
    heun_steps_from_uniform,
    indices_from_uniforms,
    karras_grid,
    karras_sigma,
    lognormal_sigma,
)
from ctm_core.runtime.errors import UserError

from .truth import DOUBLE, MIXTURE, SIGMA_MAX, SIGMA_MIN, draws

#: Times spread evenly over the levels' logarithms.
TIMES = st.floats(math.log(SIGMA_MIN), math.log(SIGMA_MAX)).map(math.exp)
quick = settings(max_examples=25, derandomize=True)


@st.composite
def mixtures(draw: st.DrawFn) -> GaussianMixture:
    """One to four Gaussians on images of one to three pixels."""
    k, width = draw(st.integers(1, 4)), draw(st.integers(1, 3))

    def numbers(low: float, high: float, count: int) -> Tensor:
        values = draw(st.lists(st.floats(low, high), min_size=count, max_size=count))
        return torch.tensor(values, dtype=DOUBLE)

    weights = numbers(0.1, 1, k)
    return GaussianMixture(
        weights / weights.sum(),
        numbers(-1, 1, k * width).view(k, 1, 1, width),
        numbers(0.01, 0.5, k * width).view(k, 1, 1, width),
    )


# -- the maps -----------------------------------------------------------------------------------


@given(mixture=mixtures(), t=TIMES)
@quick
def test_no_jump_is_the_identity_and_g_the_denoiser(mixture: GaussianMixture, t: float) -> None:
    model = exact_model(mixture)
    x = draws(3, t, mixture=mixture)
    # A target time equal to t by value, not the same object, which would ask for the denoiser.
    time, target = torch.tensor(t, dtype=DOUBLE), torch.tensor(t, dtype=DOUBLE)
    assert torch.equal(model.G(x, time, target), x)
    torch.testing.assert_close(model.g(x, time, target), mixture.denoise(x, t))


@given(mixture=mixtures(), times=st.tuples(TIMES, TIMES, TIMES))
@quick
def test_semigroup(mixture: GaussianMixture, times: tuple[float, float, float]) -> None:
    """G(G(x, t, u), u, s) = G(x, t, s), through the model that stands for a network."""
    s, u, t = sorted(times)
    model = exact_model(mixture)
    x = draws(3, t, mixture=mixture)
    with torch.no_grad():
        twice, once = model.G(model.G(x, t, u), u, s), model.G(x, t, s)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-9)


@given(mixture=mixtures(), times=st.tuples(TIMES, TIMES))
@quick
def test_jump_and_anytime_map(mixture: GaussianMixture, times: tuple[float, float]) -> None:
    """G = (s/t) x + (1 - s/t) g is the exact flow."""
    s, t = sorted(times)
    model = exact_model(mixture)
    x = draws(3, t, mixture=mixture)
    with torch.no_grad():
        built = (s / t) * x + (1 - s / t) * model.g(x, t, torch.tensor(s, dtype=DOUBLE))
    torch.testing.assert_close(built, mixture.flow(x, t, s), rtol=0, atol=1e-10)


# -- grids and laws -----------------------------------------------------------------------------


@given(
    n=st.integers(2, 200),
    low=st.floats(1e-4, 0.1),
    high=st.floats(1, 200),
    rho=st.floats(1, 10),
)
@quick
def test_grids(n: int, low: float, high: float, rho: float) -> None:
    grid = karras_grid(n, low, high, rho)
    assert len(grid) == n and grid.dtype == DOUBLE
    assert float(grid[0]) == high and float(grid[-1]) == low
    assert bool((grid.diff() < 0).all())
    # Evenly spaced after the power 1/rho, and a grid twice as fine holds every point.
    steps = (grid ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=1e-12)
    finer = karras_grid(2 * n - 1, low, high, rho)
    torch.testing.assert_close(finer[::2], grid, rtol=1e-9, atol=0)


@given(n=st.integers(2, 40), data=st.data())
@quick
def test_law_of_solver_steps(n: int, data: st.DataObject) -> None:
    """P(k) ∝ k exactly: every cell of width P(1) goes to its k."""
    most = data.draw(st.integers(1, n - 1))
    cells = most * (most + 1) // 2
    drawn = [heun_steps_from_uniform((cell + 0.5) / cells, most) for cell in range(cells)]
    assert [drawn.count(k) for k in range(1, most + 1)] == list(range(1, most + 1))


@given(n=st.integers(2, 60), data=st.data())
@quick
def test_law_of_indices(n: int, data: st.DataObject) -> None:
    """t > u ≥ s ≥ sigma_min, and each index is uniform on what it may be."""
    k = data.draw(st.integers(1, n - 1))
    places = n - k
    u_t = (torch.arange(places, dtype=DOUBLE) + 0.5) / places
    i, _ = indices_from_uniforms(u_t, torch.zeros(places, dtype=DOUBLE), k, n)
    assert i.tolist() == list(range(places))  # one cell for each start
    place = data.draw(st.integers(0, places - 1))
    room = n - k - place
    u_s = (torch.arange(room, dtype=DOUBLE) + 0.5) / room
    start, j = indices_from_uniforms(u_t[place].expand(room), u_s, k, n)
    assert set(start.tolist()) == {place}
    assert j.tolist() == list(range(place + k, n))
    grid = karras_grid(n)
    assert bool((grid[place] > grid[start + k]).all() and (grid[start + k] >= grid[j]).all())
    with pytest.raises(UserError, match="has room for"):
        indices_from_uniforms(u_t, u_t, n, n)


@given(u=st.floats(1e-6, 1 - 1e-6), index=st.integers(0, 1000), half=st.integers(1, 8))
@quick
def test_law_of_noise_levels(u: float, index: int, half: int) -> None:
    uniform = torch.tensor([u], dtype=DOUBLE)
    sigma = dsm_sigma(uniform, torch.tensor([index]), 2 * half)
    if index % (2 * half) < half:
        assert torch.equal(sigma, lognormal_sigma(uniform))
        normal = torch.special.ndtr((sigma.log() + 1.2) / 1.2)
        assert float(normal) == pytest.approx(u, rel=1e-9)
    else:
        assert torch.equal(sigma, karras_sigma(0.7 * uniform))
        assert 0.317 < float(sigma) <= SIGMA_MAX


# -- limits of gamma ----------------------------------------------------------------------------


MODEL = exact_model(MIXTURE, tolerance=1e-9)
COUNT = 16
LATENTS = draws(COUNT, SIGMA_MAX) / SIGMA_MAX


def run(sampler: str, nfe: int, gamma: float, seed: int) -> Tensor:
    def noise(k: int) -> Tensor:
        return randomness.normal(seed, "inject", k, 0, COUNT, MIXTURE.shape).double()

    return sample(
        MODEL, sampler=sampler, nfe=nfe, gamma=gamma, latents=LATENTS, noise=noise, clamp=False
    )


def consistency(nfe: int, seed: int) -> Tensor:
    """Consistency models' sampler (Song et al. 2023, algorithm 1), written out."""
    x = SIGMA_MAX * LATENTS
    levels = sigmas(nfe).tolist()
    end = torch.tensor(SIGMA_MIN, dtype=DOUBLE)
    with torch.no_grad():
        for k, level in enumerate(levels[:-1]):
            x = MODEL.G(x, torch.tensor(level, dtype=DOUBLE), end)
            if k < nfe - 1:
                noise = randomness.normal(seed, "inject", k, 0, COUNT, MIXTURE.shape).double()
                x = x + math.sqrt(levels[k + 1] ** 2 - SIGMA_MIN**2) * noise
    return x


def exact(nfe: int) -> Tensor:
    """Deterministic jumps down the levels, written out."""
    x = SIGMA_MAX * LATENTS
    with torch.no_grad():
        for t, s in zip(sigmas(nfe)[:-1], sigmas(nfe)[1:], strict=True):
            x = MODEL.G(x, t, s)
    return x


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_limits_are_the_exact_and_the_consistency_sampler(nfe: int) -> None:
    for seed in (0, 1):
        torch.testing.assert_close(run("gamma", nfe, 0.0, seed), exact(nfe), rtol=0, atol=1e-12)
        ends = run("gamma", nfe, 1.0, seed), consistency(nfe, seed)
        torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nfe", [2, 5])
def test_samples_approach_both_limits(nfe: int) -> None:
    """Near 0 and 1 the sampler moves to its limits in step with gamma, √(1 - gamma²)."""
    for limit, near in ((0.0, lambda e: e), (1.0, lambda e: math.sqrt(1 - e**2))):
        at = run("gamma", nfe, limit, 0)
        gaps = [float((run("gamma", nfe, near(e), 0) - at).abs().max()) for e in (1e-4, 1e-5)]
        assert 0 < gaps[1] < 0.02
        assert gaps[1] < 0.2 * gaps[0]


@given(nfe=st.integers(1, 12), gamma=st.floats(0, 1))
@quick
def test_plans_in_between(nfe: int, gamma: float) -> None:
    """s falls and noise grows with gamma, between the two limits; the level reached is right."""
    levels = sigmas(nfe)
    plan = gamma_jumps(levels, gamma)
    zero, one = gamma_jumps(levels, 0.0), gamma_jumps(levels, 1.0)
    rounding = 1 + 1e-12
    assert bool((plan.s <= zero.s * rounding).all() and (plan.s * rounding >= one.s).all())
    assert bool((plan.noise >= zero.noise).all() and (plan.noise <= one.noise * rounding).all())
    torch.testing.assert_close(plan.s**2 + plan.noise**2, levels[1:] ** 2, rtol=1e-9, atol=1e-12)
    printed = gamma_paper_jumps(levels, gamma)
    assert bool((printed.s >= SIGMA_MIN).all())
    assert bool(((plan.s - printed.s).abs() <= SIGMA_MIN + 1e-12).all())


@given(nfe=st.integers(1, 8), gamma=st.floats(0, 1))
@quick
def test_variance_of_one_gaussian(nfe: int, gamma: float) -> None:
    """For linear G the variance at the end is a sum of squares, and it is V + sigma_min²."""
    mixture = GaussianMixture(
        torch.ones(1), torch.zeros(1, 1, 1, 1), torch.tensor([0.3], dtype=DOUBLE)
    )
    model = exact_model(mixture)
    units = torch.eye(nfe + 1, dtype=DOUBLE)[:, :, None, None, None]
    start = (0.3 + SIGMA_MAX**2) ** 0.5 * units[0]
    with torch.no_grad():
        jumps = gamma_jumps(sigmas(nfe), gamma)
        end = sample_jumps(lambda x, t, s: model.G(x, t, s), start, jumps, units[1:])
    assert float(end.square().sum()) == pytest.approx(0.3 + SIGMA_MIN**2, rel=1e-8)
