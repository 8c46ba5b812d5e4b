"""ctm_core.diffusion.schedule: grids and laws as functions of uniforms."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ctm_core.diffusion import randomness, schedule
from ctm_core.runtime.errors import UserError

SIGNIFICANCE = 1e-4


def uniforms(stream: str, count: int = 20_000) -> torch.Tensor:
    return randomness.uniform(0, stream, 0, 0, count)


@given(
    n=st.integers(2, 80),
    sigma_min=st.floats(1e-3, 0.1),
    sigma_max=st.floats(1, 200),
    rho=st.floats(1, 10),
)
def test_grid(n: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    grid = schedule.karras_grid(n, sigma_min, sigma_max, rho)
    assert grid.dtype == torch.float64 and grid.shape == (n,)
    assert float(grid[0]) == sigma_max and float(grid[-1]) == sigma_min
    assert bool((grid.diff() < 0).all())
    roots = grid ** (1 / rho)  # evenly spaced
    assert float(roots.diff().std(correction=0)) < 1e-9 * sigma_max


def test_grid_of_the_paper() -> None:
    grid = schedule.karras_grid(18)
    values = [80, 57.586, 40.786, 28.375, 19.352, 12.910, 8.401, 5.315, 3.257]
    torch.testing.assert_close(grid[:9], torch.tensor(values).double(), rtol=1e-4, atol=0)
    assert schedule.karras_grid(1).tolist() == [80.0]
    assert schedule.karras_grid(3, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(UserError, match="at least one point"):
        schedule.karras_grid(0)


@pytest.mark.parametrize("max_steps", [1, 2, 9, 17, 39])
def test_steps_are_weighted_by_their_number(max_steps: int) -> None:
    cells = max_steps * (max_steps + 1) // 2
    counts = Counter(
        schedule.heun_steps_from_uniform((cell + 0.5) / cells, max_steps) for cell in range(cells)
    )
    assert counts == {k: k for k in range(1, max_steps + 1)}
    assert schedule.heun_steps_from_uniform(0.0, max_steps) == 1
    assert schedule.heun_steps_from_uniform(torch.tensor(1.0), max_steps) == max_steps


@given(
    n=st.integers(2, 50),
    data=st.data(),
    u_t=st.floats(0, 1),
    u_s=st.floats(0, 1),
)
def test_indices_are_ordered(n: int, data: st.DataObject, u_t: float, u_s: float) -> None:
    k = data.draw(st.integers(1, n - 1))
    uniform = torch.tensor([u_t, u_s], dtype=torch.float64)
    i, j = schedule.indices_from_uniforms(uniform[:1], uniform[1:], k, n)
    assert i.dtype == j.dtype == torch.int64
    assert 0 <= int(i) <= n - 1 - k
    assert int(i) + k <= int(j) <= n - 1


def test_indices_refuse_too_many_steps() -> None:
    u = torch.zeros(2)
    for k in (0, 18):
        with pytest.raises(UserError, match="1 to 17"):
            schedule.indices_from_uniforms(u, u, k, 18)


def test_drawn_indices_follow_the_law() -> None:
    """χ² of our own draws with one k a draw: P(i, j | k) is uniform over i, then over j."""
    n, k = 10, 4
    i, j = schedule.indices_from_uniforms(uniforms("t"), uniforms("s"), k, n)
    cells = {(a, b): 1 / (n - k) / (n - k - a) for a in range(n - k) for b in range(a + k, n)}
    seen = Counter(zip(i.tolist(), j.tolist(), strict=True))
    assert set(seen) <= set(cells)
    observed = [seen[cell] for cell in cells]
    expected = [p * len(i) for p in cells.values()]
    assert stats.chisquare(observed, expected).pvalue > SIGNIFICANCE
    ks = Counter(schedule.heun_steps_from_uniform(u, 5) for u in uniforms("k", 3000))
    expected = [k / 15 * 3000 for k in range(1, 6)]
    assert stats.chisquare([ks[k] for k in range(1, 6)], expected).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("final_only", [False, True])
@pytest.mark.parametrize(("n", "max_steps"), [(6, 1), (6, 5), (10, 4), (40, 39)])
def test_all_draws_follow_the_closed_form(n: int, max_steps: int, final_only: bool) -> None:
    """P(k) = 2k / (M (M + 1)), then i uniform on {0, …, N-1-k}, then j on {i+k, …, N-1}."""
    cells = max_steps * (max_steps + 1) // 2
    law = {
        (k, i, j): k / cells / (n - k) / (1 if final_only else n - k - i)
        for k in range(1, max_steps + 1)
        for i in range(n - k)
        for j in ((n - 1,) if final_only else range(i + k, n))
    }
    draws = schedule.all_draws(n, max_steps, final_only)
    rows = list(zip(draws.k.tolist(), draws.i.tolist(), draws.j.tolist(), strict=True))
    assert len(rows) == len(law) and set(rows) == set(law)
    probabilities = dict(zip(rows, draws.probability.tolist(), strict=True))
    assert probabilities == pytest.approx(law)


@pytest.mark.parametrize("final_only", [False, True])
def test_uniforms_on_a_fine_grid_give_each_draw_as_often_as_it_is_likely(final_only: bool) -> None:
    n, max_steps = 6, 5
    draws = schedule.all_draws(n, max_steps, final_only)
    fine = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    steps = Counter(schedule.heun_steps_from_uniform(u, max_steps) for u in fine)
    side = (torch.arange(240, dtype=torch.float64) + 0.5) / 240
    u_t, u_s = (u.flatten() for u in torch.meshgrid(side, side, indexing="ij"))
    for k in range(1, max_steps + 1):
        own = draws.k == k
        p_k = float(draws.probability[own].sum())
        assert steps[k] / len(fine) == pytest.approx(p_k, abs=2e-3)
        at, end = schedule.indices_from_uniforms(u_t, u_s, k, n, final_only)
        for i, j, p in zip(draws.i[own], draws.j[own], draws.probability[own], strict=True):
            share = float(((at == i) & (end == j)).double().mean())
            assert share == pytest.approx(float(p) / p_k, abs=1e-12)


def test_mean_steps_of_the_paper() -> None:
    """Spec: N = 18, M = 17: mean k 11.67, P(t = 80) 0.294, P(s = u) 0.496."""
    weights = [k / (17 * 9) for k in range(1, 18)]
    assert sum(w * k for k, w in enumerate(weights, 1)) == pytest.approx(11.67, abs=0.01)
    first = same = 0.0
    for k, weight in enumerate(weights, 1):
        starts = 18 - k
        u_t = (torch.arange(starts).double() + 0.5) / starts
        i, j = schedule.indices_from_uniforms(u_t, torch.zeros_like(u_t), k, 18)
        first += weight * float((i == 0).double().mean())
        assert torch.equal(j, i + k)
        same += weight * float((1 / (18 - k - i)).mean())
    assert first == pytest.approx(0.294, abs=1e-3)
    assert same == pytest.approx(0.496, abs=1e-3)


def test_lognormal_draws() -> None:
    sigma = schedule.lognormal_sigma(uniforms("sigma"), p_mean=-0.4, p_std=0.9)
    test = stats.kstest(((sigma.log() + 0.4) / 0.9).numpy(), "norm")
    assert test.pvalue > SIGNIFICANCE
    assert float(schedule.lognormal_sigma(torch.tensor(0.5).double())) == pytest.approx(
        0.30119421191220214, rel=1e-9
    )  # exp(-1.2)


def test_dsm_draws() -> None:
    u, index = uniforms("dsm"), torch.arange(20_000)
    sigma = schedule.dsm_sigma(u, index)
    lognormal, curve = sigma[::2], sigma[1::2]
    assert stats.kstest(((lognormal.log() + 1.2) / 1.2).numpy(), "norm").pvalue > SIGNIFICANCE
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    xi = (high - curve ** (1 / 7)) / (high - low)
    assert stats.kstest((xi / 0.7).numpy(), "uniform").pvalue > SIGNIFICANCE
    assert float(curve.min()) > 0.318
    assert float(curve.max()) <= 80


@pytest.mark.parametrize("group", [2, 3, 8])
def test_dsm_split_depends_on_the_sample_alone(group: int) -> None:
    u, index = uniforms("split", 24), torch.arange(24)
    whole = schedule.dsm_sigma(u, index, group)
    parts = [schedule.dsm_sigma(u[a : a + 5], index[a : a + 5], group) for a in range(0, 24, 5)]
    assert torch.equal(torch.cat(parts), whole)
    is_lognormal = whole == schedule.lognormal_sigma(u)
    assert is_lognormal.tolist() == [n % group < group // 2 for n in range(24)]


def test_dsm_upper_end() -> None:
    one = torch.tensor([1.0], dtype=torch.float64)
    odd = torch.tensor([1])
    assert float(schedule.dsm_sigma(one, odd)) == pytest.approx(0.3183, abs=1e-3)
    assert float(schedule.dsm_sigma(one, odd, uniform_max=1.0)) == pytest.approx(0.002)
