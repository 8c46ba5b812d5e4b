r"""Consistency training (Song et al. 2023, algorithm 3): distillation without a teacher.

The point at u is not solved for; it is the same image with the same noise,
:math:`x_t = x_0 + t\,\xi` and :math:`x_u = x_0 + u\,\xi`: an unbiased step of the score's ODE in
the limit of a fine grid. Everything else is :mod:`ctm_core.training.objectives.cd`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ctm_core.config import Student
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Use
from ctm_core.training.objectives.ctm import CtmObjective, Draw
from ctm_core.training.rows import send

TRAITS = {
    "time_s": False,
    "inner": "cm",
    "teacher": False,
    "final_only": True,
    "matching": False,
    "target_inner": False,
    "dsm": False,
}


class ConsistencyTraining(CtmObjective):
    """See the module."""

    def earlier(self, batch: Batch, x_t: Tensor, grid: Tensor, drawn: Draw) -> Tensor:
        """x_0 + u xi, with the xi of x_t."""
        u = send(grid[drawn.i + drawn.k], x_t.device).view(-1, 1, 1, 1)
        return batch.images + u * batch.normal("noise")

    @classmethod
    def solver_passes(cls, section: Student, steps: Tensor) -> Iterator[tuple[Use, Tensor]]:
        """None."""
        yield from ()


OBJECTIVE = ConsistencyTraining
