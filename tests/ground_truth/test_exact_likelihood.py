"""Likelihood by the ODE against closed forms, and what each defect of the published script does.

Every expectation of a bias is derived from the Gaussian, never from a run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.diffusion.gaussian import GaussianMixture, MixtureNetwork, exact_model
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.evaluation.likelihood import LikelihoodProtocol, measure, published_protocol
from ctm_core.evaluation.likelihood.bits import DEQUANTISATION_BITS, bits_per_dim, dequantise
from ctm_core.evaluation.likelihood.ode import log_density, normal_log_density, signs
from ctm_core.models.generation import Generator

from .truth import DOUBLE, MIXTURE, SIGMA_MAX, SIGMA_MIN, draws

LN2 = math.log(2)
SIDE = 4
D = SIDE * SIDE
VARIANCE = 0.02


def bits(nats: Tensor, d: int) -> Tensor:
    return nats / (d * LN2)


def exact_density(mixture: GaussianMixture, x: Tensor, t: float = SIGMA_MIN) -> Tensor:
    """log q_t(x) of the exact flow from N(0, sigma_max²): p_t, corrected by the prior's ratio."""
    end = mixture.flow(x, t, SIGMA_MAX)
    ratio = normal_log_density(end, SIGMA_MAX) - mixture.log_density(end, SIGMA_MAX)
    return mixture.log_density(x, t) + ratio


def exact_prior(mixture: GaussianMixture) -> Any:
    return lambda x: mixture.log_density(x, SIGMA_MAX)


def one_gaussian() -> GaussianMixture:
    """4 × 4 pixels with means and variances of their own."""
    generator = torch.Generator().manual_seed(3)
    shape = (1, 1, SIDE, SIDE)
    means = 0.8 * torch.rand(shape, generator=generator, dtype=DOUBLE) - 0.4
    variances = 0.005 + 0.02 * torch.rand(shape, generator=generator, dtype=DOUBLE)
    return GaussianMixture(torch.ones(1), means, variances)


# -- the density --------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [one_gaussian(), MIXTURE], ids=["one Gaussian", "mixture"])
def test_closed_form_of_p_sigma_min(mixture: GaussianMixture) -> None:
    x, d = draws(64, SIGMA_MIN, mixture=mixture), mixture.means[0].numel()
    exact = mixture.log_density(x, SIGMA_MIN)
    model, prior = exact_model(mixture), exact_prior(mixture)
    coarse = log_density(model.denoise, x, prior=prior)
    fine = log_density(model.denoise, x, prior=prior, tolerance=1e-9)
    assert float(bits(fine.log_density - exact, d).abs().max()) < 1e-6
    assert abs(float(bits(coarse.log_density - exact, d).mean())) < 1e-4
    assert float(bits(coarse.log_density - exact, d).abs().max()) < 5e-3
    assert fine.evaluations > coarse.evaluations > 10
    # The path is the flow.
    flow = mixture.flow(x, SIGMA_MIN, SIGMA_MAX)
    torch.testing.assert_close(fine.end, flow, rtol=0, atol=1e-4)


def test_the_normal_prior_costs_what_is_stated() -> None:
    x = draws(64, SIGMA_MIN)
    model = exact_model(MIXTURE)
    end = MIXTURE.flow(x, SIGMA_MIN, SIGMA_MAX)
    ours = log_density(model.denoise, x, tolerance=1e-9).log_density
    cost = MIXTURE.log_density(end, SIGMA_MAX) - normal_log_density(end, SIGMA_MAX)
    torch.testing.assert_close(MIXTURE.log_density(x, SIGMA_MIN) - ours, cost, rtol=0, atol=1e-6)
    # In the mean it is the divergence from p_T, below the stated bound.
    many = draws(200_000, SIGMA_MAX)
    gap = MIXTURE.log_density(many, SIGMA_MAX) - normal_log_density(many, SIGMA_MAX)
    second = (MIXTURE.means.square() + MIXTURE.variances).flatten(1).mean(1) @ MIXTURE.weights
    bound = float(second) / (2 * SIGMA_MAX**2 * LN2)
    error = float(bits(gap, 2).std()) / len(gap) ** 0.5
    assert -4 * error < float(bits(gap, 2).mean()) < bound + 4 * error
    assert bound < 1e-4


