"""Time grids and the laws of indices and noise levels: closed forms, and stored draws.

Our functions map uniforms to draws and are piecewise constant, so their exact law is found by
feeding them the midpoint of every cell.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import stats

from ctm_core import schedule
from ctm_core.sampling import sigmas

from .reference import FLOAT64_STORED64, Case, compare, load

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def case() -> Case:
    return load("grids_and_draws")


def test_training_grids(case: Case) -> None:
    keys = [key for key in case.tensors if key.startswith("get_t/")]
    assert keys
    for key in keys:
        n = int(re.search(r"N(\d+)", key)[1])
        dtype = DOUBLE if key.endswith("f64") else torch.float32
        compare(key, schedule.karras_grid(n, dtype=dtype), case[key], dtype)


def test_sampling_grids(case: Case) -> None:
    keys = [key for key in case.tensors if key.startswith("sampling_sigmas/")]
    assert keys
    for key in keys:
        n = int(re.search(r"steps(\d+)", key)[1])
        ours = torch.cat([sigmas(n), torch.zeros(1, dtype=DOUBLE)])
        compare(key, ours, case[key], DOUBLE)


def _midpoints(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=DOUBLE) + 0.5) / n


def _law(n: int, max_steps: int) -> np.ndarray:
    """P(i, i + k, j) of our draws, exactly: shape (n, n, n)."""
    law = np.zeros((n, n, n))
    cells = max_steps * (max_steps + 1) // 2
    ks = [schedule.heun_steps_from_uniform(u, max_steps) for u in _midpoints(cells)]
    for k in range(1, max_steps + 1):
        p_k = ks.count(k) / cells
        starts = n - k
        for u_t in _midpoints(starts):
            i = schedule.indices_from_uniforms(u_t[None], torch.zeros(1), k, n)[0]
            room = n - k - int(i)
            u_s = _midpoints(room)
            i, j = schedule.indices_from_uniforms(u_t.expand(room), u_s, k, n)
            np.add.at(law, (i.numpy(), i.numpy() + k, j.numpy()), p_k / starts / room)
    return law


def test_index_laws(case: Case) -> None:
    settings = sorted({key.split("/")[1] for key in case.tensors if key.startswith("index_hist/")})
    assert settings
    exact = 0
    for setting in settings:
        n, max_steps = map(int, re.fullmatch(r"N(\d+)_H(\d+)", setting).groups())
        law = _law(n, max_steps)
        assert law.sum() == pytest.approx(1, abs=1e-12)
        prefix = f"index_hist/{setting}"
        if f"{prefix}/exact_prob_t_u_s" in case:
            golden = case[f"{prefix}/exact_prob_t_u_s"].numpy()
            assert np.abs(law - golden).max() <= FLOAT64_STORED64
            exact += 1
        for axis, name in enumerate("tus"):
            ours = law.sum(axis=tuple(a for a in range(3) if a != axis))
            golden = case[f"{prefix}/marginal_prob_{name}"].numpy()
            assert np.abs(ours - golden).max() <= FLOAT64_STORED64, f"{setting} {name}"
            # Plausibility only: k is shared by 100 draws, so the stored counts scatter by 1.6%.
            counts = case[f"{prefix}/marginal_counts_{name}"].double().numpy()
            assert np.abs(counts / counts.sum() - ours).sum() / 2 < 0.05
    assert exact


def test_dsm_sigma_law(case: Case) -> None:
    u = torch.linspace(0.001, 0.999, 999, dtype=DOUBLE)
    index = torch.arange(999)
    lognormal = schedule.dsm_sigma(u, 2 * index)
    curve = schedule.dsm_sigma(u, 2 * index + 1)
    closed = torch.from_numpy(stats.lognorm.ppf(u.numpy(), s=1.2, scale=np.exp(-1.2)))
    compare("log-normal half", lognormal, closed, DOUBLE)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    back = (high - curve ** (1 / 7)) / (high - low)  # the fraction that gives this level
    compare("grid half", back, 0.7 * u, DOUBLE)

    # Plausibility: quantiles of 1e6 stored draws of each half, without the two extremes.
    q = case["dsm_sigma/q"][1:-1]
    stored = case["dsm_sigma/lognormal_half_quantiles"][1:-1].log()
    ours = schedule.dsm_sigma(q, torch.zeros(len(q), dtype=torch.int64)).log()
    assert (ours - stored).abs().max() < 0.05
    stored = case["dsm_sigma/grid_half_quantiles"][1:-1].log()
    # Large noise first: the law falls in its uniform, so quantile q is at 1 - q.
    ours = schedule.dsm_sigma(1 - q, torch.ones(len(q), dtype=torch.int64)).log()
    assert (ours - stored).abs().max() < 0.05


def test_odd_batch_split(case: Case) -> None:
    """The released code gives floor(B/2) samples the log-normal law; so does one group of B."""
    golden = int(case["dsm_sigma/odd_batch_n_lognormal"])
    size = 2 * golden + 1
    u = torch.full((size,), 0.5, dtype=DOUBLE)
    sigma = schedule.dsm_sigma(u, torch.arange(size), group=size)
    assert int((sigma < 0.318).sum()) == golden
