r"""Exponential moving averages of a network's weights.

After each step :math:`\bar\theta \leftarrow \mu \bar\theta + (1 - \mu) \theta`, in one fused
call over all parameters; buffers are copied. With a ramp-up (EDM, appendix F.2) the half-life is
at most a share of the steps done, so early averages do not remember the initialisation.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(network: ModuleT) -> ModuleT:
    """A copy whose parameters take no gradient; gradient still passes through to its input."""
    return copy.deepcopy(network).requires_grad_(False)


def decay(rate: float, step: int, rampup: float | None) -> float:
    """mu at ``step`` (0-based): ``rate``, or less while the ramp-up limits the half-life."""
    if rampup is None:
        return rate
    half_life = rampup * (step + 1)
    return min(rate, math.exp(math.log(0.5) / half_life))


@torch.no_grad()
def update(
    average: nn.Module,
    network: nn.Module,
    rate: float,
    step: int,
    rampup: float | None = None,
    *,
    foreach: bool = True,
) -> None:
    """Move ``average`` towards ``network`` in place, at the 0-based ``step``.

    ``rate`` is mu, the decay per step; ``foreach``: one call for all tensors, or one per tensor.
    """
    mu = decay(rate, step, rampup)
    averages: list[torch.Tensor] = list(average.parameters())
    values: list[torch.Tensor] = list(network.parameters())
    if foreach:
        torch._foreach_lerp_(averages, values, 1.0 - mu)
    else:
        for mean, value in zip(averages, values, strict=True):
            mean.lerp_(value, 1.0 - mu)
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)
