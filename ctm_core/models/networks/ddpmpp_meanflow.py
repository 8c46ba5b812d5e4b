r"""DDPM++ as MeanFlow's released checkpoints have it (Geng et al. 2025), as a jump of CTM.

Its layers are DDPM++'s, with twice as wide sinusoids of t and of t - r side by side for the first
of them, and the filter [1, 3, 3, 1]. They yield the mean velocity u of
:math:`z = (1-t)\,x` in linear time :math:`t = \sigma/(1+\sigma)`. With
:math:`n^2 = t^2 + \sigma_d^2 (1-t)^2` the network is called with :math:`z/n`, and

.. math:: F = \bigl[(t - \sigma_d^2 (1-t))\, z/n - n\,u(z, t, r)\bigr] / \sigma_d

is the raw output whose jump G is :math:`(1-r)\,G = z - (t-r)\,u`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.embeddings import PositionalEmbedding

#: Read by the configuration without importing this file.
TRAITS: dict[str, Any] = {
    "time_s": True,
    "keys": {"channel_mult_emb": 4, "resample_filter": (1, 3, 3, 1), "augment_dim": 0},
}
#: The standard deviation of the data in EDM's preconditioning, which the network undoes.
SIGMA_DATA = 0.5


class MeanFlowDDPMpp(DDPMpp):
    """Parameters are those of :class:`~ctm_core.models.networks.ddpmpp.DDPMpp`."""

    layers_of_s = blocks_take_s = False
    default_filter = TRAITS["keys"]["resample_filter"]

    def _embedding(self, model_channels: int) -> PositionalEmbedding:
        return PositionalEmbedding(2 * model_channels)

    def _noise_channels(self) -> int:
        return 2 * self.map_noise.channels

    @torch.no_grad()
    def zero_target_time(self) -> None:
        """Take from the first layer what it makes of t - r, but for its value where r = t."""
        layer, still = self.map_layer0, self.map_layer0.weight.new_zeros(1)
        of_length = layer.weight[:, self.map_noise.channels :]
        layer.bias.add_(of_length @ self.map_noise(still)[0])
        of_length.zero_()

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_noise_s: Tensor | None = None,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F; see :class:`~ctm_core.models.networks.raw.RawNetwork`."""
        t = linear_time(c_noise).view(-1, 1, 1, 1)
        n = (t**2 + (SIGMA_DATA * (1 - t)) ** 2).sqrt()
        u = super().forward(x * n.to(x), c_noise, c_noise_s, labels, augment_labels)
        skip = (t - SIGMA_DATA**2 * (1 - t)) / SIGMA_DATA
        return skip.to(x) * x - (n / SIGMA_DATA).to(x) * u

    def _embedded(
        self, x: Tensor, c_noise: Tensor, c_noise_s: Tensor | None, added: Tensor | None
    ) -> tuple[Tensor, None]:
        t = linear_time(c_noise)
        length = torch.zeros_like(t) if c_noise_s is None else t - linear_time(c_noise_s)
        emb = torch.cat([self.map_noise(time.to(x.dtype)) for time in (t, length)], dim=1)
        emb = emb if added is None else emb + added
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        return functional.silu(emb), None


def linear_time(c_noise: Tensor) -> Tensor:
    """t of ln(sigma) / 4."""
    return torch.sigmoid(4 * c_noise)


NETWORK = MeanFlowDDPMpp
