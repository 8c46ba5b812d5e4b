"""ctm_core.diffusion.solvers against closed-form flows."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import (
    MULTISTEP,
    Denoiser,
    euler_step,
    heun_solve,
    heun_step,
    multistep,
)

VARIANCE = 0.25
X = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """Denoiser of data N(0, v)."""
    t = t if t.ndim == 0 else t.view(-1, 1, 1, 1)
    return VARIANCE * x / (VARIANCE + t**2)


def flow(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Its exact ODE solution from t to s."""
    factor = ((VARIANCE + s**2) / (VARIANCE + t**2)).sqrt()
    return (factor if factor.ndim == 0 else factor.view(-1, 1, 1, 1)) * x


@given(t=st.floats(0.01, 80), shrink=st.floats(0.01, 0.99), mean=st.floats(-1, 1))
def test_a_single_image_is_reached_exactly(t: float, shrink: float, mean: float) -> None:
    """If all data are one image c, trajectories are straight: x(s) = c + (x - c) s / t."""
    time, target = torch.tensor([t, t * shrink], dtype=torch.float64)
    exact = mean + (X - mean) * shrink
    for step in (euler_step, heun_step):
        ours = step(lambda x, _: torch.full_like(x, mean), X, time, target)
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_euler_to_zero_is_the_denoiser() -> None:
    t = torch.tensor(0.7, dtype=torch.float64)
    ours = euler_step(gaussian, X, t, torch.zeros_like(t))
    torch.testing.assert_close(ours, gaussian(X, t))


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_order_of_convergence(step, order: int) -> None:  # type: ignore[no-untyped-def]
    start, end = torch.tensor([2.0, 0.5], dtype=torch.float64)
    errors = []
    for n in (32, 64):
        x = X
        grid = torch.linspace(float(start), float(end), n + 1, dtype=torch.float64)
        for t, t_next in pairwise(grid):
            x = step(gaussian, x, t, t_next)
        errors.append(float((x - flow(X, start, end)).norm()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_solve_with_indices_of_its_own_for_each_sample() -> None:
    grid = karras_grid(10)
    i, k = torch.tensor([0, 3, 5, 2]), 4
    calls: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return gaussian(x, t)

    together = heun_solve(denoiser, X, grid, i, k)
    assert len(calls) == 2 * k
    assert all(t.shape == (4,) for t in calls)
    for row in range(4):
        x = X[row : row + 1]
        for n in range(int(i[row]), int(i[row]) + k):
            x = heun_step(gaussian, x, grid[n], grid[n + 1])
        torch.testing.assert_close(together[row : row + 1], x, rtol=1e-12, atol=1e-12)


def test_last_step_onto_sigma_min_is_a_full_heun_step() -> None:
    grid = karras_grid(10)
    ours = heun_solve(gaussian, X, grid, torch.full((4,), 8), 1)
    assert torch.equal(ours, heun_step(gaussian, X, grid[8], grid[9]))
    assert not torch.allclose(ours, euler_step(gaussian, X, grid[8], grid[9]), atol=1e-7, rtol=0)


def test_solve_follows_the_flow() -> None:
    grid = karras_grid(80)
    i, k = torch.tensor([0, 10, 20, 30]), 40
    exact = flow(X, grid[i], grid[i + k])
    torch.testing.assert_close(heun_solve(gaussian, X, grid, i, k), exact, rtol=2e-3, atol=1e-4)


def test_solve_of_no_steps_and_dtype() -> None:
    grid = karras_grid(5)
    i = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(heun_solve(gaussian, X, grid, i, 0), X)
    assert heun_solve(gaussian, X.float(), grid, i, 2).dtype == torch.float32


def test_gradient_flows_through_a_step() -> None:
    x = X.clone().requires_grad_()
    t, s = torch.tensor([1.0, 0.5], dtype=torch.float64)
    heun_step(gaussian, x, t, s).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())


# -- multistep ------------------------------------------------------------------------------------


def solved(solver: str, denoiser: Denoiser, x: Tensor, times: list[float]) -> Tensor:
    before = None
    for t, t_next in pairwise(torch.tensor(times, dtype=torch.float64)):
        x, kept = multistep(solver, denoiser, x, t, t_next, before)
        before = kept, t
    return x


@pytest.mark.parametrize("solver", MULTISTEP)
def test_order_of_convergence_with_unequal_steps(solver: str) -> None:
    """Steps of 1 : 2 : 1 : 2 … in ln t: a wrong ratio of steps would cost the second order."""
    errors = []
    for n in (48, 96):
        shares = [0.0, *accumulate(1 + step % 2 for step in range(n))]
        times = [2.0 * 0.25 ** (share / shares[-1]) for share in shares]
        made = solved(solver, gaussian, X, times)
        errors.append(float((made - flow(X, *torch.tensor([2.0, 0.5]).double())).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_ab2_is_exact_where_slopes_are_linear_in_t() -> None:
    """x = a t + b t² / 2 has the slope a + b t, whatever the steps."""
    times = [4.0, 3.5, 1.0, 0.9, 0.1]
    made = solved("ab2", lambda x, t: x - t * (3 - 2 * t), X, times)
    torch.testing.assert_close(made, X + 3 * (0.1 - 4) - (0.01 - 16), rtol=1e-12, atol=1e-12)


def test_dpmpp_2m_by_the_paper_s_formula() -> None:
    """x' = (σ'/σ) x - (e^-h - 1) ((1 + 1/2r) D - D_before / 2r), with r = h_before / h."""
    t_before, t, t_next = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    before = gaussian(2 * X, t_before)
    h, h_before = (t / t_next).log(), (t_before / t).log()
    r = h_before / h
    mixed = (1 + 1 / (2 * r)) * gaussian(X, t) - before / (2 * r)
    expected = t_next / t * X - torch.expm1(-h) * mixed
    made, kept = multistep("dpmpp_2m", gaussian, X, t, t_next, (before, t_before))
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(kept, gaussian(X, t))


@pytest.mark.parametrize("solver", MULTISTEP)
def test_a_multistep_solver_starts_with_heun_and_evaluates_once_after(solver: str) -> None:
    calls: list[Tensor] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return gaussian(x, t)

    grid = karras_grid(6)
    assert torch.equal(
        solved(solver, counted, X, grid[:2].tolist()), heun_step(gaussian, X, grid[0], grid[1])
    )
    assert len(calls) == 2
    solved(solver, counted, X, grid.tolist())
    assert len(calls) == 2 + 5 + 1
