"""The mean squared difference, d(a, b) = (1/D) Σ (a - b)² for one sample of D elements."""

from __future__ import annotations

from torch import Tensor

from ctm_core.training.distance import Distance, at_least_single


class SquaredError(Distance):
    """Mean of squared differences over a sample's elements."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        return (at_least_single(a) - at_least_single(b)).square().flatten(1).mean(1)


DISTANCE = SquaredError
