"""The step against one with separate backward passes, on the golden training case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctm_core.training.balance import adaptive_weight
from ctm_core.verification.check_adversarial import ToyAdversary
from ctm_core.verification.check_training import GoldenBatch, GoldenObjective, objective
from ctm_core.verification.golden import DOUBLE, SINGLE, error

from .conftest import golden_folder


def made(precision: torch.dtype) -> tuple[GoldenObjective, GoldenBatch]:
    golden = golden_folder().load("ctm_training").at(precision)
    step = objective(golden)
    step.adversary = ToyAdversary(golden)  # type: ignore[assignment]
    return step, GoldenBatch(golden)


def direct(step: GoldenObjective, batch: GoldenBatch) -> dict[str, float]:
    """One graph from the weights to every loss, a backward pass for each norm, one for the sum."""
    drawn, grid, x_t = step.noised(batch)
    target = step.matching_target(batch, x_t, grid, drawn)
    t, s = grid[drawn.i], grid[drawn.j]
    estimate = step.to_data(step.student.G(x_t, t, s, batch.labels), s, batch.labels)
    ctm = step.distance(estimate, target).mean()
    assert step.adversary is not None
    gan = step.adversary.generator_loss(estimate, batch)
    dsm, _ = step.denoising(batch)
    w = step.student.output_weight

    def at_w(loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, w, retain_graph=True)
        return gradient

    lambda_gan = adaptive_weight(at_w(ctm), at_w(gan), low=0.01, high=10)
    lambda_dsm = adaptive_weight(at_w(ctm), at_w(dsm))
    (ctm + lambda_gan * gan + lambda_dsm * dsm).backward()
    return {"lambda_gan": float(lambda_gan), "lambda_dsm": float(lambda_dsm)}


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(DOUBLE, 1e-10), (SINGLE, 1e-5)], ids=["float64", "float32"]
)
def test_one_pass_equals_separate_passes(precision: torch.dtype, tolerance: float) -> None:
    (ours, batch), (plain, same) = made(precision), made(precision)
    terms, expected = ours.backward(batch, 1.0), direct(plain, same)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=tolerance), name
    theirs = dict(plain.student.named_parameters())
    total = torch.nn.utils.get_total_norm([p.grad for p in theirs.values() if p.grad is not None])
    for name, parameter in ours.student.named_parameters():
        gradient, other = parameter.grad, theirs[name].grad
        assert gradient is not None and other is not None
        # Against its own norm, or where that is nothing, against the whole gradient's.
        relative = error(gradient, other, per_sample=False)
        absolute = float((gradient - other).norm() / total)
        assert min(relative, absolute) <= tolerance, (name, relative, absolute)
