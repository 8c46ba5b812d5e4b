r"""Gamma-sampling as in the released code, consistent at sigma_min.

From :math:`\sigma_i` a jump lands on
:math:`s_i = \sqrt{1-\gamma^2}(\sigma_{i+1}-\sigma_\min)+\sigma_\min`; noise of variance
:math:`\sigma_{i+1}^2 - s_i^2` follows, so that the level after each step is exactly
:math:`\sigma_{i+1}` and nothing lands below sigma_min. :math:`\gamma = 0` is exact, deterministic
sampling and :math:`\gamma = 1` consistency sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctm_core.diffusion.sampling import Jumps, variance_gap

TRAITS = {"jumps": True, "gamma": True, "label": ""}


def plan(levels: Tensor, gamma: float) -> Jumps:
    """The n jumps over ``levels`` (n + 1,), which end at sigma_min."""
    levels, after = levels.double(), levels.double()[1:]
    floor = levels[-1]
    if gamma == 0:  # exact: no rounding may leave a trace of noise
        return Jumps(levels[:-1], after, torch.zeros_like(after))
    target = math.sqrt(1 - gamma**2) * (after - floor) + floor
    return Jumps(levels[:-1], target, variance_gap(after, target))
