r"""Gamma-sampling as printed (CTM, algorithm 2), floored at sigma_min.

From :math:`\sigma_i` a jump lands on :math:`s_i = \max(\sqrt{1-\gamma^2}\,\sigma_{i+1},
\sigma_\min)`, and noise :math:`\gamma\sigma_{i+1}` follows; the last jump lands on sigma_min and
adds none.
"""

from __future__ import annotations

import math

from torch import Tensor

from ctm_core.diffusion.sampling import Jumps

TRAITS = {"jumps": True, "gamma": True, "label": "as printed"}


def plan(levels: Tensor, gamma: float) -> Jumps:
    """The n jumps over ``levels`` (n + 1,), which end at sigma_min."""
    levels, after = levels.double(), levels.double()[1:]
    target = (math.sqrt(1 - gamma**2) * after).clamp(min=float(levels[-1]))
    noise = gamma * after
    noise[-1] = 0
    return Jumps(levels[:-1], target, noise)
