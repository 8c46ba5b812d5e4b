"""Forward passes of trainings and evaluations, by network, before they run.

The objectives count images as they pass through each network
(:attr:`ctm_core.training.objective.Objective.evaluations`), and ``training.json`` keeps the sums
as ``forward_passes``. The number per sample depends on its draw of k, i and j alone, and the
objective states it; :func:`expected` takes the mean over all draws. Passes of an evaluation
mirror what :mod:`ctm_core.evaluation.evaluate` does, padding of the last batch included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm_core.config import Cell, Experiment, Student
from ctm_core.config.protocols import Protocol
from ctm_core.config.sampler_traits import sampler_traits
from ctm_core.diffusion import sampling, schedule
from ctm_core.diffusion.schedule import Draws
from ctm_core.evaluation import distillation
from ctm_core.evaluation.flow import BATCH, LEVELS
from ctm_core.evaluation.previews import SHOWN, WALKERS, path_cells
from ctm_core.training import objectives
from ctm_core.training.objective import Objective, Use


@dataclass(frozen=True)
class Passes:
    """The expected passes of one training, in images."""

    uses: Mapping[Use, float]
    steps: int  #: optimiser steps of the student

    @property
    def by_network(self) -> dict[str, float]:
        """Sums by the keys of ``forward_passes`` in training.json, and those of perceptual and
        feature networks, which no record counts."""
        sums: dict[str, float] = {}
        for use, number in self.uses.items():
            sums[use.network] = sums.get(use.network, 0.0) + number
        return sums


def expected(experiment: Experiment, model: str) -> Passes:
    """The passes of a training of an experiment."""
    training = experiment.training(model)
    batch = training.batch_size
    if model == "teacher":
        return Passes({Use("student", "train"): float(training.steps * batch)}, training.steps)
    student = experiment.student(model)
    objective = objectives.find(student.objective)
    draws = schedule.all_draws(student.grid_points, student.heun_steps, student.traits.final_only)
    period = 1 if student.adversarial is None else student.adversarial.period
    generator = -(-training.steps // period)
    # Loss weights of a whole batch may need a pass of their own.
    twice = 2 if _weighs_beforehand(experiment, student) else 1
    uses: dict[Use, float] = {}
    for count, passes in (
        (twice * generator, generator_passes(objective, student, draws)),
        (training.steps - generator, discriminator_passes(objective, student, draws)),
    ):
        for use, each in passes:
            mean = float(each.double() @ draws.probability)
            uses[use] = uses.get(use, 0.0) + count * batch * mean
    return Passes({use: number for use, number in uses.items() if number}, generator)


def generator_passes(
    objective: type[Objective], student: Student, draws: Draws
) -> Iterator[tuple[Use, Tensor]]:
    """Passes per sample in a step of the student, by its draw: counts (D,)."""
    yield from objective.passes(student, draws)
    one = torch.ones_like(draws.k)
    if student.perceptual is not None:
        yield Use("perceptual", "through"), one
        yield Use("perceptual", "forward"), one
    if student.adversarial is not None:
        yield Use("features", "through"), one


def discriminator_passes(
    objective: type[Objective], student: Student, draws: Draws
) -> Iterator[tuple[Use, Tensor]]:
    """The same in a step of the discriminator, which sees a real and a generated image."""
    if student.adversarial is not None:
        yield from objective.generated_passes(student, draws)
        yield Use("features", "train"), torch.full_like(draws.k, 2)


def _weighs_beforehand(experiment: Experiment, student: Student) -> bool:
    share, micro = student.training.shared(experiment.resources.training.processes)
    several = share > micro
    adaptive = student.adversarial is not None or (student.dsm.enabled and student.dsm.adaptive)
    return student.lambda_scope == "global" and several and adaptive


@dataclass(frozen=True)
class Sampled:
    """The passes of one evaluation, in images."""

    sampling: int
    previews: int
    trajectory: int  #: the model's own steps
    trajectory_teacher: int  #: the teacher's fine solve
    likelihood: int  #: images; how many passes each takes, the solver decides
    features: Mapping[str, int]  #: of the feature network of each protocol


def sampled(
    experiment: Experiment, protocols: Mapping[str, Protocol], model: str, step: int
) -> Sampled:
    """The passes of evaluating a model at a step by some of ``protocols``."""
    section = experiment.evaluation
    seeds = len(section.sample_seeds)
    cells = experiment.cells(model, step)
    scored = {name: set(named) for name, named in experiment.protocols(model, step).items()}
    size, sampling = section.batch_size, 0
    for cell in cells:
        # Protocols that want the same samples share them.
        draws = {
            (protocols[name].rounding, protocols[name].samples, protocols[name].labels)
            for name, named in scored.items()
            if cell in named
        }
        sampling += sum(-(-count // size) * size for _, count, _ in draws) * cell.nfe
    walked = sum(cell.nfe for cell in path_cells(cells))
    likelihood = experiment.likelihood(model, step)
    own, teacher = _trajectories(experiment, protocols, model, step)
    return Sampled(
        sampling=sampling * seeds,
        previews=SHOWN * sum(cell.nfe for cell in cells) + WALKERS * walked,
        trajectory=own,
        trajectory_teacher=teacher,
        likelihood=0 if likelihood is None else likelihood.images,
        features={
            name: protocols[name].samples * len(named) * seeds for name, named in scored.items()
        },
    )


def _trajectories(
    experiment: Experiment, protocols: Mapping[str, Protocol], model: str, step: int
) -> tuple[int, int]:
    diffusion = experiment.diffusion.model_dump()
    own = teacher = 0
    pairs, end = [], None  # jumps to measure, by the first protocol alone
    if model != "teacher":
        end = experiment.models[model].traits.only_end(experiment.diffusion.sigma_min)
        pairs = distillation.jumps(LEVELS, diffusion, end)
    for name, cells in experiment.protocols(model, step).items():
        protocol = protocols[name]
        if not protocol.needs_teacher:
            continue
        noises = len(experiment.evaluation.sample_seeds) * protocol.trajectory.noises
        size = min(noises, BATCH)
        padded = -(-noises // size) * size
        walks = [(cell, distillation.steps(cell, diffusion, end)) for cell in cells]
        levels = {level for _, steps in walks for pair in steps for level in pair}
        levels |= {level for pair in pairs for level in pair}
        teacher += padded * _solve(levels, protocol.trajectory.points, diffusion)
        own += padded * (sum(_moves(cell, steps) for cell, steps in walks) + len(pairs))
        pairs = []
    return own, teacher


def _moves(cell: Cell, steps: list[tuple[float, float]]) -> int:
    """Passes of one image through the steps of a cell; an ODE sampler's step to 0 takes one."""
    per_step = sampler_traits(cell.sampler).evaluations_per_step
    return sum(per_step if s > 0 else 1 for _, s in steps)


def _solve(levels: set[float], points: int, diffusion: Mapping[str, float]) -> int:
    """Passes per image of a solve on the fine grid, with a side step to each level between."""
    grid = set(schedule.karras_grid(points, **sampling.grid_of(diffusion)).tolist())
    aside = sum(1 for level in levels if level and level not in grid)
    return 2 * (points - 1) + 2 * aside + (0.0 in levels)
