"""The mixture of the experiment ``gaussian``, draws from it, and goodness of fit."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.gaussian import GaussianMixture, three_modes

DOUBLE = torch.float64
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
MIXTURE = three_modes()
#: A test of a law fails below this.
ALPHA = 1e-4


def draws(count: int, t: float, seed: int = 0, mixture: GaussianMixture = MIXTURE) -> Tensor:
    """Samples of p_t, float64 (count, C, H, W)."""
    uniform = randomness.uniform(seed, "component", 0, 0, count)
    noise = randomness.normal(seed, "data", 0, 0, count, mixture.shape)
    return mixture.sample(uniform, noise, t)


def fit(x: Tensor, t: float, mixture: GaussianMixture = MIXTURE) -> dict[str, float]:
    """p-values for "x is drawn from p_t": KS of each Rosenblatt uniform, χ² of their joint law.

    The χ² test counts the first two uniforms in 8 × 8 equal cells.
    """
    uniforms = mixture.uniforms(x, t).numpy()
    found = {
        f"ks{d}": float(stats.kstest(column, "uniform").pvalue)
        for d, column in enumerate(uniforms.T)
    }
    cells = np.clip((uniforms[:, :2] * 8).astype(int), 0, 7)
    counts = np.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)
    return found | {"chi2": float(stats.chisquare(counts).pvalue)}
