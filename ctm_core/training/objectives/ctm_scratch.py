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

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objective import Use
from ctm_core.training.objectives.ctm import CtmObjective

TRAITS = {"teacher": False, "scratch_solver": True}


class ScratchObjective(CtmObjective):
    """See the module."""

    @torch.no_grad()
    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Heun steps of the EMA's denoiser, or one jump of the EMA."""
        if self.section.own_solver == "heun":
            return super().solve(x, grid, i, steps, labels)
        rows = self.rows(steps > 0, x)
        if len(rows) == 0:
            return x
        self.evaluations["target"] += len(rows)
        times = grid[rows.of(i)], grid[rows.of(i + steps)]
        return rows.put(x, self.moved(self.target, rows, x, *times, labels))

    def denoiser(self) -> tuple[Trajectory, str]:
        """The EMA network."""
        return self.target, "target"

    @classmethod
    def solver_passes(cls, section: Student, steps: Tensor) -> Iterator[tuple[Use, Tensor]]:
        """Of the EMA: two for each Heun step, or one for the jump."""
        heun = section.own_solver == "heun"
        yield Use("target", "forward"), 2 * steps if heun else steps > 0


OBJECTIVE = ScratchObjective
