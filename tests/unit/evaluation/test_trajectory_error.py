"""The fine solve against an exact flow, and errors of steps against formulas."""

import numpy as np
import pytest
import torch

from ctm_core.diffusion.gaussian import GaussianMixture, three_modes
from ctm_core.evaluation.metrics.subsampling import Estimate
from ctm_core.evaluation.metrics.trajectory_error import (
    path,
    rms,
    squared_errors,
    trajectory_error,
)

GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
MIXTURE = three_modes()


def noises(n=32):
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.normal(size=(n, 1, 1, 2))) * 80.0


def solved(levels, points, mixture=MIXTURE):
    return path(mixture.denoise, noises(), levels, points=points, **GRID)


def test_the_fine_solve_is_of_second_order_at_every_level():
    levels = [30.0, 2.5, 0.3, 0.002]
    errors = []
    for points in (33, 65):
        states = solved(levels, points)
        assert list(states) == levels
        exact = [MIXTURE.flow(noises(), 80.0, level, 1e-10) for level in levels]
        errors.append(
            [
                float((states[s] - x).square().mean().sqrt())
                for s, x in zip(levels, exact, strict=True)
            ]
        )
    ratios = np.divide(*errors)
    assert (ratios > 3).all() and max(errors[1]) < 2e-3


def test_a_level_does_not_depend_on_the_others():
    alone = solved([0.7], 20)[0.7]
    among = solved([0.71, 0.7, 0.69, 0.0, 80.0], 20)
    assert torch.equal(alone, among[0.7])
    assert torch.equal(among[80.0], noises())


def test_zero_is_the_denoised_end():
    states = solved([0.0, 0.002], 20)
    end = states[0.002]
    expected = MIXTURE.denoise(end, torch.tensor(0.002, dtype=torch.float64))
    torch.testing.assert_close(states[0.0], expected, rtol=0, atol=1e-12)


def test_levels_outside_are_refused():
    with pytest.raises(ValueError, match="not between"):
        solved([100.0], 5)
    with pytest.raises(ValueError, match="not between"):
        solved([0.001], 5)


def test_errors_of_a_step_by_the_formula():
    # One Gaussian N(m, v): the exact jump is known, and m + (x - m) s/t is wrong by a factor.
    mean = torch.full((1, 1, 1, 2), 0.3, dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(1), mean, torch.tensor([0.25]))
    pairs = [(80.0, 1.0), (1.0, 0.1)]
    states = {level: mixture.flow(noises(), 80.0, level) for level in (80.0, 1.0, 0.1)}

    def exact(x, t, s):
        return mixture.flow(x, t, s)

    def wrong(x, t, s):
        return 0.3 + (x - 0.3) * s / t

    assert squared_errors(exact, states, pairs).max() < 1e-20
    squares = squared_errors(wrong, states, pairs)
    expected = []
    for t, s in pairs:
        factor = s / t - ((0.25 + s**2) / (0.25 + t**2)) ** 0.5
        expected.append(((states[t] - 0.3) * factor).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(squares, torch.stack(expected), rtol=1e-9, atol=0)
    each = np.sqrt(squares.numpy().mean(axis=1))
    np.testing.assert_allclose(rms(squares), each)
    assert trajectory_error(squares).value == pytest.approx(each.mean())


def test_the_error_of_the_noises_is_the_spread_over_seeds():
    generator = np.random.default_rng(0)
    values, variances = [], []
    for _ in range(500):
        q = torch.from_numpy(generator.gamma(2.0, size=(3, 60)) * [[1.0], [0.1], [4.0]])
        q[1] += q[0]  # errors of one noise's steps depend on each other
        found = trajectory_error(q)
        values.append(found.value)
        variances.append(found.standard_error**2)
        assert found.freedom == 59
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.2)
    assert trajectory_error(torch.full((2, 1), 4.0)) == Estimate(2.0)
    assert trajectory_error(torch.zeros(2, 5).double()) == Estimate(0.0, 0.0, 4)
