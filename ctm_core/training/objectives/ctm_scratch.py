r"""CTM without a teacher (CTM, section 5.2): the student's own average takes its place.

The key ``scratch_solver``, by default the variant's:

``heun``, as printed
    Solver integrates the EMA's own denoiser g(x, t, t): the paper's text.
``jump``, as released
    Solver is one jump of the EMA, :math:`x_u = G_\text{ema}(x_t, t, u)`: the released code.

Weights start at random unless ``initial`` says otherwise; the denoising loss is what ties the
model to the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objectives.ctm import CtmObjective, take

__all__ = ["OBJECTIVE", "ScratchObjective"]


class ScratchObjective(CtmObjective):
    """See the module."""

    uses_teacher = False

    @torch.no_grad()
    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Heun steps of the EMA's denoiser, or one jump of the EMA."""
        if self.section.own_solver == "heun":
            return super().solve(x, grid, i, steps, labels)
        rows = (steps > 0).nonzero().flatten()
        self.evaluations["target"] += len(rows)
        t, u = grid[i[rows]], grid[(i + steps)[rows]]
        jumped = self.target.G(x[rows], t, u, take(labels, rows))
        return x.index_copy(0, rows, jumped.to(x.dtype))

    def denoiser(self) -> tuple[Trajectory, str]:
        """The EMA network."""
        return self.target, "target"


OBJECTIVE = ScratchObjective
