r"""Consistency distillation (Song et al. 2023, algorithm 2): the baseline that CTM generalises.

.. math::
   x_u = \text{Heun step of the teacher from } t_i \text{ to } t_{i+1}, \qquad
   L = d\bigl(f_\theta(x_t, t),\ f_{\bar\theta}(x_u, u)\bigr)

with :math:`f(x, t) = c_\text{skip}\,x + c_\text{out}\,F(c_\text{in}\,x, t)` in the ``cm``
parametrisation (:mod:`ctm_core.diffusion.scalings`), the identity at sigma_min; no time s, no
denoising loss; :math:`\bar\theta` is the EMA of decay ``target_ema`` (0: the live weights). f
jumps to sigma_min alone, so it is sampled with gamma = 1.
"""

from __future__ import annotations

import torch

from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective, Draw

__all__ = ["OBJECTIVE", "ConsistencyDistillation"]


class ConsistencyDistillation(CtmObjective):
    """See the module."""

    time_s = False
    final_only = True
    inner = "cm"

    @property
    def live_target(self) -> bool:
        """False: the target is the EMA's."""
        return False

    @property
    def denoises(self) -> bool:
        """False: a consistency model is no denoiser."""
        return False

    def draw(self, batch: Batch) -> Draw:
        """Neighbours on the grid, k = 1, and j = N - 1."""
        n = self.section.grid_points
        i = (batch.uniform("t") * (n - 1)).long().clamp(max=n - 2)
        return Draw(1, i, torch.full_like(i, n - 1))


OBJECTIVE = ConsistencyDistillation
