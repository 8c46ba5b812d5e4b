"""Gaussian mixtures against quadrature, autograd, conserved quantities and closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.gaussian import GaussianMixture, exact_model, three_modes
from ctm_core.diffusion.sampling import sample
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.runtime.errors import UserError

DOUBLE = torch.float64


def line() -> GaussianMixture:
    """Two modes on images of one pixel."""
    weights = torch.tensor([0.65, 0.35], dtype=DOUBLE)
    means = torch.tensor([-0.5, 0.8], dtype=DOUBLE).view(2, 1, 1, 1)
    return GaussianMixture(weights, means, torch.tensor([0.01, 0.05], dtype=DOUBLE))


def draws(mixture: GaussianMixture, count: int, t: float, seed: int = 0) -> Tensor:
    uniform = randomness.uniform(seed, "component", 0, 0, count)
    return mixture.sample(uniform, randomness.normal(seed, "x", 0, 0, count, mixture.shape), t)


# -- one time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.02, 0.3, 2.0, 80.0])
def test_denoiser_and_density_by_quadrature(t: float) -> None:
    mixture = line()
    grid = torch.linspace(-3, 3, 60001, dtype=DOUBLE)
    prior = mixture.log_density(grid.view(-1, 1, 1, 1)).exp() * (grid[1] - grid[0])
    x = torch.tensor([-0.7, 0.1, 0.9], dtype=DOUBLE)
    x = x + t * torch.tensor([0.5, -1.0, 0.2], dtype=DOUBLE)
    seen = (-0.5 * ((x[:, None] - grid) / t) ** 2).exp() / (t * (2 * torch.pi) ** 0.5) * prior
    images = x.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixture.log_density(images, t), seen.sum(1).log())
    expected = (seen * grid).sum(1) / seen.sum(1)
    torch.testing.assert_close(mixture.denoise(images, t).flatten(), expected)


@pytest.mark.parametrize("t", [0.002, 0.5, 80.0])
def test_score_is_the_gradient_and_gives_the_denoiser(t: float) -> None:
    mixture = three_modes()
    x = draws(mixture, 50, t).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, t).sum(), x)
    torch.testing.assert_close(mixture.score(x, t), gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x + t**2 * mixture.score(x, t), mixture.denoise(x, t))


def test_a_time_for_each_image() -> None:
    mixture = three_modes()
    t = torch.tensor([0.01, 1.0, 30.0], dtype=DOUBLE)
    s = torch.tensor([0.002, 1.0, 7.0], dtype=DOUBLE)
    x = torch.cat([draws(mixture, 1, float(time)) for time in t])
    for method in (mixture.denoise, mixture.score, mixture.log_density):
        rows = [method(x[i : i + 1], float(t[i])) for i in range(3)]
        torch.testing.assert_close(method(x, t), torch.cat(rows))
    rows = [mixture.flow(x[i : i + 1], float(t[i]), float(s[i])) for i in range(3)]
    torch.testing.assert_close(mixture.flow(x, t, s), torch.cat(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.1, 80.0])
def test_samples_and_uniforms(t: float) -> None:
    mixture, count = three_modes(), 5000
    x = draws(mixture, count, t)
    uniforms = mixture.uniforms(x, t)
    assert uniforms.shape == (count, 2)
    for column in uniforms.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    # The same test sees a shift of a tenth of the law's own deviation.
    wrong = mixture.uniforms(x + 0.1 * x.std(), t)
    assert min(stats.kstest(column, "uniform").pvalue for column in wrong.T.numpy()) < 1e-4
    mean = torch.einsum("k,kchw->chw", mixture.weights, mixture.means)
    assert float((x.mean(0) - mean).abs().max()) < 5 * float(x.std()) / count**0.5


def test_a_point_mass_is_allowed_under_noise() -> None:
    one = torch.ones(1, dtype=DOUBLE)
    mixture = GaussianMixture(one, 0.3 * torch.ones(1, 1, 2, 2), torch.zeros(1))
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    torch.testing.assert_close(mixture.denoise(x, 2.0), mixture.means.expand(3, 1, 2, 2))
    torch.testing.assert_close(mixture.flow(x, 2.0, 1.0), (x + mixture.means) / 2)


# -- the flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), [(80.0, 0.002), (5.0, 0.2), (0.1, 3.0)])
def test_flow_on_a_line_keeps_the_distribution_function(t: float, s: float) -> None:
    """In one dimension the flow is the monotone map F_s⁻¹ ∘ F_t: an independent closed form."""
    mixture = line()
    x = draws(mixture, 200, t)
    y = mixture.flow(x, t, s)
    before, after = mixture.uniforms(x, t), mixture.uniforms(y, s)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)
    # y itself is that good too, where the density is not tiny.
    slope = mixture.log_density(y, s).exp()
    assert float(((after - before).flatten() / slope).abs()[slope > 1e-3].max()) < 1e-10


def test_solved_flow_of_one_gaussian_is_its_closed_form() -> None:
    mean, variance = torch.tensor([[[0.4, -0.2]], [[0.09, 0.3]]], dtype=DOUBLE)
    single = GaussianMixture(torch.ones(1), mean.view(1, 1, 1, 2), variance.view(1, 1, 1, 2))
    twice = GaussianMixture(
        torch.tensor([0.3, 0.7]),
        mean.view(1, 1, 1, 2).expand(2, 1, 1, 2),
        variance.view(1, 1, 1, 2).expand(2, 1, 1, 2),
    )
    x = draws(single, 20, 80.0)
    for t, s in ((80.0, 0.002), (80.0, 79.999), (1.0, 1.0)):
        exact = mean + (x - mean) * ((variance + s**2) / (variance + t**2)).sqrt()
        torch.testing.assert_close(single.flow(x, t, s), exact, rtol=0, atol=1e-12)
        torch.testing.assert_close(twice.flow(x, t, s), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("t", "s"), [(80.0, 0.002), (1.0, 0.05)])
def test_flow_carries_the_density(t: float, s: float) -> None:
    """log p_s(G) + log |det dG/dx| = log p_t, the determinant by the adjoint derivative."""
    mixture = three_modes()
    x = draws(mixture, 12, t).requires_grad_()
    y = mixture.flow(x, t, s)
    rows = [torch.autograd.grad(y[:, 0, 0, d].sum(), x, retain_graph=True)[0] for d in (0, 1)]
    jacobian = torch.stack([row.flatten(1) for row in rows], dim=1)
    carried = mixture.log_density(y, s) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(carried, mixture.log_density(x, t), rtol=0, atol=1e-8)


def test_flow_needs_positive_times() -> None:
    with pytest.raises(UserError, match="end it at sigma_min"):
        three_modes().flow(torch.zeros(1, 1, 1, 2), 1.0, 0.0)


# -- the model ----------------------------------------------------------------------------------


def test_model_is_exact_and_takes_a_networks_place() -> None:
    mixture = three_modes()
    model = exact_model(mixture)
    assert isinstance(model, Trajectory) and model.time_s and model.sigma_data == 0.5
    t = torch.tensor([80.0, 3.0, 0.4, 0.4, 0.002], dtype=DOUBLE)
    s = torch.tensor([0.002, 2.9, 0.4, 0.1, 0.002], dtype=DOUBLE)
    x = torch.cat([draws(mixture, 1, float(time)) for time in t])
    exact, denoised = mixture.flow(x, t, s), mixture.denoise(x, t)
    torch.testing.assert_close(model.G(x, t, s), exact, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.denoise(x, t), denoised, rtol=1e-11, atol=1e-11)
    g = model.g(x, t, s)
    ratio = (s / t).view(-1, 1, 1, 1)
    moving = s < t
    expected = (exact - ratio * x) / (1 - ratio)
    torch.testing.assert_close(g[moving], expected[moving], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g[~moving], denoised[~moving], rtol=1e-11, atol=1e-11)
    # g is continuous at s = t.
    near = model.g(x, t, t * (1 - 1e-7))
    torch.testing.assert_close(near, denoised, rtol=1e-6, atol=1e-6)


def test_model_in_single_precision_and_in_a_sampler() -> None:
    mixture = three_modes()
    model = exact_model(mixture)
    x = draws(mixture, 4, 2.0)
    single = model.G(x.float(), 2.0, 0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), mixture.flow(x, 2.0, 0.5), rtol=1e-5, atol=1e-5)
    latents = draws(mixture, 4, 80.0) / 80
    made = sample(model, sampler="gamma", nfe=3, gamma=0.0, latents=latents, clamp=False)
    torch.testing.assert_close(made, mixture.flow(80 * latents, 80.0, 0.002), rtol=0, atol=1e-9)


def test_bent_model() -> None:
    """Its parameter bends F to (1 + a) F + b, and the derivative reaches it."""
    model = exact_model(three_modes())
    x = draws(three_modes(), 5, 1.0)
    straight = model.raw(x, 1.0)
    with torch.no_grad():
        model.output_weight.copy_(torch.tensor([0.25, -0.5]))
    torch.testing.assert_close(model.raw(x, 1.0), 1.25 * straight - 0.5)
    model.raw(x, 1.0).sum().backward()
    assert model.output_weight.grad is not None
    torch.testing.assert_close(model.output_weight.grad[0], straight.sum().detach())
    assert float(model.output_weight.grad[1]) == straight.numel()


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "means", "variances", "words"),
    [
        ([0.5, 0.5], (2, 1, 2), [1.0, 1.0], r"means \(K, C, H, W\)"),
        ([1.0], (2, 1, 1, 1), [1.0, 1.0], "K components"),
        ([0.5, 0.5], (2, 1, 1, 1), [1.0], "K components"),
        ([0.7, 0.7], (2, 1, 1, 1), [1.0, 1.0], "sum to 1"),
        ([1.5, -0.5], (2, 1, 1, 1), [1.0, 1.0], "positive"),
        ([0.5, 0.5], (2, 1, 1, 1), [1.0, -1.0], "not be negative"),
    ],
)
def test_numbers_that_are_no_mixture(
    weights: list[float], means: tuple[int, ...], variances: list[float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        GaussianMixture(torch.tensor(weights), torch.zeros(means), torch.tensor(variances))
