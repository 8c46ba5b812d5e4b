"""Easy consistency tuning against a plain transcription, and what keeps its numbers finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.small_steps import BATCH, batch, gradients, network
from torch import Tensor

from ctm_core import config
from ctm_core.training import distances, objectives
from ctm_core.training.objectives import ect


def objective(**settings: Any) -> ect.EctObjective:
    training = {"steps": 1, "batch_size": BATCH}
    section = config.Student.model_validate(
        {"objective": "ect", "settings": settings, "training": training}
    )
    made = objectives.find("ect")(
        section=section,
        diffusion=config.Diffusion(),
        student=network(),
        distance=distances.build_distance("l2"),
    )
    assert isinstance(made, ect.EctObjective)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stage_images": 8, "p_mean": 0.5},
        {"stage_images": 8, "q": 4.0, "c": 0.06, "weight": "karras", "p_std": 1.0, "k": 2.0},
    ],
)
def test_step(settings: dict[str, Any]) -> None:
    made, given, other = objective(**settings), batch(), network()
    own = made.section.settings
    stage = 5 if "stage_images" in settings else 0
    closest = min(1 - float(own["q"]) ** -(stage + 1), 0.999)
    noise = given.normal("noise")
    losses, at_zero = [], 0
    for b, u in enumerate(given.uniform("t").tolist()):
        normal = float(torch.special.ndtri(torch.tensor(u, dtype=torch.float64)))
        t = torch.tensor(own["p_mean"] + own["p_std"] * normal, dtype=torch.float64).exp()
        r = t * (1 - (1 - closest) * (1 + own["k"] / (1 + t.exp())))
        x0, xi, y = given.images[b : b + 1], noise[b : b + 1], given.labels[b : b + 1]
        with torch.no_grad():
            target = other.g(x0 + r * xi, r, None, y) if r > 0 else x0
        at_zero += int(r <= 0)
        size = (other.g(x0 + t * xi, t, None, y) - target).square().sum()
        r, c = r.clamp(min=0), own["c"]
        weight = 1 / (t - r) if own["weight"] == "step" else 1 / t**2 + 4
        losses.append(weight * ((size + c**2).sqrt() - c))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert (at_zero > 0) == (stage == 0)
    terms = made.backward(given, 1.0)
    assert float(terms["loss"]) == pytest.approx(float(loss.detach()), rel=1e-9)
    assert terms["stage"] == stage
    for mine, theirs in zip(gradients(made.student), gradients(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)
    assert made.evaluations == {"student": 2 * BATCH}


def test_stages_follow_the_images_seen_of_the_whole_batch() -> None:
    made = objective(stage_images=100)
    stages = [made.stage(batch(step, whole=40)) for step in range(7)]
    assert stages == [0, 0, 0, 1, 1, 2, 2]


def test_pairs_come_no_closer_than_the_limit() -> None:
    assert ect.ratio(2, 2.0, 0.999) == 7 / 8
    assert ect.ratio(50, 2.0, 0.999) == ect.ratio(10**9, 2.0, 0.999) == 0.999
    made = objective(stage_images=1, ratio_limit=0.9)
    t, r = made.times(batch(1000))
    torch.testing.assert_close(r, t * (1 - 0.1 * (1 + 8 * torch.sigmoid(-t))).clamp(min=0))


def test_truncated_times_lie_within_the_bounds_of_sampling() -> None:
    wide, cut = objective(p_std=10.0), objective(p_std=10.0, truncated=True)
    given = [made.times(batch(step))[0] for step in range(20) for made in (wide, cut)]
    plain, truncated = torch.cat(given[::2]), torch.cat(given[1::2])
    assert float(plain.min()) < 0.002 and float(plain.max()) > 80
    assert 0.002 < float(truncated.min()) < 0.01 and 20 < float(truncated.max()) < 80


def test_equal_ends_have_no_gradient() -> None:
    delta = torch.zeros(2, 1, 2, 2, requires_grad=True)
    ends = delta + torch.tensor([0.0, 3.0]).view(2, 1, 1, 1)
    for c in (0.0, 0.06):
        (gradient,) = torch.autograd.grad(ect.length(ends, c).sum(), delta, retain_graph=True)
        assert torch.equal(gradient[0], torch.zeros(1, 2, 2)) and bool(gradient[1].all())
        assert float(gradient.norm()) == pytest.approx(1.0, rel=1e-3)


def test_both_ends_drop_the_same() -> None:
    """Otherwise the loss would regress differences of masks, over t - r."""
    student, given = network(dropout=0.5).train(), batch()
    t = torch.linspace(0.1, 10, BATCH, dtype=torch.float64)
    noise = given.normal("noise")

    def distances_at(closeness: float) -> Tensor:
        made = ect.pair(student, given.images, noise, (t, closeness * t), given.labels, 0.0)
        return made.distance.detach() / t

    torch.manual_seed(0)
    near, nearer = distances_at(1 - 1e-3), distances_at(1 - 1e-6)
    assert float((nearer / near).max()) < 0.01
