"""Predicted forward passes against those that the objectives count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny
from fixtures.tiny import Trained

from ctm_core.config import Diffusion, Student
from ctm_core.config.objective_traits import traits
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import schedule
from ctm_core.models import weight_file
from ctm_core.plan.passes import counts, expected, law
from ctm_core.runtime.files import read_json
from ctm_core.training import ema, jobs, objectives, perceptual
from ctm_core.training.batches import Batch

#: Every way of choosing u, of the inner map, and of the solver, and every objective.
STUDENTS: dict[str, dict[str, Any]] = {
    "ctm": {},
    "without dsm": {"dsm": {"enabled": False}},
    "printed": {"variant": "printed"},
    "local": {"matching": "local"},
    "global": {"matching": "global"},
    "short solves": {"max_heun_steps": 2},
    "scratch": {"objective": "ctm_scratch"},
    "scratch by heun": {"objective": "ctm_scratch", "scratch_solver": "heun"},
    "scratch, global": {"objective": "ctm_scratch", "matching": "global"},
    "s0": {"objective": "ctm_s0"},
    "cd": {"objective": "cd"},
    "ct": {"objective": "ct"},
}
TRAINING = {"steps": 1, "batch_size": 1}
GRID = 6


def student(name: str) -> Student:
    section = {"distance": "l2", "grid_points": GRID, "training": TRAINING}
    return Student.model_validate(section | STUDENTS[name])


def network(time_s: bool, inner: str = "edm") -> Any:
    torch.manual_seed(0)
    return weight_file.build_model(
        network=tiny.experiment({"network.model_channels": 4}).network,
        diffusion=Diffusion(),
        resolution=8,
        channels=1,
        label_dim=0,
        time_s=time_s,
        inner=inner,
    )


@pytest.mark.parametrize("name", STUDENTS)
def test_counts_are_those_of_the_objective(name: str) -> None:
    section = student(name)
    kind = objectives.find(section.objective)
    own = network(kind.time_s, kind.inner)
    objective = kind(
        section=section,
        diffusion=Diffusion(),
        student=own,
        target=ema.frozen_copy(own),
        teacher=network(False) if kind.uses_teacher else None,
        distance=perceptual.build_distance("l2"),
    )
    for step in range(4):
        batch = Batch(torch.zeros(24, 1, 8, 8), None, seed=0, step=step)
        k, i, j = objective.draw(batch)
        before = dict(objective.evaluations)
        for _ in objective.calls(batch):
            pass
        found: dict[str, float] = dict.fromkeys(objective.evaluations, 0)
        for use, each in counts(section, k, i.numpy(), j.numpy()).items():
            found[use.network] += each.sum()
        spent = {key: objective.evaluations[key] - before[key] for key in before}
        assert found == spent


@pytest.mark.parametrize("name", STUDENTS)
def test_law_is_that_of_the_draws(name: str) -> None:
    """Uniforms on a fine grid are mapped by the schedule to each draw as often as it says."""
    section = student(name)
    draws = list(law(section))
    assert sum(p for p, *_ in draws) == pytest.approx(1)
    fine = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    largest = section.heun_steps
    found = [schedule.heun_steps_from_uniform(u, largest) for u in fine[::10]]
    for p, k, i, j, q in draws:
        assert found.count(k) / len(found) == pytest.approx(p, abs=2e-3)
        assert q.sum() == pytest.approx(1)
        if traits(section.objective).sigma_min_only:
            assert set(j) == {GRID - 1} and sorted(i) == list(range(GRID - k))
            continue
        side = (torch.arange(240, dtype=torch.float64) + 0.5) / 240
        u_t, u_s = (u.flatten() for u in torch.meshgrid(side, side, indexing="ij"))
        at, end = schedule.indices_from_uniforms(u_t, u_s, k, GRID)
        for a, b, expected_share in zip(i, j, q, strict=True):
            share = float(((at == int(a)) & (end == int(b))).double().mean())
            assert share == pytest.approx(expected_share, abs=1e-12)


def test_mean_number_of_solver_steps_is_known_in_closed_form() -> None:
    """E k = (2M + 1) / 3 and Var k = (M² + M - 2) / 18, two passes of the teacher a step."""
    made = tiny.experiment({"models.ctm.grid_points": 10, "models.ctm.training.steps": 50})
    number = expected(made, "ctm").recorded["teacher"]
    m, batch = 9, made.student("ctm").training.batch_size
    assert number.mean == pytest.approx(2 * 50 * batch * (2 * m + 1) / 3)
    assert number.deviation == pytest.approx(2 * batch * (50 * (m * m + m - 2) / 18) ** 0.5)


def test_a_teacher_sees_every_image_once() -> None:
    found = expected(tiny.experiment(), "teacher")
    assert {name: n.mean for name, n in found.recorded.items()} == {"student": 12 * 8}
    assert found.steps == 12


def test_global_weights_in_micro_batches_take_a_second_pass() -> None:
    changes = {"models.ctm.lambda_scope": "global", "models.ctm.training.micro_batch": 4}
    once = expected(tiny.experiment({"models.ctm.lambda_scope": "global"}), "ctm").recorded
    twice = expected(tiny.experiment(changes), "ctm").recorded
    fixed = expected(tiny.experiment(changes | {"models.ctm.dsm": {"adaptive": False}}), "ctm")
    for name, number in once.items():
        assert twice[name].mean == pytest.approx(2 * number.mean)
        assert fixed.recorded[name].mean == pytest.approx(number.mean)


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("micro_batch", [4, 8])
def test_a_training_counts_what_was_predicted(
    digits: Dataset, teacher: Trained, tmp_path: Path, adversarial: bool, micro_batch: int
) -> None:
    """The record of a real run: what is certain to the last image, the rest within chance."""
    changes: dict[str, Any] = dict(tiny.ADVERSARIAL) if adversarial else {}
    if adversarial:
        # The teacher has been trained with dropout, which is part of its network.
        del changes["network.dropout"]
    changes |= {"models.ctm.training.micro_batch": micro_batch}
    changes |= {"models.ctm.training.steps": 13, "models.ctm.training.snapshots": []}
    changes |= {"models.ctm.lambda_scope": "global"}
    made = tiny.experiment(changes)
    jobs.train_student(
        made, "ctm", digits, teacher.weights, output=tmp_path, seed=0, runs=tmp_path / "runs"
    )
    record = read_json(tmp_path / "training.json")["forward_passes"]
    predicted = expected(made, "ctm").recorded
    assert set(record) == set(predicted)
    for name, number in predicted.items():
        assert abs(record[name] - number.mean) < 4 * number.deviation + 0.5, name


def test_perceptual_and_feature_networks_are_counted_beside() -> None:
    changes = tiny.ADVERSARIAL | {
        "models.ctm.distance": "lpips_vgg",
        "models.ctm.perceptual": {"resize": 32},
        "models.ctm.training.steps": 13,
        "models.ctm.training.snapshots": [],
    }
    further = expected(tiny.experiment(changes), "ctm").further
    # 7 generator steps, of two images in the distance and one judged; 6 of two judged.
    assert {name: n.mean for name, n in further.items()} == {
        "perceptual": 7 * 8 * 2,
        "features": 7 * 8 + 6 * 8 * 2,
    }
    assert np.isclose(sum(n.deviation for n in further.values()), 0)
