"""The pseudo-Huber distance, d(a, b) = √(Σ (a - b)² + c²) - c with c = 0.00054 √D.

(Song & Dhariwal 2023, section 3.3.)
"""

from __future__ import annotations

import math

from torch import Tensor

from ctm_core.training.distance import Distance, at_least_single

#: c is this factor times √D.
FACTOR = 0.00054


class PseudoHuber(Distance):
    """√(Σ d² + c²) - c: quadratic for ‖d‖ ≪ c, the plain norm ‖d‖ beyond."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        difference = (at_least_single(a) - at_least_single(b)).flatten(1)
        squared = difference.square().sum(1)
        c = FACTOR * math.sqrt(difference.shape[1])
        # √(S + c²) - c = S / (√(S + c²) + c), free of the cancellation that eats small S.
        return squared / ((squared + c * c).sqrt() + c)


DISTANCE = PseudoHuber