def test_skilling_hutchinson_is_unbiased() -> None:
    x, count = draws(4, SIGMA_MIN, seed=5), 400
    model, prior = exact_model(MIXTURE), exact_prior(MIXTURE)
    exact = MIXTURE.log_density(x, SIGMA_MIN)
    repeated = x.repeat_interleave(count, 0)
    spread = {}
    for probes in (1, 4):
        seeds = signs(probes, "probes", list(range(len(repeated))), probes, MIXTURE.shape)
        made = log_density(model.denoise, repeated, probes=seeds, prior=prior, tolerance=1e-6)
        values = bits(made.log_density.view(4, count) - exact[:, None], 2)
        error = values.std(1) / count**0.5
        # 2 pixels have 2 distinct probes up to sign, so some images have hardly any spread.
        assert bool((values.mean(1).abs() < 4 * error + 1e-4).all())
        spread[probes] = values.std(1).max()
    assert float(spread[1]) > 0.05
    assert float(spread[1] / spread[4]) == pytest.approx(2, rel=0.15)


def test_one_probe_is_exact_where_the_jacobian_is_diagonal() -> None:
    mixture = one_gaussian()
    x = draws(8, SIGMA_MIN, mixture=mixture)
    probes = signs(0, "probes", list(range(8)), 1, mixture.shape)
    model = exact_model(mixture)
    by_probe = log_density(model.denoise, x, probes=probes, tolerance=1e-8)
    by_axes = log_density(model.denoise, x, tolerance=1e-8)
    torch.testing.assert_close(by_probe.log_density, by_axes.log_density, rtol=0, atol=1e-5)


def test_invariances() -> None:
    """Coordinates, the order of pixels, and mirroring data with model leave the density alone."""
    x = draws(16, SIGMA_MIN)
    model = exact_model(MIXTURE)

    def at(model: Trajectory, x: Tensor, **options: float) -> Tensor:
        return log_density(model.denoise, x, tolerance=1e-9, **options).log_density

    value = at(model, x)
    for sigma_data in (0.1, 2.0):
        torch.testing.assert_close(at(model, x, sigma_data=sigma_data), value, rtol=0, atol=1e-6)
    swapped = GaussianMixture(MIXTURE.weights, MIXTURE.means.flip(-1), MIXTURE.variances.flip(-1))
    torch.testing.assert_close(at(exact_model(swapped), x.flip(-1)), value, rtol=0, atol=1e-6)
    negative = GaussianMixture(MIXTURE.weights, -MIXTURE.means, MIXTURE.variances)
    torch.testing.assert_close(at(exact_model(negative), -x), value, rtol=0, atol=1e-6)
    # Two independent pixels: the log density of the pair is the sum.
    parts = [
        GaussianMixture(
            torch.ones(1), MIXTURE.means[:1, ..., i : i + 1], MIXTURE.variances[:1, ..., i : i + 1]
        )
        for i in (0, 1)
    ]
    pair = GaussianMixture(torch.ones(1), MIXTURE.means[:1], MIXTURE.variances[:1])
    added = sum(at(exact_model(part), x[..., i : i + 1]) for i, part in enumerate(parts))
    torch.testing.assert_close(added, at(exact_model(pair), x), rtol=0, atol=1e-6)


# -- levels -------------------------------------------------------------------------------------


def test_uniform_levels_score_eight_bits() -> None:
    """Images uniform over all dequantised values, whose denoiser is a truncated normal's mean."""
    low, high = -1 - 1 / 255, 1 + 1 / 255

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, b = (low - x) / t, (high - x) / t
        mass = torch.special.ndtr(b) - torch.special.ndtr(a)
        density = [(-0.5 * end**2).exp() / math.sqrt(2 * math.pi) for end in (a, b)]
        return x + t * (density[0] - density[1]) / mass

    def prior(x: Tensor) -> Tensor:
        a, b = (low - x) / SIGMA_MAX, (high - x) / SIGMA_MAX
        mass = torch.special.ndtr(b) - torch.special.ndtr(a)
        return (mass / (high - low)).log().flatten(1).sum(1)

    generator = torch.Generator().manual_seed(0)
    # Away from both ends, where sigma_min rounds the edges of the density.
    levels = torch.randint(3, 253, (20, 1, 2, 2), generator=generator, dtype=torch.uint8)
    x = dequantise(levels, torch.rand(levels.shape, generator=generator, dtype=DOUBLE))
    for law, allowed in ((prior, 1e-6), (None, 1e-4)):
        solved = log_density(denoise, x, prior=law, tolerance=1e-9)
        assert float((bits_per_dim(solved.log_density, 4) - 8).abs().max()) < allowed


def levels_of(mixture: GaussianMixture, count: int) -> np.ndarray[Any, Any]:
    x = draws(count, 0.0, mixture=mixture)
    levels = ((x + 1 + 1 / 255) * 127.5).floor()
    assert float(levels.min()) >= 0 and float(levels.max()) <= 255
    return levels.to(torch.uint8).numpy()


