"""MeanFlow distilled from a teacher: v is the teacher's velocity, in the path and as the target.

It is the velocity's mean over the images behind x, so at the exact solution every sample's loss
is zero, and the adaptive weight shifts no optimum. Everything else is
:mod:`ctm_core.training.objectives.meanflow`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_core.training.batches import Batch
from ctm_core.training.objectives.meanflow import MeanFlowObjective

TRAITS = {"like": "meanflow", "teacher": True}


class DistilledMeanFlow(MeanFlowObjective):
    """See the module."""

    @torch.no_grad()
    def paths(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's output, twice."""
        assert self.teacher is not None
        self.evaluations["teacher"] += len(batch)
        output = self.teacher.raw(x, t, None, batch.labels)
        return output, output


OBJECTIVE = DistilledMeanFlow
