"""cd, ct, ctm_s0 and ctm_scratch against plain transcriptions of their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion.scalings import inner_coefficients
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.training import distances, ema, objectives
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective

SIZE, BATCH, N = 4, 8, 6


def network(seed: int, *, time_s: bool, inner: str = "edm") -> Trajectory:
    """A network with nothing zero in it: 4x4 images, one channel, three classes, float64."""
    torch.manual_seed(seed)
    made = weight_file.build_model(
        network=config.Network(
            model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=()
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


def objective(name: str, **changes: Any) -> CtmObjective:
    kind = objectives.find(name)
    described = {
        "objective": name,
        "grid_points": N,
        "training": {"steps": 1, "batch_size": BATCH},
    }
    section = config.Student.model_validate(described | changes)
    known = section.traits
    return kind(
        section=section,
        diffusion=config.Diffusion(),
        student=network(0, time_s=known.time_s, inner=known.inner),
        target=ema.frozen_copy(network(1, time_s=known.time_s, inner=known.inner)),
        teacher=ema.frozen_copy(network(2, time_s=False)) if known.teacher else None,
        distance=distances.build_distance(section.distance),
    )


def batch(step: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(BATCH, 1, SIZE, SIZE, dtype=torch.float64, generator=generator) * 2 - 1
    return Batch(images, torch.arange(BATCH) % 3, seed=5, step=step)


def wide(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


def consistency(model: Trajectory, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """f(x, t) of Song et al. (2023) from the raw network."""
    raw = model.model(
        x / wide((t**2 + 0.25).sqrt()), t.log() / 4, None, model._one_hot(y, x), None
    )
    c = inner_coefficients("cm", t)
    return wide(c.c_skip) * x + wide(c.c_out) * raw


def gradients(model: Trajectory) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["cd", "ct"])
def test_consistency_step(name: str) -> None:
    made, given = objective(name), batch()
    k, i, j = made.draw(given)
    assert k == 1 and bool((j == N - 1).all())
    t, u = made.grid[i], made.grid[i + 1]
    noise = given.normal("noise")
    x_t = given.images + wide(t) * noise
    if name == "ct":
        x_u = given.images + wide(u) * noise
    else:
        assert made.teacher is not None
        d = (x_t - made.teacher.denoise(x_t, t, given.labels)) / wide(t)
        x_u = x_t + wide(u - t) * d
        d_next = (x_u - made.teacher.denoise(x_u, u, given.labels)) / wide(u)
        x_u = x_t + wide(u - t) * (d + d_next) / 2
    other = objective(name).student
    target = consistency(made.target, x_u, u, given.labels).detach()
    loss = (consistency(other, x_t, t, given.labels) - target).square().flatten(1).mean()
    loss.backward()
    terms = made.backward(given, 1.0)
    assert terms["ctm"] == terms["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    same(gradients(made.student), gradients(other))
    # At u = sigma_min the target is x_u itself: f is the identity there.
    ends = i + 1 == N - 1
    assert bool(ends.any())
    torch.testing.assert_close(target[ends], x_u[ends])


def test_final_time_draws() -> None:
    made, usual = objective("ctm_s0"), objective("ctm")
    for step in range(5):
        given = batch(step)
        k, i, j = made.draw(given)
        assert (k, i.tolist()) == (usual.draw(given).k, usual.draw(given).i.tolist())
        assert bool((j == N - 1).all())
    terms = made.backward(batch(), 1.0)
    assert {"ctm", "dsm", "lambda_dsm"} <= terms.keys()
    assert made.evaluations["target"] == 0  # s = sigma_min: the outer map is the identity


@pytest.mark.parametrize("solver", ["jump", "heun"])
def test_scratch_solver(solver: str) -> None:
    made, given = objective("ctm_scratch", scratch_solver=solver), batch()
    drawn, grid, x_t = made.noised(given)
    x_u = made.earlier(given, x_t, grid, drawn)
    t, u, y = grid[drawn.i], grid[drawn.i + drawn.k], given.labels
    if solver == "jump":
        expected = made.target.G(x_t, t, u, y)
    else:
        expected = x_t
        for m in range(drawn.k):
            a, b = grid[drawn.i + m], grid[drawn.i + m + 1]
            d = (expected - made.target.denoise(expected, a, y)) / wide(a)
            euler = expected + wide(b - a) * d
            d_next = (euler - made.target.denoise(euler, b, y)) / wide(b)
            expected = expected + wide(b - a) * (d + d_next) / 2
    torch.testing.assert_close(x_u, expected, rtol=1e-9, atol=1e-12)
    assert made.evaluations["teacher"] == 0


@pytest.mark.parametrize("name", ["ctm", "cd", "ct", "ctm_s0", "ctm_scratch"])
def test_what_an_adversary_judges_is_the_estimate(name: str) -> None:
    made, given = objective(name), batch()
    drawn, grid, x_t = made.noised(given)
    _, estimate = made.estimate(given, x_t, grid, drawn)
    fake = made.generated(given)
    assert not fake.requires_grad
    assert torch.equal(fake, estimate.detach())
