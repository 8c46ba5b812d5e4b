"""The CTM loss at the exact G, through the objective that trains for real.

Student and target are the exact model. With the exact solver in place of Heun's the l2 loss is
zero; with Heun's, its square root is the solver's error and falls at order 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion.gaussian import GaussianMixture, exact_model
from ctm_core.training.batches import Batch
from ctm_core.training.distances import build_distance
from ctm_core.training.objectives.ctm import CtmObjective, Draw

from .truth import DOUBLE, MIXTURE, draws

BATCH = 16


class ExactSolve(CtmObjective):
    """The objective with the exact flow as the teacher's solver."""

    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        return MIXTURE.flow(x, grid[i], grid[i + steps])


class FixedTimes(CtmObjective):
    """The objective at the same times t, u, s of every sample, on a grid as fine as one likes."""

    refinement = 1

    def draw(self, batch: Batch) -> Draw:
        fine = self.refinement
        i = torch.arange(len(batch)) % 8
        j = torch.tensor([0, 9, 16, 24])[torch.arange(len(batch)) % 4]
        j = torch.maximum(j, i + 4)  # s = u for some, s = sigma_min for others
        return Draw(4 * fine, i * fine, j * fine)


def objective(kind: type[CtmObjective], student: GaussianMixture = MIXTURE, **section: Any) -> Any:
    described = {
        "grid_points": 18,
        "distance": "l2",
        "training": {"steps": 1, "batch_size": BATCH},
    }
    read = config.Student.model_validate(described | section)
    return kind(
        section=read,
        diffusion=config.Diffusion(),
        student=exact_model(student),
        target=exact_model(MIXTURE).requires_grad_(False),
        teacher=exact_model(MIXTURE).requires_grad_(False),
        distance=build_distance(read.distance),
    )


def batch(step: int) -> Batch:
    return Batch(draws(BATCH, 0.0, seed=step), None, seed=1, step=step)


@pytest.mark.parametrize(
    "section",
    [
        {"matching": "soft", "target_inner": "model"},
        {"matching": "soft", "target_inner": "ema"},
        {"matching": "local"},
        {"matching": "global"},
    ],
    ids=lambda section: "-".join(section.values()),
)
def test_zero_with_the_exact_solver(section: dict[str, str]) -> None:
    made = objective(ExactSolve, **section)
    for step in range(2):
        terms = made.backward(batch(step), 1.0)
        assert terms["ctm"] < 1e-10
        assert terms["ctm"] < 1e-18  # what is left is rounding
        assert terms["dsm"] > 0.01  # the variance of x_0 given x_t, not zero


def test_not_zero_for_a_model_that_is_wrong() -> None:
    """The flow of modes a tenth wider is not the teacher's, and the loss and gradient say so."""
    wrong = GaussianMixture(MIXTURE.weights, MIXTURE.means, 1.1 * MIXTURE.variances)
    made = objective(ExactSolve, wrong, dsm={"enabled": False})
    terms = made.backward(batch(0), 1.0)
    assert terms["ctm"] > 1e-5
    right = objective(ExactSolve, dsm={"enabled": False})
    right.backward(batch(0), 1.0)
    weights = (made.student.output_weight, right.student.output_weight)
    gradients = [float(weight.grad.norm()) for weight in weights]
    assert gradients[0] > 1e-4 and gradients[1] < 1e-10


def test_gradient_passes_through_the_outer_map() -> None:
    """The derivative of the loss in the student's bend, against differences of the loss itself."""
    bend = torch.tensor([0.05, -0.03], dtype=DOUBLE)

    def loss_at(weight: Tensor) -> tuple[float, Tensor]:
        made = objective(ExactSolve, target_inner="ema", dsm={"enabled": False})
        with torch.no_grad():
            made.student.output_weight.copy_(weight)
        return float(made.backward(batch(2), 1.0)["ctm"]), made.student.output_weight.grad

    _, gradient = loss_at(bend)
    for row, step in enumerate(1e-5 * torch.eye(2, dtype=DOUBLE)):
        difference = (loss_at(bend + step)[0] - loss_at(bend - step)[0]) / 2e-5
        assert float(gradient[row]) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("matching", ["soft", "global"])
def test_order_two_with_heun(matching: str) -> None:
    refinements, roots = [8, 16, 32], []
    for refinement in refinements:
        made = objective(
            FixedTimes,
            grid_points=24 * refinement + 1,
            max_heun_steps=1,  # of the law of k, which is not drawn here
            matching=matching,
            dsm={"enabled": False},
        )
        made.refinement = refinement
        roots.append(math.sqrt(made.backward(batch(0), 1.0)["ctm"]))
    slope, _ = np.polyfit(np.log(refinements), np.log(roots), 1)
    assert -slope == pytest.approx(2, abs=0.1)
