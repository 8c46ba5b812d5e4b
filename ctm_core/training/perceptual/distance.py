"""What a distance is, and the two that need no network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Distance", "PseudoHuber", "SquaredError", "at_least_single"]

#: c of the pseudo-Huber distance is this factor times √D.
PSEUDO_HUBER_FACTOR = 0.00054


class Distance(nn.Module):
    """d(a, b), without trainable parameters.

    Attributes
    ----------
    name : str
        Its name in the config.
    weights_sha256 : str or None
        Hash of the weight file it reads; None if it reads none.
    """

    name: str
    weights_sha256: str | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of samples.

        Parameters
        ----------
        a, b : Tensor, shape (B, C, H, W), floating
            Images in [-1, 1]; values beyond are taken as they are, never clamped.

        Returns
        -------
        Tensor, shape (B,), float32 or float64
            Differentiable with respect to both arguments.

        Raises
        ------
        ValueError
            If the shapes differ: broadcasting would hide the mistake.
        """
        if a.shape != b.shape:
            raise ValueError(f"distance between shapes {tuple(a.shape)} and {tuple(b.shape)}")
        value: Tensor = super().__call__(a, b)
        return value


class SquaredError(Distance):
    """Mean of squared differences over a sample's elements."""

    name = "l2"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        return (at_least_single(a) - at_least_single(b)).square().flatten(1).mean(1)


class PseudoHuber(Distance):
    """√(Σ d² + c²) - c: quadratic for ‖d‖ ≪ c, the plain norm ‖d‖ beyond."""

    name = "pseudo_huber"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        difference = (at_least_single(a) - at_least_single(b)).flatten(1)
        squared = difference.square().sum(1)
        c = PSEUDO_HUBER_FACTOR * math.sqrt(difference.shape[1])
        # √(S + c²) - c = S / (√(S + c²) + c), free of the cancellation that eats small S.
        return squared / ((squared + c * c).sqrt() + c)


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
