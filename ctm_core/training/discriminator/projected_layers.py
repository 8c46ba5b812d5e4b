r"""Layers whose starting values come from the run's seed, and spectral normalisation.

Weights and biases start uniform on :math:`\pm 1/\sqrt{n}`, n the number of weights of one output
(PyTorch's default law), drawn by name from counter-based streams: equal on every process, whatever
was drawn before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.diffusion import randomness
from ctm_core.training.acceleration import full_precision


class Conv2d(nn.Conv2d):
    """A convolution that waits for :func:`initialise`."""

    def reset_parameters(self) -> None:
        """Draw nothing from torch's global random state."""


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that waits for :func:`initialise`."""

    def reset_parameters(self) -> None:
        """Draw nothing from torch's global random state."""


class SpectralConv2d(Conv2d):
    r"""Convolution whose weight is divided by its largest singular value (Miyato et al. 2018).

    With W the weight as a matrix (out, rest), one power iteration a forward pass in train mode,
    none in eval mode:

    .. math::
        v \leftarrow W^\top u / \|W^\top u\|, \quad u \leftarrow W v / \|W v\|, \qquad
        \sigma = u^\top W v

    u and v count as constants, so the gradient reaches W through the quotient and through σ. The
    division is made in the weight's own precision, outside of autocast.

    The parameter ``weight_orig`` (W) and the buffers ``weight_u`` (out,) and ``weight_v`` (rest,)
    have the names that torch's ``spectral_norm`` gives them and hold the same numbers after the
    same calls; but that function draws u and v from the global random state and would let autocast
    round σ to bf16.
    """

    weight_u: Tensor
    weight_v: Tensor
    #: The normalised weight of several forward passes; None: each computes its own.
    shared: Tensor | None = None

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.weight_orig = self.weight
        del self._parameters["weight"]
        rows = self.weight_orig.flatten(1)
        self.register_buffer("weight_u", rows.new_empty(rows.shape[0]))
        self.register_buffer("weight_v", rows.new_empty(rows.shape[1]))

    @torch.no_grad()
    def power_iteration(self) -> None:
        """Improve u and v once."""
        with full_precision(self.weight_orig.device.type):
            rows = self.weight_orig.flatten(1)
            v = functional.normalize(rows.mT @ self.weight_u, dim=0, eps=1e-12)
            self.weight_v.copy_(v)
            u = functional.normalize(rows @ v, dim=0, eps=1e-12)
            self.weight_u.copy_(u)

    def normalised_weight(self) -> Tensor:
        """W/σ, shape (out, in, k, k), after a power iteration in train mode."""
        if self.training:
            self.power_iteration()
        with full_precision(self.weight_orig.device.type):
            rows = self.weight_orig.flatten(1)
            # Copies, because the next forward pass changes the buffers before this one's backward.
            sigma: Tensor = self.weight_u.clone() @ (rows @ self.weight_v.clone())
            # One pass over the weights forward and two backward; the quotient's takes four.
            weight: Tensor = self.weight_orig * sigma.reciprocal()
            return weight

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with W/σ."""
        weight = self.normalised_weight() if self.shared is None else self.shared
        out: Tensor = self._conv_forward(input, weight, self.bias)
        return out


@torch.no_grad()
def initialise(module: nn.Module, seed: int, stream: str) -> None:
    """Draw the starting values of every layer of this file inside ``module``.

    ``stream`` begins the name of each tensor's stream; the tensor's own name completes it.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, Conv2d | ConvTranspose2d):
            continue
        weight = layer.weight_orig if isinstance(layer, SpectralConv2d) else layer.weight
        if weight.is_meta:
            continue
        bound = 1 / math.sqrt(weight[0].numel())
        for leaf, value in (("weight", weight), ("bias", layer.bias)):
            if value is not None:
                numbers = (seed, f"{stream}/{name}.{leaf}", 0, 0, 1, tuple(value.shape))
                value.copy_((2 * randomness.uniform(*numbers)[0] - 1) * bound)
        if isinstance(layer, SpectralConv2d):
            for leaf, vector in (("weight_u", layer.weight_u), ("weight_v", layer.weight_v)):
                numbers = (seed, f"{stream}/{name}.{leaf}", 0, 0, 1, tuple(vector.shape))
                drawn = randomness.normal(*numbers)[0]
                vector.copy_(functional.normalize(drawn, dim=0, eps=1e-12))
