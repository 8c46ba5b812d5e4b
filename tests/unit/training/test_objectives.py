"""The objectives against a plain, slow transcription of the algorithm, in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion import schedule
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.runtime.errors import UserError
from ctm_core.training import distances, ema, objectives
from ctm_core.training.balance import adaptive_weight
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import DsmObjective, dsm_loss
from ctm_core.training.objectives.ctm import CtmObjective
from ctm_core.training.terms import floats

SIZE, BATCH = 4, 8
STEP = 5  # its draws have identity rows of the inner map, of the outer, of both, and of neither


def network(seed: int, *, time_s: bool) -> Trajectory:
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
    ).double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return made


def objective(**changes: Any) -> CtmObjective:
    """Student, its target and a teacher, all different."""
    training = {"steps": 1, "batch_size": BATCH}
    described = {"grid_points": 6, "training": training} | changes
    section = config.Student.model_validate(described)
    return CtmObjective(
        section=section,
        diffusion=config.Diffusion(),
        student=network(0, time_s=True),
        target=ema.frozen_copy(network(1, time_s=True)),
        teacher=ema.frozen_copy(network(2, time_s=False)),
        distance=distances.build_distance(section.distance),
    )


def batch(start: int = 0, stop: int = BATCH, *, step: int = STEP) -> Batch:
    """Samples start … stop - 1 of one global batch."""
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(BATCH, 1, SIZE, SIZE, dtype=torch.float64, generator=generator) * 2 - 1
    labels = torch.arange(BATCH) % 3
    return Batch(images[start:stop], labels[start:stop], seed=5, step=step, start=start)


def gradients(model: Trajectory) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


# -- the transcription -------------------------------------------------------------------------


def heun(teacher: Trajectory, x: Tensor, t: float, t_next: float, y: Tensor) -> Tensor:
    d = (x - teacher.denoise(x, t, y)) / t
    x_next = x + (t_next - t) * d
    d_next = (x_next - teacher.denoise(x_next, t_next, y)) / t_next
    return x + (t_next - t) * 0.5 * (d + d_next)


def plain_step(made: CtmObjective, given: Batch) -> dict[str, float]:
    """Algorithm 1, sample by sample, every map evaluated; gradients end in made.student."""
    section, grid = made.section, made.grid.tolist()
    k, index_t, index_s = made.draw(given)
    noise = given.normal("noise")
    losses = []
    for b, (i, j) in enumerate(zip(index_t.tolist(), index_s.tolist(), strict=True)):
        assert given.labels is not None
        y = given.labels[b : b + 1]
        t, s, end = grid[i], grid[j], made.sigma_min
        x_t = given.images[b : b + 1] + t * noise[b : b + 1]
        estimate = made.target.G(made.student.G(x_t, t, s, y), s, end, y)
        with torch.no_grad():
            x_u, steps = x_t, (j - i if section.matching == "global" else k)
            for m in range(steps):
                x_u = heun(made.teacher, x_u, grid[i + m], grid[i + m + 1], y)
            if section.matching != "global":
                inner = made.student if section.inner == "model" else made.target
                x_u = inner.G(x_u, grid[i + k], s, y)
            target = made.target.G(x_u, s, end, y)
        losses.append(made.distance(estimate, target))
    ctm = torch.cat(losses).mean()
    terms = {"ctm": ctm, "k": torch.tensor(float(k))}
    total = ctm
    if section.dsm.enabled:
        sigma = made.noise_levels(given)
        rows = []
        for b, level in enumerate(sigma.tolist()):
            noisy = given.images[b : b + 1] + level * given.normal("dsm_noise")[b : b + 1]
            denoised = made.student.g(noisy, level, level, given.labels[b : b + 1])
            weight = (level**2 + 0.25) / (level * 0.5) ** 2
            rows.append(weight * (denoised - given.images[b : b + 1]).square().mean())
        dsm = torch.stack(rows).mean()
        weight = torch.tensor(section.dsm.weight)
        if section.dsm.adaptive:
            w = made.student.output_weight
            (of_ctm,) = torch.autograd.grad(ctm, w, retain_graph=True)
            (of_dsm,) = torch.autograd.grad(dsm, w, retain_graph=True)
            weight = section.dsm.weight * of_ctm.norm() / (of_dsm.norm() + 1e-4)
        total = ctm + weight.detach() * dsm
        terms |= {"dsm": dsm, "lambda_dsm": weight}
    total.backward()
    terms |= {"loss": total}
    return {name: float(value.detach()) for name, value in terms.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"matching": "soft", "target_inner": "model"},
        {"matching": "soft", "target_inner": "ema"},
        {"matching": "local", "target_inner": "model"},
        {"matching": "local", "target_inner": "ema"},
        {"matching": "global"},
        {"distance": "pseudo_huber", "dsm": {"weight": 0.5}},
        {"dsm": {"adaptive": False, "weight": 2.0}},
        {"dsm": {"enabled": False}},
        {"max_heun_steps": 2, "variant": "printed"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_step_is_algorithm_1(changes: dict[str, Any]) -> None:
    given = batch()
    ours, theirs = objective(**changes), objective(**changes)
    terms, plain = ours.backward(given, 1.0), plain_step(theirs, given)
    assert terms.keys() == plain.keys()
    assert terms == pytest.approx(plain, rel=1e-9)
    assert_same(gradients(ours.student), gradients(theirs.student))
    for frozen in (ours.target, ours.teacher):
        assert gradients(frozen) == {}


def test_the_step_above_meets_every_kind_of_row() -> None:
    """So that identities which are skipped are compared with evaluated ones."""
    k, i, j = objective().draw(batch())
    assert k == 2
    kinds = set(zip((j == i + k).tolist(), (j == 5).tolist(), strict=True))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


# -- pieces ------------------------------------------------------------------------------------


class Count:
    """Calls of a network, counted in images."""

    def __init__(self, model: Trajectory) -> None:
        self.images = 0
        raw = model.raw

        @functools.wraps(raw)
        def counted(x: Tensor, *arguments: Any) -> Tensor:
            self.images += len(x)
            return raw(x, *arguments)

        model.raw = counted  # type: ignore[method-assign]


@pytest.mark.parametrize("matching", ["soft", "local", "global"])
def test_evaluations_are_counted_as_they_happen(matching: str) -> None:
    made = objective(matching=matching)
    counts = {name: Count(getattr(made, name)) for name in ("teacher", "student", "target")}
    expected = 0
    for step in range(4):
        given = batch(step=step)
        k, i, j = made.draw(given)
        expected += 2 * int((j - i).sum()) if matching == "global" else 2 * k * BATCH
        made.backward(given, 1.0)
    assert made.evaluations == {name: count.images for name, count in counts.items()}
    assert made.evaluations["teacher"] == expected
    # The estimate, the denoising, and the target's inner map where s < u.
    inner = sum(
        int((j > i + k).sum()) for k, i, j in (made.draw(batch(step=step)) for step in range(4))
    )
    inner = 0 if matching == "global" else inner
    assert made.evaluations["student"] == 4 * 2 * BATCH + inner


def test_local_matching_takes_one_step_at_a_time() -> None:
    made = objective(matching="local")
    for step in range(10):
        k, i, j = made.draw(batch(step=step))
        assert k == 1 and bool((j > i).all()) and int(j.max()) <= 5


def test_gradient_reaches_the_student_through_the_frozen_map() -> None:
    """The outer map is no constant factor: without its Jacobian the gradient differs."""
    made, without = objective(dsm={"enabled": False}), objective(dsm={"enabled": False})
    given = batch()
    _, _, j = made.draw(given)
    assert bool((j < 5).any())
    made.backward(given, 1.0)
    through = gradients(made.student)
    assert all(value.norm() > 0 for value in through.values())

    original = without.to_data

    def straight(x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        moved = original(x, s, labels)
        return x + (moved - x).detach() if x.requires_grad else moved

    without.to_data = straight  # type: ignore[method-assign]
    without.backward(given, 1.0)
    name = "model.map_layer0.weight"
    other = gradients(without.student)[name]
    assert (through[name] - other).norm() > 1e-3 * other.norm()


def test_adaptive_weight_is_clipped_and_detached() -> None:
    reference = torch.tensor([3.0, 4.0], requires_grad=True)
    other = torch.tensor([0.0, 2.0], requires_grad=True)
    weight = adaptive_weight(reference, other)
    assert not weight.requires_grad
    assert float(weight) == pytest.approx(5 / 2.0001)
    assert float(adaptive_weight(reference, torch.zeros(2))) == 1e4
    assert float(adaptive_weight(1e-3 * reference, other, low=0.01, high=10)) == pytest.approx(
        0.01
    )


def test_share_scales_the_gradient_alone() -> None:
    whole, half = objective(), objective()
    terms = floats(whole.backward(batch(), 1.0))
    assert floats(half.backward(batch(), 0.5)) == terms
    scaled = {name: 0.5 * value for name, value in gradients(whole.student).items()}
    assert_same(gradients(half.student), scaled)


def split(sizes: Sequence[int]) -> list[Batch]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [batch(a, a + size) for a, size in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (1,) * 8])
def test_micro_batches_draw_the_same(sizes: tuple[int, ...]) -> None:
    made = objective()
    whole, parts = batch(), split(sizes)
    k, i, j = made.draw(whole)
    drawn = [made.draw(part) for part in parts]
    assert {part_k for part_k, _, _ in drawn} == {k}
    assert torch.equal(torch.cat([part for _, part, _ in drawn]), i)
    assert torch.equal(torch.cat([part for _, _, part in drawn]), j)
    # In the images' precision: float64's last bit depends on where vector instructions end.
    levels = torch.cat([made.noise_levels(part).float() for part in parts])
    assert torch.equal(levels, made.noise_levels(whole).float())
    for stream in ("noise", "dsm_noise"):
        noise = torch.cat([part.normal(stream) for part in parts])
        assert torch.equal(noise, whole.normal(stream))
    assert not torch.equal(whole.normal("noise"), whole.normal("dsm_noise"))
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)


@pytest.mark.parametrize("matching", ["soft", "local", "global"])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2)])
def test_micro_batches_add_up(matching: str, sizes: tuple[int, ...]) -> None:
    """Losses and gradients; with an adaptive weight of each micro-batch the losses alone."""
    fixed = {"matching": matching, "dsm": {"adaptive": False}}
    whole, parts = objective(**fixed), objective(**fixed)
    terms = floats(whole.backward(batch(), 1.0))
    added = [floats(parts.backward(part, len(part) / BATCH)) for part in split(sizes)]
    for name, value in terms.items():
        assert sum(t[name] for t in added) / len(sizes) == pytest.approx(value, rel=1e-9), name
    assert_same(gradients(parts.student), gradients(whole.student))
    assert parts.evaluations == whole.evaluations

    adaptive = objective(matching=matching)
    again = [floats(adaptive.backward(part, len(part) / BATCH)) for part in split(sizes)]
    for name in ("ctm", "dsm"):
        assert sum(t[name] for t in again) / len(sizes) == pytest.approx(terms[name], rel=1e-9)
    assert len({t["lambda_dsm"] for t in again}) == len(sizes)


# -- denoising ---------------------------------------------------------------------------------


def test_denoising_loss_is_weighted_as_edm_does() -> None:
    model, given = network(0, time_s=True), batch()
    sigma = torch.logspace(-2, 1.5, BATCH, dtype=torch.float64)
    noise = given.normal("noise")
    loss, raw = dsm_loss(model, given.images, sigma, noise, given.labels)
    assert loss.shape == (BATCH,) and raw.shape == given.images.shape
    level = sigma.view(-1, 1, 1, 1)
    # With EDM's weighting the loss is the squared error of F against its own target.
    skip, out = 0.25 / (level**2 + 0.25), level * 0.5 / (level**2 + 0.25).sqrt()
    wanted = (given.images - skip * (given.images + level * noise)) / out
    torch.testing.assert_close(loss, (raw - wanted).square().flatten(1).mean(1))


def test_teacher_objective() -> None:
    section = config.Teacher.model_validate(
        {"training": {"steps": 1, "batch_size": BATCH}, "p_mean": -0.7, "p_std": 1.5}
    )
    model, given = network(0, time_s=False), batch()
    made = DsmObjective(section, model)
    terms = made.backward(given, 0.5)
    assert made.evaluations == {"student": BATCH}
    sigma = (-0.7 + 1.5 * torch.special.ndtri(given.uniform("sigma"))).exp()
    other = network(0, time_s=False)
    loss, _ = dsm_loss(other, given.images, sigma, given.normal("noise"), given.labels)
    (0.5 * loss.mean()).backward()
    assert terms == {"loss": pytest.approx(float(loss.detach().mean()))}
    assert_same(gradients(model), gradients(other))


def test_noise_levels_follow_the_two_part_law() -> None:
    made = objective(dsm={"p_mean": -1.0, "p_std": 0.5, "uniform_max": 0.4})
    given = batch()
    u = given.uniform("dsm_sigma")
    levels = made.noise_levels(given)
    even = schedule.lognormal_sigma(u, -1.0, 0.5)[::2]
    torch.testing.assert_close(levels[::2], even)
    torch.testing.assert_close(levels[1::2], schedule.karras_sigma(0.4 * u)[1::2])


# -- by name -----------------------------------------------------------------------------------


def test_objectives_by_name() -> None:
    assert objectives.find("ctm") is CtmObjective
    with pytest.raises(UserError, match="no objective 'gan'; there are: ayf, cd, ct, ctm"):
        objectives.find("gan")