def data_and_model(
    mixture: GaussianMixture, count: int, dropout: float = 0.0
) -> tuple[Generator, Dataset]:
    """Levels drawn from a mixture as a data set, and the exact model as from a weight file."""
    images = levels_of(mixture, count)
    manifest = {"name": "gaussian", "split": "train", "classes": 0}
    data = Dataset(Path("gaussian"), images, np.zeros(count, np.int64), manifest)
    network = Dropped(MixtureNetwork(mixture), dropout)
    record = {
        "channels": 1,
        "resolution": images.shape[-1],
        "label_dim": 0,
        "dataset": "gaussian",
        "diffusion": {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "rho": 7.0},
    }
    return Generator(Trajectory(network).eval(), record), data


class Dropped(nn.Module):
    """A raw network with dropout on its output."""

    time_s, label_dim = True, 0

    def __init__(self, network: MixtureNetwork, rate: float) -> None:
        super().__init__()
        self.network = network
        self.dropout = nn.Dropout(rate)

    def forward(self, *arguments: Any) -> Tensor:
        made: Tensor = self.dropout(self.network(*arguments))
        return made


def rows(law: Any, stream: str, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draws of the images of given indices, as the measurement must make them."""
    return torch.cat([law(0, stream, 0, i, 1, shape) for i in indices.tolist()]).double()


def test_measured_bits_are_the_closed_form() -> None:
    mixture = one_gaussian()
    generator, data = data_and_model(mixture, 100)
    made = measure(
        generator, data, protocol=LikelihoodProtocol(probes=0, tolerance=1e-7), batch_size=32
    )
    levels, _ = data.batch(made.indices)
    assert sorted(made.indices.tolist()) == list(range(100))
    x = dequantise(levels, rows(randomness.uniform, "dequantise", made.indices, mixture.shape))
    exact = -bits(exact_density(mixture, x), D) + DEQUANTISATION_BITS
    assert float((made.bits - exact).abs().max()) < 1e-5
    # The prior N(0, 80²) moves single images a little, and their mean hardly.
    free = -bits(mixture.log_density(x, SIGMA_MIN), D) + DEQUANTISATION_BITS
    gap = made.bits - free
    assert float(gap.abs().max()) < 5e-3
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 10 + made.mismatch
    # And these are the entropy of the data, up to what 100 images can tell.
    entropy = 0.5 * (2 * math.pi * math.e * mixture.variances).log2().mean() + DEQUANTISATION_BITS
    assert abs(made.mean - float(entropy)) < 4 * made.standard_error
    # One probe has the same mean: the Jacobian is diagonal.
    probed = measure(generator, data, batch_size=100)
    torch.testing.assert_close(probed.bits, made.bits, rtol=0, atol=2e-3)


def test_reconstruction_residual() -> None:
    """A bound on the data's own density, tight to second order in sigma_min."""
    mixture = one_gaussian()
    generator, data = data_and_model(mixture, 100)
    protocol = LikelihoodProtocol(residual="reconstruction", tolerance=1e-7)
    made = measure(generator, data, protocol=protocol)
    levels, _ = data.batch(made.indices)
    clean = dequantise(levels, rows(randomness.uniform, "dequantise", made.indices, mixture.shape))
    noise = rows(randomness.normal, "likelihood noise", made.indices, mixture.shape)
    at = clean + SIGMA_MIN * noise
    squares = (clean - mixture.denoise(at, SIGMA_MIN)).square().flatten(1).sum(1)
    residual = (noise.square().flatten(1).sum(1) - squares / SIGMA_MIN**2) / 2
    exact = -bits(exact_density(mixture, at) + residual, D) + DEQUANTISATION_BITS
    assert float((made.bits - exact).abs().max()) < 1e-5
    own = -bits(mixture.log_density(clean, 0.0), D) + DEQUANTISATION_BITS
    gap = made.bits - own
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 10 + 1e-4


@pytest.mark.parametrize("options", [{}, {"published": True}], ids=["ours", "published"])
def test_an_images_value_does_not_hang_on_its_batch(options: dict[str, Any]) -> None:
    """Exactly the same draws; the shared steps of the solver move it within their tolerance."""
    generator, data = data_and_model(one_gaussian(), 40)
    protocol = LikelihoodProtocol(**options)
    whole = measure(generator, data, protocol=protocol, batch_size=40)
    split = measure(generator, data, protocol=protocol, batch_size=7)
    few = measure(generator, data, count=9, protocol=protocol, batch_size=40)
    assert torch.equal(whole.indices, split.indices)
    assert torch.equal(whole.indices[:9], few.indices)
    allowed = 1e-2 if options else 1e-3
    assert float((whole.bits - split.bits).abs().max()) < allowed
    assert float((whole.bits[:9] - few.bits).abs().max()) < allowed
    assert len(split.evaluations) == 6 and len(whole.evaluations) == 1
    again = measure(generator, data, protocol=protocol, batch_size=40)
    assert torch.equal(again.bits, whole.bits)
    other = measure(generator, data, protocol=LikelihoodProtocol(seed=1, **options), batch_size=40)
    assert float((other.bits.sort()[0] - whole.bits.sort()[0]).abs().max()) > allowed


# -- the published protocol ---------------------------------------------------------------------


START, _ = published_protocol.warped_sigma(published_protocol.START, SIGMA_MIN, SIGMA_MAX, 7.0)
WRONG = START ** (1 / 7)


def isotropic(mean: Tensor | None = None) -> GaussianMixture:
    means = torch.zeros(1, 1, SIDE, SIDE, dtype=DOUBLE) if mean is None else mean
    return GaussianMixture(torch.ones(1), means, torch.tensor([VARIANCE], dtype=DOUBLE))


def published_draws(mixture: GaussianMixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise and signs."""
    noise = randomness.normal(9, "noise", 0, 0, count, mixture.shape).double()
    probe = signs(9, "probe", list(range(count)), 1, mixture.shape)[0]
    return draws(count, 0.0, mixture=mixture), noise, probe


def test_the_two_deviations() -> None:
    assert pytest.approx(0.00205, abs=5e-6) == START
    assert pytest.approx(0.413, abs=5e-4) == WRONG
    for t in (published_protocol.START, 0.3, 1.0):
        sigma, speed = published_protocol.warped_sigma(t, SIGMA_MIN, SIGMA_MAX, 7.0)
        low, high = SIGMA_MIN ** (1 / 7), SIGMA_MAX ** (1 / 7)
        assert sigma == pytest.approx((low + t * (high - low)) ** 7)
        step = 1e-6
        ends = [
            published_protocol.warped_sigma(t + h, SIGMA_MIN, SIGMA_MAX, 7.0)[0]
            for h in (step, -step)
        ]
        assert speed == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_published_density_is_that_of_the_noisy_image() -> None:
    mixture = isotropic()
    x, noise, probe = published_draws(mixture, 100)
    denoise = exact_model(mixture).denoise
    exact = exact_density(mixture, x + START * noise, START)
    fine = published_protocol.log_density(denoise, x, noise, probe, tolerance=1e-8)
    assert float(bits(fine.log_density - exact, D).abs().max()) < 1e-5
    # The script's own tolerance of 1e-3 costs accuracy.
    rough = published_protocol.log_density(denoise, x, noise, probe)
    assert 1e-3 < float(bits(rough.log_density - exact, D).abs().max()) < 2e-2
    assert rough.evaluations < fine.evaluations / 4


@pytest.mark.parametrize(
    ("reading", "level", "deviation", "sampled"),
    [
        ("own_noise", WRONG, WRONG, False),
        ("shared_noise", START, WRONG, False),
        ("shared_noise_sampled", START, WRONG, True),
        ("consistent", START, START, False),
    ],
)
def test_bias_of_the_residual(reading: str, level: float, deviation: float, sampled: bool) -> None:
    """E R = d/2 (e - V σ²/((V + σ²) ς²)), e = 1 or σ²/ς²: the posterior variance over ς²."""
    mixture, count = isotropic(), 4000
    x, noise, _ = published_draws(mixture, count)
    made = published_protocol.published_residual(
        exact_model(mixture).denoise, x, noise, reading=reading
    )
    posterior = VARIANCE * level**2 / (VARIANCE + level**2)
    energy = (level / deviation) ** 2 if sampled else 1.0
    predicted = (energy - posterior / deviation**2) / (2 * LN2)
    error = float(bits(made, D).std()) / count**0.5
    assert float(bits(made, D).mean()) == pytest.approx(predicted, abs=4 * error + 1e-12)
    # What the defect does to the reported bits, against the term as it should be: up to 0.72.
    right = (1 - VARIANCE / (VARIANCE + START**2)) / (2 * LN2)
    shift = -(predicted - right)
    expected = {
        "own_noise": -(WRONG**2 / (VARIANCE + WRONG**2)) / (2 * LN2),
        "shared_noise": -1 / (2 * LN2),
        "shared_noise_sampled": 0.0,
        "consistent": 0.0,
    }
    assert shift == pytest.approx(expected[reading], abs=START**2 / VARIANCE)


def test_dropout_in_train_mode() -> None:
    """Defect: noise on F of variance F² p/(1 - p). Its part in the residual has a closed form."""
    mixture, rate, count = isotropic(), 0.13, 4000
    x, noise, probe = published_draws(mixture, count)
    model = Trajectory(Dropped(MixtureNetwork(mixture), rate)).eval()
    clean = published_protocol.published_residual(model.denoise, x, noise)
    with published_protocol.dropping_out(model, 0, 0):
        assert model.training
        dropped = published_protocol.published_residual(model.denoise, x, noise)
    assert not model.training
    c_out2 = (WRONG * 0.5) ** 2 / (WRONG**2 + 0.25)
    at = torch.tensor(WRONG, dtype=DOUBLE)
    raw = model.raw(x + WRONG * noise, at).detach().square().flatten(1).mean(1)
    predicted = -c_out2 * raw * rate / (1 - rate) / (2 * WRONG**2 * LN2)
    gap = bits(dropped - clean, D)
    error = float((gap - predicted).std()) / count**0.5
    assert float(gap.mean()) == pytest.approx(float(predicted.mean()), abs=4 * error)
    assert abs(float(predicted.mean())) > 4 * error
    # Along the ODE it scatters what is exact without it, by far more than the solver's error.
    few = slice(0, 100)
    exact = mixture.log_density(x[few] + START * noise[few], START)
    scatter = {}
    for name, context in (("eval", 0), ("train", 1)):
        if context:
            with published_protocol.dropping_out(model, 0, 0):
                made = published_protocol.log_density(
                    model.denoise, x[few], noise[few], probe[few]
                )
        else:
            made = published_protocol.log_density(model.denoise, x[few], noise[few], probe[few])
        scatter[name] = float(bits(made.log_density - exact, D).std())
    assert scatter["train"] > 20 * scatter["eval"]


def test_flips_of_the_training_set() -> None:
    """Defect: a mirrored image of a law that is not symmetric costs ‖m - m'‖²/(2 (V + σ²))."""
    mean = torch.linspace(-0.25, 0.25, SIDE, dtype=DOUBLE).expand(1, 1, SIDE, SIDE)
    mixture = isotropic(mean)
    generator, data = data_and_model(mixture, 200)
    made = measure(
        generator, data, protocol=LikelihoodProtocol(published=True, reading="consistent")
    )
    mirrored = rows(randomness.uniform, "flip", made.indices, ()) < 0.5
    levels, _ = data.batch(made.indices)
    images = levels.double() / 127.5 - 1
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    noise = rows(randomness.normal, "likelihood noise", made.indices, mixture.shape)
    at = images + START * noise
    squares = (images - mixture.denoise(at, START)).square().flatten(1).sum(1)
    residual = D / 2 - squares / (2 * START**2)
    exact = -bits(exact_density(mixture, at, START) + residual, D) + 7
    # The solver's tolerance of 1e-3 tells on images that the law does not expect.
    assert float(((made.bits - exact) / exact).abs().max()) < 1e-2
    # In the mean over images:
    cost = float((mean - mean.flip(-1)).square().sum()) / (2 * (VARIANCE + START**2)) / (D * LN2)
    straight, turned = made.bits[~mirrored], made.bits[mirrored]
    error = math.hypot(
        float(straight.std()) / len(straight) ** 0.5, float(turned.std()) / len(turned) ** 0.5
    )
    assert float(turned.mean() - straight.mean()) == pytest.approx(cost, abs=4 * error)
    assert cost > 10 * error


def test_the_published_number_of_a_gaussian() -> None:
    """All of it: entropy under sigma(1e-3), the residual by its reading, and 7 bits, not 6.994."""
    mixture = isotropic()
    generator, data = data_and_model(mixture, 400)
    made = measure(generator, data, protocol=LikelihoodProtocol(published=True))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * (VARIANCE + START**2))
    residual = WRONG**2 / (VARIANCE + WRONG**2) / (2 * LN2)
    predicted = entropy - residual + 7
    assert made.mean == pytest.approx(predicted, abs=4 * made.standard_error)
    ours = measure(generator, data)
    gap = made.mean - ours.mean
    expected = -residual + 7 - DEQUANTISATION_BITS
    assert gap == pytest.approx(expected, abs=4 * made.standard_error)
    assert expected < -0.4 and 4 * made.standard_error < 0.1
