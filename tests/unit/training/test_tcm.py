"""The second stage of truncated consistency models: its times, its two means, its two networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.small_steps import batch, gradients, network
from scipy import stats

from ctm_core import config
from ctm_core.runtime.errors import UserError
from ctm_core.training import distances, objectives
from ctm_core.training.batches import Batch
from ctm_core.training.objectives import tcm


def objective(size: int = 8, **settings: Any) -> tcm.TcmObjective:
    section = config.Student.model_validate(
        {
            "objective": "tcm",
            "init_from": {"model": "first", "step": 1},
            "settings": settings,
            "training": {"steps": 1, "batch_size": size},
        }
    )
    made = objectives.find("tcm")(
        section=section,
        diffusion=config.Diffusion(),
        student=network(0, inner="edm"),
        second=network(1, inner="edm").requires_grad_(False).eval(),
        distance=distances.build_distance("l2"),
    )
    assert isinstance(made, tcm.TcmObjective)
    return made


@pytest.mark.parametrize("degrees", [0.01, 0.5, 3.0])
def test_times_follow_the_truncated_law(degrees: float) -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = tcm.heavy_tailed_time(u, 1.5, 80.0, spread=0.2, degrees=degrees)
    law = stats.t(degrees)
    below, above = law.cdf(torch.tensor([1.5, 80.0]).double().log() / 0.2)
    expected = (law.cdf(t.log() / 0.2) - below) / (above - below)
    torch.testing.assert_close(torch.from_numpy(expected), u, rtol=1e-9, atol=1e-9)
    assert (float(t[0]), float(t[-1])) == pytest.approx((1.5, 80.0)) and bool((t.diff() > 0).all())


def test_every_fourth_sample_is_on_the_boundary_however_the_batch_is_cut() -> None:
    made, given = objective(boundary=1.5), batch()
    t, r = made.times(given)
    assert t[::4].tolist() == [1.5, 1.5] and bool((t[[1, 2, 3, 5, 6, 7]] > 1.5).all())
    assert bool((r[::4] < 1.5).all())
    assert made.stage(given) == 7


def test_step() -> None:
    made, given, other = objective(boundary=2.0, first_stage=1), batch(), network(0, inner="edm")
    (t, r), noise = made.times(given), given.normal("noise")
    assert bool((r[1:4] >= 2).any()), "a pair whose target is the student's own"
    means: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for b in range(8):
        x0, xi, y = given.images[b : b + 1], noise[b : b + 1], given.labels[b : b + 1]
        with torch.no_grad():
            answering = other if r[b] >= 2 else made.second
            target = answering.g(x0 + r[b] * xi, r[b], None, y)
        size = (other.g(x0 + t[b] * xi, t[b], None, y) - target).square().sum().sqrt()
        means[b % 4 == 0].append(size / (t[b] - r[b]))
    loss = torch.stack(means[False]).mean() + 0.1 * torch.stack(means[True]).mean()
    loss.backward()
    terms = made.backward(given, 1.0)
    assert float(terms["loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, theirs in zip(gradients(made.student), gradients(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
    assert made.evaluations == {"student": 16, "second": 8}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_both_means_are_those_of_the_whole_batch(size: int) -> None:
    """Also where micro-batches hold unequal numbers of the boundary's samples."""
    whole, parts, given = objective(6), objective(6), batch()
    full = Batch(given.images[:6], given.labels[:6], seed=5, step=5)
    whole.backward(full, 1.0)
    for start in range(0, 6, size):
        rows = slice(start, start + size)
        images, labels = full.images[rows], full.labels[rows]
        part = Batch(images, labels, seed=5, step=5, start=start, whole=6)
        parts.backward(part, size / 6)
    for one, other in zip(gradients(whole.student), gradients(parts.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_boundary_beyond_the_noise_is_refused() -> None:
    with pytest.raises(UserError, match=r"settings\.boundary must lie below sigma_max, 80; it is"):
        objective(boundary=80.0)
