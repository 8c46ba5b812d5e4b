r"""Improved MeanFlow (Geng et al. 2025b), without its guidance and auxiliary head.

u is differentiated along its own velocity at r = t, :math:`\hat v = \operatorname{sg} u(z, t, t)`,
and

.. math::
   V = u + (t - r)\,\operatorname{sg}\frac{\mathrm du}{\mathrm dt}, \qquad
   S = \|V - (\xi - x_0)\|^2,

so no network is in the target of the regression. Everything else is
:mod:`ctm_core.training.objectives.meanflow`, with other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.tangent import same_masks
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Use
from ctm_core.training.objectives.meanflow import MeanFlowObjective

TRAITS = {
    "like": "meanflow",
    "settings": {
        "times": {"default": "improved"},
        "equal": {"default": 0.5},
        "p": {"default": 1.0},
        "epsilon": {"default": 0.01},
    },
}


class ImprovedMeanFlow(MeanFlowObjective):
    """See the module."""

    def paths(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The student's output at r = t, and the pair's."""
        self.evaluations["student"] += len(batch)
        with torch.no_grad(), same_masks(x):
            own = self.student.raw(x, t, None, batch.labels)
        return own, super().paths(batch, x, t, noise)[1]

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """One call more."""
        yield from super().passes(section, draws)
        yield Use("student", "forward"), torch.ones_like(draws.k)


OBJECTIVE = ImprovedMeanFlow
