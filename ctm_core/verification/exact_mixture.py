"""The one-pixel Gaussian mixture of the analytic file: its law, its flow, its posterior."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctm_core.diffusion.gaussian import GaussianMixture
from ctm_core.verification.golden import DOUBLE, Golden

#: Nodes of the Gauss-Hermite rule for each component, as the file's values were made.
NODES = 40


def mixture(golden: Golden) -> GaussianMixture:
    """The file's mixture."""
    weights, means, variances = (
        golden[f"mixture/{key}"] for key in ("weights", "means", "variances")
    )
    return GaussianMixture(weights, means.view(-1, 1, 1, 1), variances)


def posterior(law: GaussianMixture, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 given x_t = x: nodes (B, N, C, H, W) of one pixel, and weights (B, N) that sum to 1."""
    at, at_weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(NODES))
    share = law.log_joint(x, t).softmax(1)  # (B, K)
    shrink = law.variances / law.variances_at(t)  # (B, K, 1, 1, 1)
    means = law.means + shrink * (x[:, None] - law.means)
    spread = (shrink * t.view(-1, 1, 1, 1, 1) ** 2).sqrt()
    nodes = means[:, :, None] + spread[:, :, None] * at.view(1, 1, -1, 1, 1, 1)
    weights = share[:, :, None] * (at_weight / at_weight.sum()).to(DOUBLE)
    return nodes.flatten(1, 2), weights.flatten(1)


def rows(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (B, N, …) as one batch, with the time (B,) of each."""
    return x.flatten(0, 1), t.repeat_interleave(x.shape[1])
