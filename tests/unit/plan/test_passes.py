"""Predicted forward passes against those that the objectives count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import Trained

from ctm_core.config import Diffusion, Student
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import schedule
from ctm_core.diffusion.schedule import Draws
from ctm_core.models import weight_file
from ctm_core.plan.passes import discriminator_passes, expected, generator_passes
from ctm_core.runtime.files import read_json
from ctm_core.training import distances, ema, jobs, objectives
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Objective, Use

#: Every way of choosing u, of the inner map, and of the solver, and every objective.
STUDENTS: dict[str, dict[str, Any]] = {
    "ctm": {},
    "without dsm": {"dsm": {"enabled": False}},
    "printed": {"variant": "printed"},
    "local": {"matching": "local"},
    "global": {"matching": "global"},
    "short solves": {"max_heun_steps": 2},
    "ab2": {"solver": "ab2"},
    "dpmpp_2m, global": {"solver": "dpmpp_2m", "matching": "global"},
    "scratch": {"objective": "ctm_scratch"},
    "scratch by heun": {"objective": "ctm_scratch", "scratch_solver": "heun"},
    "scratch, global": {"objective": "ctm_scratch", "matching": "global"},
    "s0": {"objective": "ctm_s0"},
    "cd": {"objective": "cd"},
    "ct": {"objective": "ct"},
}
TRAINING = {"steps": 1, "batch_size": 1}
GRID = 6
TEACHER = Use("teacher", "forward")


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
    own = network(section.traits.time_s, section.traits.inner)
    objective = kind(
        section=section,
        diffusion=Diffusion(),
        student=own,
        target=ema.frozen_copy(own),
        teacher=network(False) if section.traits.teacher else None,
        distance=distances.build_distance("l2"),
    )
    for step in range(4):
        batch = Batch(torch.zeros(24, 1, 8, 8), None, seed=0, step=step)
        k, i, j = objective.draw(batch)
        before = dict(objective.evaluations)
        for _ in objective.calls(batch):
            pass
        predicted: dict[str, float] = dict.fromkeys(objective.evaluations, 0)
        drawn = Draws(torch.full_like(i, k), i, j, torch.ones(len(i)))
        for use, each in kind.passes(section, drawn):
            predicted[use.network] += float(each.sum())
        spent = {key: objective.evaluations[key] - before[key] for key in before}
        assert predicted == spent
        before = dict(objective.evaluations)
        objective.generated(batch)
        predicted = dict.fromkeys(objective.evaluations, 0)
        for use, each in kind.generated_passes(section, drawn):
            predicted[use.network] += float(each.sum())
        spent = {key: objective.evaluations[key] - before[key] for key in before}
        assert predicted == spent


def test_mean_number_of_solver_steps_is_known_in_closed_form() -> None:
    """E k = (2M + 1) / 3, two passes of the teacher a step."""
    made = tiny.experiment({"models.ctm.grid_points": 10, "models.ctm.training.steps": 50})
    m, batch = 9, made.student("ctm").training.batch_size
    number = expected(made, "ctm").by_network["teacher"]
    assert number == pytest.approx(2 * 50 * batch * (2 * m + 1) / 3)


def test_passes_by_default_are_one_of_the_student_and_two_of_the_teacher_a_step() -> None:
    draws = schedule.all_draws(GRID, 3)
    for name, networks in (("ctm", ["student", "teacher"]), ("scratch", ["student"])):
        uses = dict(Objective.passes(student(name), draws))
        assert [use.network for use in uses] == networks
    assert torch.equal(dict(Objective.passes(student("ctm"), draws))[TEACHER], 2 * draws.k)


def test_a_teacher_sees_every_image_once() -> None:
    found = expected(tiny.experiment(), "teacher")
    assert found.by_network == {"student": 12 * 8}
    assert found.steps == 12


def test_global_weights_in_micro_batches_take_a_second_pass() -> None:
    changes = {"models.ctm.lambda_scope": "global", "models.ctm.training.micro_batch": 4}
    once = expected(tiny.experiment({"models.ctm.lambda_scope": "global"}), "ctm").by_network
    twice = expected(tiny.experiment(changes), "ctm").by_network
    fixed = expected(tiny.experiment(changes | {"models.ctm.dsm": {"adaptive": False}}), "ctm")
    for name, number in once.items():
        assert twice[name] == pytest.approx(2 * number)
        assert fixed.by_network[name] == pytest.approx(number)


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
    predicted = expected(made, "ctm").by_network
    assert set(record) == set(predicted) - {"features"}
    for name, spent in record.items():
        chance = (2 if micro_batch == 4 else 1) * deviation(made.student("ctm"), name)
        assert abs(spent - predicted[name]) < 4 * chance + 0.5, name


def deviation(section: Student, network: str) -> float:
    """Standard deviation of the passes of a training: k is drawn once for a whole batch."""
    draws = schedule.all_draws(section.grid_points, section.heun_steps)
    kind, training = objectives.find(section.objective), section.training
    generator = training.steps if section.adversarial is None else -(-training.steps // 2)
    variance = 0.0
    for steps, passes in (
        (generator, generator_passes(kind, section, draws)),
        (training.steps - generator, discriminator_passes(kind, section, draws)),
    ):
        counts = torch.zeros(len(draws.k), dtype=torch.float64)
        for use, each in passes:
            counts += each if use.network == network else 0
        within, means, weights = 0.0, [], []
        for k in range(1, section.heun_steps + 1):
            p = draws.probability[draws.k == k]
            c = counts[draws.k == k]
            means.append(float(p @ c / p.sum()))
            weights.append(float(p.sum()))
            within += float(p @ (c - means[-1]) ** 2)
        mean = sum(w * m for w, m in zip(weights, means, strict=True))
        between = sum(w * (m - mean) ** 2 for w, m in zip(weights, means, strict=True))
        variance += steps * (training.batch_size * within + training.batch_size**2 * between)
    return float(variance**0.5)


def test_perceptual_and_feature_networks_are_counted_beside() -> None:
    changes = tiny.ADVERSARIAL | {
        "models.ctm.distance": "lpips_vgg",
        "models.ctm.perceptual": {"resize": 32},
        "models.ctm.training.steps": 13,
        "models.ctm.training.snapshots": [],
    }
    passes = expected(tiny.experiment(changes), "ctm").by_network
    # 7 generator steps, of two images in the distance and one judged; 6 of two judged.
    assert passes["perceptual"] == pytest.approx(7 * 8 * 2)
    assert passes["features"] == pytest.approx(7 * 8 + 6 * 8 * 2)
