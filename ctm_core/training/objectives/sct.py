r"""Continuous-time consistency training, sCT (Lu and Song 2025): sCD without a teacher.

The path is that of the image and its noise, whose velocity has the mean of the flow's
(:func:`ctm_core.diffusion.tangent.pair_output`); everything else is
:mod:`ctm_core.training.objectives.scd`. The tangent's mean is that of sCD, but not that of the
normalised tangent, so the optimum is biased.
"""

from __future__ import annotations

from torch import Tensor

from ctm_core.diffusion.tangent import pair_output
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.scd import ScdObjective

TRAITS = {
    "like": "scd",
    "teacher": False,
    "initial": "teacher",
    "settings": {"p_std": {"default": 1.8}},
}


class SctObjective(ScdObjective):
    """See the module."""

    def path(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """That of the pair."""
        form = self.student.parametrisation, batch.images, noise, t, self.student.sigma_data
        return pair_output(*form)


OBJECTIVE = SctObjective
