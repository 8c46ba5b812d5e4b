r"""Truncated consistency models (Lee et al. 2024): a second stage that learns large times alone.

The first stage is an ``ect`` model, from which this one forks. Below a time t' its frozen weights
:math:`\phi` answer, so that the student spends its capacity on the times that sampling needs:

.. math::
   f(x, t) &= f_\theta(x, t) \text{ for } t \ge t', \text{ else } f_\phi(x, t) \\
   r &= \max(10^{-6},\ t\,(1 - (1 - \text{ratio})\,n(t))), \qquad
   \Delta = f_\theta(x_t, t) - f_{\text{sg}}(x_r, r) \\
   L &= \overline{w\,\|\Delta\|}_{t > t'} + \lambda\,\overline{w\,\|\Delta\|}_{t = t'}

with n, w and the norm of :mod:`ctm_core.training.objectives.ect`. Every fourth sample has t = t',
where r < t': the second mean ties the student to the first stage. The others follow
:math:`\ln t = 0.2\,T` with T of Student's law with 0.01 degrees of freedom, truncated to
[t', sigma_max].
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from scipy import special
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.schedule import Draws
from ctm_core.runtime.errors import UserError
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Use
from ctm_core.training.objectives.ect import Below, EctObjective, earlier_time, ratio

TRAITS = {
    "like": "ect",
    "initial": None,
    "inner": "edm",
    "second": "init",
    "settings": {
        # Its own law of t, in place of ect's.
        "p_mean": None,
        "p_std": None,
        "truncated": None,
        "boundary": {
            "default": 1.0, "minimum": 1.0, "maximum": 1e6,
            "description": "t', below which the first stage answers",
        },
        "boundary_every": {
            "default": 4, "minimum": 2.0, "maximum": 1e6,
            "description": "one sample of so many has t = t'",
        },
        "boundary_weight": {
            "default": 0.1, "minimum": 0.0, "maximum": 1e3, "description": "of their mean"
        },
        "spread": {"default": 0.2, "minimum": 1e-3, "maximum": 10.0, "description": "ln t / T"},
        "degrees": {
            "default": 0.01, "minimum": 1e-3, "maximum": 1e3,
            "description": "of freedom of T: few are a heavy tail",
        },
        "first_stage": {
            "default": 7, "minimum": 0.0, "maximum": 1e3,
            "description": "where the schedule of the first stage ended",
        },
        "stage_images": {"default": 25_600_000},
        "c": {"default": 1e-8},
    },
}  # fmt: skip

#: The smallest r.
FLOOR = 1e-6


def heavy_tailed_time(
    u: Tensor, low: float, high: float, *, spread: float, degrees: float
) -> Tensor:
    """Quantiles of ln t = spread T, T Student's, truncated to [low, high] with low ≥ 1; float64.

    By the tail's probability, an incomplete beta function of 1/(1 + T²/degrees): what would be
    the difference of two numbers near 1/2 keeps its digits.
    """
    ends = (math.log(low) / spread, math.log(high) / spread)
    near, far = (special.betainc(degrees / 2, 0.5, degrees / (degrees + x * x)) for x in ends)
    y = special.betaincinv(degrees / 2, 0.5, near + u.double().numpy() * (far - near))
    square = torch.from_numpy(degrees * (1 - y) / y)
    return (spread * square.sqrt()).exp().clamp(low, high)


def shares(on_boundary: Tensor, boundary: int, whole: int, weight: float) -> Tensor:
    """Weights that make the mean over ``whole`` samples the mean over those that are not on the
    boundary, plus ``weight`` times that over the ``boundary`` samples that are; float64.
    """
    rest, edge = whole / max(1, whole - boundary), weight * whole / max(1, boundary)
    return torch.full_like(on_boundary, rest, dtype=torch.float64).masked_fill(on_boundary, edge)


class TcmObjective(EctObjective):
    """See the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.second is not None
        self.below = Below(self.second, self.number("boundary"))
        self.every = int(self.number("boundary_every"))
        if self.below.time >= self.diffusion.sigma_max:
            raise UserError(
                f"settings.boundary must lie below sigma_max, {self.diffusion.sigma_max:g}; it is "
                f"{self.below.time:g}"
            )

    def stage(self, batch: Batch) -> int:
        """How often pairs have come closer, the first stage's times included."""
        return int(self.number("first_stage")) + super().stage(batch)

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """t and r of each sample: float64, on the CPU."""
        low, high = self.number("boundary"), self.diffusion.sigma_max
        law = {"spread": self.number("spread"), "degrees": self.number("degrees")}
        t = heavy_tailed_time(batch.uniform("t"), low, high, **law)
        t = torch.where(batch.indices % self.every == 0, low, t)
        closeness = ratio(self.stage(batch), self.number("q"), self.number("ratio_limit"))
        k, b = self.number("k"), self.number("b")
        return t, earlier_time(t, closeness, k=k, b=b, floor=FLOOR)

    def shares(self, batch: Batch) -> Tensor:
        """Of the two means over the global batch, however it is cut."""
        whole = batch.global_size
        boundary = -(-whole // self.every)
        on_boundary = batch.indices % self.every == 0
        weights = shares(on_boundary, boundary, whole, self.number("boundary_weight"))
        return weights.to(batch.images, non_blocking=True)

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """Both ends of each pair, the earlier one by both stages."""
        yield from super().passes(section, draws)
        yield Use("second", "forward"), torch.ones_like(draws.k)


OBJECTIVE = TcmObjective
