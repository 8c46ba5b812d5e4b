"""CTM with s fixed at sigma_min: what is left of it without the freedom to stop on the way.

The student is CTM's, and so are the solver, the denoising loss and the weights; only j = N - 1
always. Beside ``cd`` it separates what CTM gains by learning every s from what it gains by its
parametrisation and its long solves. It jumps to sigma_min alone, so it is sampled with gamma = 1.
"""

from __future__ import annotations

import torch

from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective, Draw

__all__ = ["OBJECTIVE", "FinalTimeObjective"]


class FinalTimeObjective(CtmObjective):
    """See the module."""

    final_only = True

    def draw(self, batch: Batch) -> Draw:
        """k and i as in CTM, j = N - 1."""
        k, i, j = super().draw(batch)
        return Draw(k, i, torch.full_like(j, self.section.grid_points - 1))


OBJECTIVE = FinalTimeObjective
