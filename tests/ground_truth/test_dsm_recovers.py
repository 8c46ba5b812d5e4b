r"""Denoising score matching recovers the denoiser, through the loss that trains for real.

EDM's weighting makes :math:`\lambda(\sigma) c_\text{out}^2 = 1`, so a model whose raw output is
off by :math:`\delta F` exceeds the least loss by exactly :math:`\mathbb E\,\delta F^2`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctm_core.diffusion import randomness, schedule
from ctm_core.diffusion.gaussian import GaussianMixture, MixtureNetwork, exact_model
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.denoising import dsm_loss

from .truth import DOUBLE, MIXTURE, draws

COUNT = 20_000


def losses(model: Trajectory, seed: int = 0, count: int = COUNT) -> Tensor:
    """DSM loss of each of ``count`` fresh samples, at the student's law of noise levels."""
    uniform = randomness.uniform(seed, "sigma", 0, 0, count)
    sigma = schedule.dsm_sigma(uniform, torch.arange(count))
    noise = randomness.normal(seed, "dsm", 0, 0, count, MIXTURE.shape).double()
    return dsm_loss(model, draws(count, 0.0, seed), sigma, noise, None)[0]


def bent(a: float, b: float) -> Trajectory:
    """The exact model with raw output (1 + a) F + b."""
    model = exact_model(MIXTURE)
    with torch.no_grad():
        model.output_weight.copy_(torch.tensor([a, b], dtype=DOUBLE))
    return model


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / len(values) ** 0.5


def gradients(model: Trajectory) -> Tensor:
    """Gradient of each sample's loss with respect to (a, b), by central differences.

    The loss is quadratic in them, so these are exact.
    """
    rows = []
    weight = model.output_weight
    start = weight.detach().clone()
    for step in 0.5 * torch.eye(2, dtype=DOUBLE):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.copy_(start + sign * step)
                ends.append(losses(model))
        rows.append(ends[0] - ends[1])
    with torch.no_grad():
        weight.copy_(start)
    return torch.stack(rows, dim=1)


def test_gradient_is_zero_at_the_exact_denoiser_alone() -> None:
    mean, error = mean_and_error(gradients(exact_model(MIXTURE)))
    assert bool((mean.abs() < 4 * error).all())
    assert bool((error < 0.02).all())
    # Autograd's gradient, the one that trains, is the mean of these.
    model = exact_model(MIXTURE)
    losses(model).mean().backward()
    torch.testing.assert_close(model.output_weight.grad, mean, rtol=1e-9, atol=1e-9)

    wide = GaussianMixture(MIXTURE.weights, MIXTURE.means, 4 * MIXTURE.variances)
    mean, error = mean_and_error(gradients(exact_model(wide)))
    assert bool((mean.abs() > 10 * error).any())


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.0), (-0.2, 0.0), (0.0, 0.3), (0.1, -0.2)])
def test_excess_of_a_bent_model(a: float, b: float) -> None:
    with torch.no_grad():
        excess = losses(bent(a, b)) - losses(exact_model(MIXTURE))
        sigma = schedule.dsm_sigma(
            randomness.uniform(0, "sigma", 0, 0, COUNT), torch.arange(COUNT)
        )
        noise = randomness.normal(0, "dsm", 0, 0, COUNT, MIXTURE.shape).double()
        x = draws(COUNT, 0.0) + sigma.view(-1, 1, 1, 1) * noise
        raw = exact_model(MIXTURE).raw(x, sigma)
    predicted = (a * raw + b).square().flatten(1).mean(1)
    mean, error = mean_and_error(excess - predicted)
    assert abs(float(mean)) < 4 * float(error)
    assert float(predicted.mean()) > 10 * float(error)


def test_minimiser_over_bends_is_none() -> None:
    """The best (a, b) on a sample is (0, 0) within its standard error."""
    model = exact_model(MIXTURE)
    slopes = gradients(model)
    hessian = torch.autograd.functional.hessian(
        lambda weight: torch.func.functional_call(
            _Mean(model), {"model.model.output_weight": weight}, ()
        ),
        torch.zeros(2, dtype=DOUBLE),
    )
    best = -torch.linalg.solve(hessian, slopes.mean(0))
    spread = torch.linalg.solve(hessian, torch.cov(slopes.T) / COUNT)
    covariance = torch.linalg.solve(hessian, spread.T)
    distance = float(best @ torch.linalg.solve(covariance, best))
    assert distance < 18.4  # χ² with two degrees of freedom, p = 1e-4
    assert float(covariance.diagonal().max().sqrt()) < 0.01


class _Mean(nn.Module):
    """The mean loss as a module, for functional calls."""

    def __init__(self, model: Trajectory) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return losses(self.model).mean()


class Learned(nn.Module):
    """The raw network of a mixture whose weights, means and variances are to be found."""

    time_s, label_dim = False, 0

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, dtype=DOUBLE))
        self.means = nn.Parameter(0.5 * MIXTURE.means + 0.1)
        self.log_variances = nn.Parameter(torch.full((3, 1, 1, 2), -2.0, dtype=DOUBLE))

    def mixture(self) -> GaussianMixture:
        return GaussianMixture(self.logits.softmax(0), self.means, self.log_variances.exp())

    def forward(self, x: Tensor, c_noise_t: Tensor, *rest: Tensor | None) -> Tensor:
        made: Tensor = MixtureNetwork(self.mixture())(x, c_noise_t)
        return made


def test_learning_finds_the_denoiser() -> None:
    """From wrong modes, minimising DSM on a sample leads to the exact denoiser.

    By the theory of least squares the excess of the p = 14 free numbers (15 less one) fitted to n
    samples of d pixels is about p/(n d) of the least loss; three times that is allowed.
    """
    network = Learned()
    model = Trajectory(network)

    def excess() -> float:
        """E δF² on noisy images that were not learned from."""
        with torch.no_grad():
            sigma = schedule.dsm_sigma(
                randomness.uniform(7, "sigma", 0, 0, COUNT), torch.arange(COUNT)
            )
            noise = randomness.normal(7, "dsm", 0, 0, COUNT, MIXTURE.shape).double()
            x = draws(COUNT, 0.0, seed=7) + sigma.view(-1, 1, 1, 1) * noise
            difference = model.raw(x, sigma) - exact_model(MIXTURE).raw(x, sigma)
        return float(difference.square().mean())

    assert excess() > 0.05
    optimiser = torch.optim.LBFGS(
        network.parameters(), max_iter=150, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = losses(model).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        least = float(losses(exact_model(MIXTURE)).mean())
    assert excess() < 3 * 14 / (2 * COUNT) * least
    torch.testing.assert_close(network.mixture().means, MIXTURE.means, rtol=0, atol=0.02)
