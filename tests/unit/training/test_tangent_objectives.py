"""sCM, MeanFlow and AYF: against their papers' variables, and at the exact solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jvp

from ctm_core import config
from ctm_core.diffusion.gaussian import GaussianMixture, exact_model
from ctm_core.diffusion.tangent import pair_output, tangent
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.training import distances, ema, objectives
from ctm_core.training.batches import Batch
from ctm_core.training.objectives import ayf, meanflow, scd

SIZE, BATCH, SD = 4, 8, 0.5
LAST = 5  #: the step of the batches


def network(seed: int, *, time_s: bool, inner: str = "edm") -> Trajectory:
    """A network with nothing zero in it: 4x4 images, one channel, three classes, float64."""
    torch.manual_seed(seed)
    made = weight_file.build_model(
        network=config.Network(
            model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.2
        ),
        diffusion=config.Diffusion(),
        resolution=SIZE,
        channels=1,
        label_dim=3,
        time_s=time_s,
        inner=inner,
    ).double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return made


def objective(name: str, *, weak: bool = False, **settings: Any) -> Any:
    described = {
        "objective": name,
        "settings": settings,
        "training": {"steps": 1, "batch_size": BATCH},
    }
    section = config.Student.model_validate(described)
    known = section.traits
    return objectives.find(name)(
        section=section,
        diffusion=config.Diffusion(),
        student=network(0, time_s=known.time_s, inner=known.inner),
        teacher=ema.frozen_copy(network(2, time_s=False)).eval() if known.teacher else None,
        second=ema.frozen_copy(network(3, time_s=False)).eval() if weak else None,
        distance=distances.build_distance("l2"),
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(BATCH, 1, SIZE, SIZE, dtype=torch.float64, generator=generator) * 2 - 1
    return Batch(images, torch.arange(BATCH) % 3, seed=5, step=LAST)


def wide(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


def backward(made: Any, given: Batch) -> Any:
    torch.manual_seed(LAST)  # of the dropout masks, as the loop does
    return made.backward(given, 1.0)


def gradients(model: Trajectory) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    total = torch.cat([value.flatten() for value in theirs.values()]).norm()
    assert total > 1e-3
    for name, value in ours.items():
        assert float((value - theirs[name]).norm() / total) < 1e-9, name


# -- in the papers' variables --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scd", "sct"])
def test_consistency_in_trigflow(name: str) -> None:
    """f(x̂, τ) = cos τ x̂ - sin τ σ_d F, its derivative by torch.func along dx̂/dτ."""
    made, given = objective(name, warmup=2 * LAST, norm="printed"), batch()
    t, noise, y = made.times(given), given.normal("noise"), given.labels
    other, tau = objective(name).student, wide((t / SD).atan())
    x0, z = given.images, SD * noise
    x_hat = tau.cos() * x0 + tau.sin() * z

    def raw(x_hat: Tensor, tau: Tensor) -> Tensor:
        torch.manual_seed(LAST)
        return -other.raw(x_hat / tau.cos(), (SD * tau.tan()).flatten(), None, y)

    if name == "scd":
        noisy = x_hat / tau.cos()
        assert made.teacher is not None
        denoised = made.teacher.denoise(noisy, t, y)
        velocity = tau.cos() / tau.sin() * x_hat - denoised / tau.sin()
    else:
        velocity = tau.cos() * z - tau.sin() * x0
    with torch.no_grad():
        f, slope = jvp(raw, (x_hat, tau), (velocity, torch.ones_like(tau)))
        c, s, r = tau.cos(), tau.sin(), 0.5
        g = -(c**2) * (SD * f - velocity) - r * c * s * (x_hat + SD * slope)
        g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 0.1)
    out = raw(x_hat, tau)
    w = -made.modules["log_variance"](t)
    squares = (out - f - g).square().flatten(1).sum(1)
    loss = (w.exp() / x0[0].numel() * squares - w).mean()
    loss.backward()
    own = made.modules["log_variance"].linear
    expected = own.weight.grad.clone(), own.bias.grad.clone()
    own.zero_grad()
    terms = backward(made, given)
    assert float(terms[name]) == pytest.approx(float(loss.detach()), rel=1e-9)
    assert terms["warmup"] == 0.5
    same(gradients(made.student), gradients(other))
    torch.testing.assert_close((own.weight.grad, own.bias.grad), expected)
    # The value of the squared part is that of ĝ alone, whose norm is below 1.
    torch.testing.assert_close(squares.detach(), g.square().flatten(1).sum(1))


def test_prior_and_norm_of_consistency_distillation() -> None:
    g, t = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0.5, 1.0, 4.0]).double()
    released = scd.normalised(g, "released")
    rms = wide(g.square().flatten(1).mean(1).sqrt())
    torch.testing.assert_close(released, g / (rms + 0.1))
    raw, zero = torch.zeros_like(g).requires_grad_(), torch.zeros(3).double()
    plain, weighted = scd.loss(raw, g, zero), scd.loss(raw, g, zero, 1 / t)
    torch.testing.assert_close(weighted, plain / t)
    values = [backward(objective("scd", prior=prior), batch()) for prior in ("one", "inverse")]
    assert values[0]["scd"] != values[1]["scd"]
    assert scd.warmup(3, 0) == scd.warmup(10, 10) == 1 and scd.warmup(0, 10) == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("meanflow", {}),
        ("meanflow", {"times": "v0", "p": 0.0}),
        ("meanflow_native", {"equal": 1.0}),
        ("meanflow_native", {}),
        ("meanflow_distilled", {"p": 1.0}),
        ("imeanflow", {}),
        ("ayf", {"warmup": 2 * LAST}),
        ("ayf", {"warmup": 0, "guidance": 3.0}),
    ],
)
def test_average_velocity_in_linear_time(name: str, settings: dict[str, Any]) -> None:
    """u = (z - g)/t, or F itself, and du/dt by torch.func along (v, 1, 0)."""
    weak = "guidance" in settings
    made, given = objective(name, weak=weak, **settings), batch()
    other, y, noise = objective(name).student, given.labels, given.normal("noise")
    t, r = (wide(time / (1 + time)) for time in made.times(given))
    z, pair = (1 - t) * given.images + t * noise, noise - given.images

    def average(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        torch.manual_seed(LAST)
        if name == "meanflow_native":
            hot = torch.nn.functional.one_hot(given.labels, 3).to(z)  # type: ignore[arg-type]
            return other.model(z, t.flatten(), (t - r).flatten(), hot, None)  # type: ignore[no-any-return]
        sigma, end = ((time / (1 - time)).flatten() for time in (t, r))
        return (z - other.g(z / (1 - t), sigma, end, y)) / t

    def teacher(network: Trajectory | None) -> Tensor:
        assert network is not None
        return (z - network.denoise(z / (1 - t), (t / (1 - t)).flatten(), y)) / t

    with torch.no_grad():
        v = pair
        if name in ("meanflow_distilled", "ayf"):
            v = teacher(made.teacher)
        if weak:
            v = 3 * v - 2 * teacher(made.second)
        if name == "imeanflow":
            v = average(z, t, t)
        u, slope = jvp(average, (z, t, r), (v, torch.ones_like(t), torch.zeros_like(r)))
    out = average(z, t, r)
    if name == "ayf":
        share = 0.99 if weak else 0.99 * 0.5
        a = v - u - share * (t - r) * slope
        a = a / (wide(a.flatten(1).norm(dim=1)) + 0.1)
        loss = (out - u - a).square().flatten(1).sum(1)
    else:
        target = (pair if name == "imeanflow" else v) - (t - r) * slope
        squares = (out - target).square().flatten(1).sum(1)
        p, epsilon = (made.number(key) for key in ("p", "epsilon"))
        loss = squares / (squares.detach() + epsilon) ** p
    loss.mean().backward()
    terms = backward(made, given)
    assert float(terms[name]) == pytest.approx(float(loss.mean().detach()), rel=1e-9)
    same(gradients(made.student), gradients(other))
    assert made.teacher is None or all(p.grad is None for p in made.teacher.parameters())


# -- draws ---------------------------------------------------------------------------------------


def test_times_of_average_velocities() -> None:
    u = torch.rand(3, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for law, mean in (("v0", None), ("v1", -0.6), ("improved", None)):
        t, r = meanflow.draw_times([*u], law, 0.25)
        assert bool((r <= t).all()) and 0.2 < float((r == t).double().mean()) < 0.35
        if mean is not None:
            assert float(t.log().mean()) == pytest.approx(mean, abs=0.1)
    t, r = ayf.draw_times(u[0], u[1], -0.8, 1.0)
    gap = meanflow.linear(t) - meanflow.linear(r)
    assert float(gap.logit().mean()) == pytest.approx(-0.8, abs=0.1)
    assert bool((r > 0).all()) and bool((meanflow.linear(t) < 1).all())
    for name in ("meanflow", "ayf"):
        for time in objective(name).times(batch()):
            assert float(time.min()) >= 0.002 and float(time.max()) <= 80
    same_times = objective("imeanflow", equal=1.0).times(batch())
    assert torch.equal(*same_times)


# -- at the exact solution -----------------------------------------------------------------------

#: One Gaussian of one pixel, whose flow is known in closed form.
MEAN, VARIANCE = 0.3, 0.04
TIMES = torch.tensor([0.05, 0.3, 1.0, 8.0], dtype=torch.float64)
START = torch.tensor([0.2, 0.5, -0.4, 6.0], dtype=torch.float64).view(-1, 1, 1, 1)
ENDS = TIMES / 3


def exact() -> Trajectory:
    weight, mean, variance = torch.tensor([[1.0], [MEAN], [VARIANCE]], dtype=torch.float64)
    return exact_model(GaussianMixture(weight, *(v.view(1, 1, 1, 1) for v in (mean, variance))))


def of_pairs(value: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over x_0 given x of a function of the pair's output, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    weights /= math.sqrt(2 * math.pi)
    t2 = wide(TIMES) ** 2
    mean = (MEAN * t2 + VARIANCE * START) / (VARIANCE + t2)
    deviation = (VARIANCE * t2 / (VARIANCE + t2)).sqrt()
    total = torch.zeros_like(START)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        x0 = mean + node * deviation
        total += weight * value(pair_output("edm", x0, (START - x0) / wide(TIMES), TIMES, SD))
    return total


def test_consistency_tangent_vanishes_at_the_exact_solution() -> None:
    model, end = exact(), torch.full_like(TIMES, 1e-12)
    path = model.raw(START, TIMES).detach()

    def slope(path: Tensor, r: float = 1.0) -> Tensor:
        raw, derivative = tangent(model, START, TIMES, end, path)
        return scd.slope(raw, derivative, path, START, TIMES, r, SD)

    assert float(slope(path).abs().max()) < 1e-9
    assert float(slope(path, 0.5).abs().max()) > 1e-3  # the warm-up's is not zero
    assert float(of_pairs(slope).abs().max()) < 1e-9  # a single pair's is not
    assert float(of_pairs(lambda path: slope(path).abs()).min()) > 1e-3


def test_average_velocity_is_consistent_at_the_exact_solution() -> None:
    model = exact()
    path = model.raw(START, TIMES).detach()
    of = meanflow.velocity("edm", TIMES, START, SD)
    z = START / wide(1 + TIMES)
    gap = wide(meanflow.linear(TIMES) - meanflow.linear(ENDS))

    def error(path: Tensor, share: float = 1.0) -> Tensor:
        raw, derivative = tangent(model, START, TIMES, ENDS, path)
        slope = gap * of.slope(raw, derivative, path, z)
        return ayf.tangent_of(of.of(raw, z), of.of(path, z), slope, share)

    assert float(error(path).abs().max()) < 1e-9
    assert float(of_pairs(error).abs().max()) < 1e-9
    raw = model.raw(START, TIMES, ENDS).detach()
    difference = of.of(path, z) - of.of(raw, z)
    torch.testing.assert_close(error(path, 0.99), 0.01 * difference, rtol=1e-6, atol=1e-9)
    assert float(error(path, 0.0).abs().max()) > 1e-2
