r"""DDPM++ as IMM's released checkpoints have it (Zhou et al. 2025).

It is DDPM++ with other conditions: linear times in thousandths,
:math:`1000\,t = 1000\,\sigma / (\sigma + \sigma_d)`. The layers of s add to what those of t yield
before the last activation, so blocks take one embedding; the label is given to t's alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ctm_core.models.networks.ddpmpp import DDPMpp

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {
    "time_s": True,
    "keys": {"channel_mult_emb": 4, "resample_filter": (1, 1), "augment_dim": 0},
}
#: The standard deviation of the data by which linear time is defined.
SIGMA_DATA = 0.5


class IMMDDPMpp(DDPMpp):
    """Parameters are those of :class:`~ctm_core.models.networks.ddpmpp.DDPMpp`."""

    blocks_take_s = False
    s_outputs = ("map_layer1_s",)

    def _embedded(
        self, x: Tensor, c_noise: Tensor, c_noise_s: Tensor | None, added: Tensor | None
    ) -> tuple[Tensor, None]:
        emb = self.map_noise(thousandths(c_noise).to(x.dtype))
        emb = emb if added is None else emb + added
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if c_noise_s is not None:
            of_s = self.map_layer0_s(self.map_noise(thousandths(c_noise_s).to(x.dtype)))
            emb = emb + self.map_layer1_s(functional.silu(of_s))
        return functional.silu(emb), None


def thousandths(c_noise: Tensor) -> Tensor:
    """1000 t of ln(sigma) / 4."""
    return 1000 * torch.sigmoid(4 * c_noise - math.log(SIGMA_DATA))


NETWORK = IMMDDPMpp
