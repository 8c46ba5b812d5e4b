"""IMM against plain transcriptions of its formulas, and at the exact solution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion.gaussian import exact_model, three_modes
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.training import distances
from ctm_core.training.batches import Batch
from ctm_core.training.objectives import imm
from ctm_core.training.objectives.imm import InductiveMomentMatching

DOUBLE = torch.float64
BATCH, GROUP = 6, 3


def network(**changes: Any) -> Trajectory:
    """4x4 images, one channel, three classes; nothing zero in it."""
    torch.manual_seed(0)
    sizes = {"model_channels": 4, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    made = weight_file.build_model(
        network=config.Network(**sizes | changes),
        diffusion=config.Diffusion(),
        resolution=4,
        channels=1,
        label_dim=3,
        time_s=True,
    ).double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return made


def objective(student: Trajectory, **settings: Any) -> InductiveMomentMatching:
    described = {
        "objective": "imm",
        "training": {"steps": 1, "batch_size": 4096 * GROUP},
        "settings": {"group_size": GROUP} | settings,
    }
    return InductiveMomentMatching(
        section=config.Student.model_validate(described),
        diffusion=config.Diffusion(),
        student=student,
        distance=distances.build_distance("l2"),
    )


def batch(start: int = 0, size: int = BATCH) -> Batch:
    images = torch.rand(BATCH, 1, 4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(BATCH) % 3
    cut = slice(start, start + size)
    return Batch(2 * images[cut] - 1, labels[cut], seed=5, step=7, start=start)


def wide(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


def kernel(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return torch.exp(-scale * (a - b).norm() / a.numel())


def test_the_map_is_ctms_jump() -> None:
    model, given = network(), batch()
    t, s = torch.linspace(0.1, 0.99, BATCH, dtype=DOUBLE), torch.full((BATCH,), 0.05, dtype=DOUBLE)
    x_t = imm.noised(given.images, given.normal("noise"), t, 0.5)
    x, sigma, end = x_t / wide(1 - t), 0.5 * t / (1 - t), 0.5 * s / (1 - s)
    raw = model.raw(x, sigma, end, given.labels)
    ours = imm.pushed("simple_edm", -raw, x_t, t, s, 0.5)
    torch.testing.assert_close(ours, wide(1 - s) * model.jump(raw, x, sigma, end))


def test_r_is_a_constant_step_of_sigma_that_ends_at_zero() -> None:
    t = torch.tensor([0.99, 0.5, 0.1], dtype=DOUBLE)
    sigma = 0.5 * imm.eta(imm.earlier(t, 10))
    torch.testing.assert_close(sigma, (0.5 * imm.eta(t) - 80 / 2**10).clamp(min=0))
    assert imm.earlier(t, 0).tolist() == [0, 0, 0]  # where eta - 160 < -1 has an inverse above 1


def test_draws_are_of_groups() -> None:
    made = objective(network())
    t, s, r = made.draw(batch())
    for times in (t, s, r):
        first, second = times.split(GROUP)
        assert len(set(first.tolist())) == len(set(second.tolist())) == 1 and first[0] != second[0]
    assert bool((s <= r).all() and (r < t).all())
    assert torch.equal(made.draw(batch(GROUP, GROUP)).t, t[GROUP:])
    levels = 0.5 * imm.eta(made.draw(Batch(torch.zeros(9000, 1, 1, 1), None, seed=0, step=0)).t)
    assert 0.002 <= levels.min() < 0.01 and 40 < levels.max() <= 80


def test_step() -> None:
    model, given = network(), batch()
    made = objective(model, a=2.0, b=4.0)
    t, s, r = made.draw(given)
    noise = given.normal("noise")

    def push(time: Tensor) -> Tensor:
        x = given.images + wide(0.5 * time / (1 - time)) * noise
        levels = (0.5 * v / (1 - v) for v in (time, s))
        return wide(1 - s) * model.G(x, *levels, given.labels)

    y, target = push(t), push(r).detach()
    losses = []
    for start in range(0, BATCH, GROUP):
        a, b = y[start : start + GROUP], target[start : start + GROUP]
        t_g, s_g = t[start], s[start]
        n = ((1 - t_g) ** 2 + t_g**2).sqrt()
        scale = n / ((t_g - s_g) * 0.5)
        pairs = [(i, j) for i in range(GROUP) for j in range(GROUP) if i != j]
        same: Tensor = sum((kernel(a[i], a[j], scale) for i, j in pairs), start=y.new_zeros(()))
        same = same + sum(kernel(b[i], b[j], scale) for i, j in pairs)
        same = same + 2 * GROUP * torch.exp(-scale * 1e-8 / 16)  # the diagonal, at the floor
        cross = sum(kernel(a[i], b[j], scale) for i in range(GROUP) for j in range(GROUP))
        snr = 2 * ((1 - t_g) / t_g).log()
        w = 0.5 * torch.sigmoid(4 - snr) * 2 / (t_g * (1 - t_g)) * (1 - t_g) ** 2 / n**2
        losses.append(w * (same - 2 * cross) / GROUP**2)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(torch.stack(losses).mean(), parameters, allow_unused=True)

    terms = made.backward(given, 1.0)
    assert float(terms["imm"]) == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    for parameter, gradient in zip(parameters, expected, strict=True):
        wanted = torch.zeros_like(parameter) if gradient is None else gradient
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-10)
    assert made.evaluations == {"student": 2 * BATCH}

    model.zero_grad()
    parts = [made.backward(batch(start, GROUP), 0.5) for start in (0, GROUP)]
    assert sum(float(part["imm"]) for part in parts) / 2 == pytest.approx(float(terms["imm"]))
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-10)


def test_equal_images_have_no_gradient_of_their_distance() -> None:
    y = torch.ones(1, 2, 1, 2, 2, requires_grad=True)
    imm.v_statistic(y, torch.ones(1, 2, 1, 2, 2), torch.ones(1)).sum().backward()
    assert y.grad is not None and bool((y.grad == 0).all())


def test_small_differences_keep_their_digits() -> None:
    y, target = (1 + 1e-4 * torch.randn(1, 4, 3, 8, 8, dtype=DOUBLE) for _ in range(2))
    exact, single = (
        imm.v_statistic(y.to(kind), target.to(kind), torch.ones(1))
        for kind in (DOUBLE, torch.float32)
    )
    assert float(single) == pytest.approx(float(exact), rel=5e-2)  # 1e-7 of float32's 1 would be 1


def test_both_passes_drop_the_same() -> None:
    model = network(dropout=0.5).train()
    made, given = objective(model, k=40.0), batch()  # r = t, so that y and its target are equal
    assert float(made.backward(given, 1.0)["imm"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [9.0])
def test_the_statistic_of_the_exact_map_falls_as_one_over_m(k: float) -> None:
    law, count = three_modes(), 512
    uniform = torch.rand(count, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(count, 1, 1, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    images = law.sample(uniform, noise)
    made = objective(exact_model(law, tolerance=1e-6), k=k)
    given = Batch(images, None, seed=3, step=0)
    t, s = torch.full((count,), 0.6, dtype=DOUBLE), torch.full((count,), 0.2, dtype=DOUBLE)
    r = torch.maximum(s, imm.earlier(t, k))
    with torch.no_grad():
        y, target = (made.pushed(given, given.normal("noise"), time, s)[1] for time in (t, r))
    scale = (1 / imm.coefficients("simple_edm", t, s, 0.5).c_out).abs()
    # In expectation the diagonal alone: 2 (1 - E K(y, y⁻)) / M.
    diagonal = float(-2 * imm.kernel_minus_one(y[:, None], target[:, None], scale).mean())
    for size in (2, 8, 32):
        groups = (v.view(-1, size, *v.shape[1:]) for v in (y, target))
        mean = float(imm.v_statistic(*groups, scale[: count // size]).mean())
        assert size * mean == pytest.approx(diagonal, rel=0.35)
