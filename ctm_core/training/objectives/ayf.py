r"""Align Your Flow's Eulerian map distillation, AYF-EMD (Sabour et al. 2025).

The flow map is MeanFlow's (:mod:`ctm_core.training.objectives.meanflow`), along the teacher's
velocity v. It moves against the normalised tangent,

.. math::
   a = (v - u^-) - \rho\,(t - r)\,\frac{\mathrm du^-}{\mathrm dt}, \qquad
   L = \Bigl\| u - u^- - \frac{a}{\|a\| + 0.1} \Bigr\|^2,

where ρ grows linearly from 0 to ``tangent_max`` within ``warmup`` steps. At ρ = 1 and before the
normalisation this is distilled MeanFlow; what is missing from 1 pulls towards straight paths. With
a weak teacher, an earlier snapshot, v is guided away from it:
:math:`v = \lambda\,v_\phi + (1 - \lambda)\,v_\text{weak}`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.schedule import Draws, lognormal_sigma
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Use
from ctm_core.training.objectives.meanflow import MeanFlowObjective, linear
from ctm_core.training.objectives.scd import normalised, warmup
from ctm_core.training.terms import Term

TRAITS = {
    "zero_s": True,
    "ctm_loss": False,
    "jvp": True,
    "second": "weak_teacher",
    "settings": {
        "p_mean": {
            "default": -0.8, "minimum": -20.0, "maximum": 20.0,
            "description": "mean of the logit of t - r",
        },
        "p_std": {
            "default": 1.0, "minimum": 1e-3, "maximum": 10.0, "description": "its deviation"
        },
        "warmup": {
            "default": 10_000, "minimum": 0, "maximum": 1e9,
            "description": "steps until the tangent has its full share",
        },
        "tangent_max": {
            "default": 0.99, "minimum": 0.0, "maximum": 1.0, "description": "that share"
        },
        "guidance": {
            "default": 2.0, "minimum": 1.0, "maximum": 10.0,
            "description": "lambda of the teacher's velocity over the weak teacher's",
        },
    },
}  # fmt: skip


def draw_times(u_gap: Tensor, u_r: Tensor, p_mean: float, p_std: float) -> tuple[Tensor, Tensor]:
    """σ_t and σ_r from uniforms (B,): r is uniform where its gap to t leaves room."""
    gap = linear(lognormal_sigma(u_gap, p_mean, p_std))
    r = u_r * (1 - gap)
    t = r + gap
    return t / (1 - t), r / (1 - r)


def tangent_of(u: Tensor, v: Tensor, slope: Tensor, share: float) -> Tensor:
    """a, with ``slope`` = (t - r) du/dt."""
    return v - u - share * slope


def loss(u: Tensor, tangent: Tensor) -> Tensor:
    """The loss (B,) of a normalised tangent."""
    return (u - (u + tangent).detach()).square().flatten(1).sum(1)


def guided(strong: Tensor, weak: Tensor, guidance: float) -> Tensor:
    """The teacher's output, guided away from a weak one's."""
    return guidance * strong + (1 - guidance) * weak


class AyfObjective(MeanFlowObjective):
    """See the module."""

    def loss(self, batch: Batch, u: Tensor, v: Tensor, slope: Tensor) -> Tensor:
        """See the module."""
        a = tangent_of(u.detach(), v, slope, self.share(batch))
        return loss(u, normalised(a, "printed"))

    @torch.no_grad()
    def paths(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's output, guided if there is a weak teacher, twice."""
        outputs = []
        for name in ("teacher", "second"):
            network = getattr(self, name)
            if network is not None:
                self.evaluations[name] += len(batch)
                outputs.append(network.raw(x, t, None, batch.labels))
        output = outputs[0]
        if len(outputs) == 2:
            output = guided(output, outputs[1], self.number("guidance"))
        return output, output

    def share(self, batch: Batch) -> float:
        """ρ."""
        return self.number("tangent_max") * warmup(batch.step, self.number("warmup"))

    def facts(self, batch: Batch) -> dict[str, Term]:
        """ρ."""
        return {"tangent_share": self.share(batch)}

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """σ of t and of r, of each sample: float64, on the CPU."""
        law = self.number("p_mean"), self.number("p_std")
        drawn = draw_times(batch.uniform("t"), batch.uniform("r"), *law)
        t, r = (time.clamp(self.diffusion.sigma_min, self.diffusion.sigma_max) for time in drawn)
        return t, r

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """The weak teacher too."""
        yield from super().passes(section, draws)
        if section.weak_teacher is not None:
            yield Use("second", "forward"), torch.ones_like(draws.k)


OBJECTIVE = AyfObjective
