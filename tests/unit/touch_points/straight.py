"""A toy objective: one jump from noise to data, taught by the images themselves."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Objective

TRAITS = {"teacher": False, "matching": False, "target_inner": False, "dsm": False}


class Straight(Objective):
    """Mean squared error of G(x_t, t, sigma_min) and x_0 at one t."""

    def __init__(self, *, section: Any, diffusion: Any, student: Any, **others: Any) -> None:
        super().__init__()
        self.section, self.diffusion, self.student = section, diffusion, student

    def calls(self, batch: Batch) -> Iterator[Call]:
        """One call of the student."""
        raw, jump = self._jump(batch)
        loss = (jump - batch.images).square().mean()
        self.evaluations["student"] += len(batch)
        yield Call(raw, (Loss.of("straight", loss, raw),))

    @torch.no_grad()
    def generated(self, batch: Batch) -> Tensor:
        """What the jump lands on."""
        return self._jump(batch)[1]

    def _jump(self, batch: Batch) -> tuple[Tensor, Tensor]:
        t = torch.full((len(batch),), self.diffusion.sigma_max, dtype=torch.float64)
        s = torch.full_like(t, self.diffusion.sigma_min)
        x = batch.images + self.diffusion.sigma_max * batch.normal("noise")
        raw = self.student.raw(x, t, s, batch.labels)
        return raw, self.student.jump(raw, x, t, s)


OBJECTIVE = Straight
