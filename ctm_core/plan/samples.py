"""Forward passes of an evaluation: samples, trajectory errors, likelihood, previews, features.

Each mirrors what :mod:`ctm_core.evaluation.evaluate` does, padding of the last batch included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctm_core.config import Cell, Experiment
from ctm_core.config.objective_traits import traits
from ctm_core.config.protocols import Protocol
from ctm_core.diffusion import schedule
from ctm_core.evaluation import distillation
from ctm_core.evaluation.flow import BATCH, LEVELS
from ctm_core.evaluation.previews import SHOWN, WALKERS, path_cells

__all__ = ["Sampled", "sampled"]


@dataclass(frozen=True)
class Sampled:
    """The passes of one evaluation, in images.

    Attributes
    ----------
    cells
        Cells that are sampled, counted once for each sampling seed.
    sampling, previews
        Of the model.
    trajectory, trajectory_teacher
        Of the model's steps and of the teacher's fine solve.
    likelihood
        Images whose likelihood is measured; how many passes each takes, the solver decides.
    features
        Of the feature network of each protocol.
    """

    cells: int = 0
    sampling: int = 0
    previews: int = 0
    trajectory: int = 0
    trajectory_teacher: int = 0
    likelihood: int = 0
    features: Mapping[str, int] | None = None


def sampled(
    experiment: Experiment, protocols: Mapping[str, Protocol], model: str, step: int
) -> Sampled:
    """What evaluating a model at a step takes.

    Parameters
    ----------
    protocols
        By name, at least those that the experiment names.
    """
    section = experiment.evaluation
    seeds = len(section.sample_seeds)
    cells = experiment.cells(model, step)
    chosen = {name: set(found) for name, found in experiment.protocols(model, step).items()}
    done, sampling = 0, 0
    for cell in cells:
        same = {
            (protocols[name].rounding, protocols[name].samples, protocols[name].labels)
            for name, found in chosen.items()
            if cell in found
        }
        done += bool(same)
        size = section.batch_size
        sampling += sum(-(-count // size) * size for _, count, _ in same) * cell.nfe
    walked = sum(cell.nfe for cell in path_cells(cells))
    images = section.likelihood.images if section.likelihood is not None else 0
    own, teacher = _trajectories(experiment, protocols, model, step)
    return Sampled(
        cells=done * seeds,
        sampling=sampling * seeds,
        previews=SHOWN * sum(cell.nfe for cell in cells) + WALKERS * walked,
        trajectory=own,
        trajectory_teacher=teacher,
        likelihood=images if experiment.measures_likelihood(model, step) else 0,
        features={
            name: protocols[name].samples * len(found) * seeds for name, found in chosen.items()
        },
    )


def _trajectories(
    experiment: Experiment, protocols: Mapping[str, Protocol], model: str, step: int
) -> tuple[int, int]:
    """Passes of the model and of the teacher for the trajectory errors."""
    diffusion = experiment.diffusion.model_dump()
    own = teacher = 0
    first = True
    for name, cells in experiment.protocols(model, step).items():
        protocol = protocols[name]
        if not protocol.needs_teacher:
            continue
        noises = protocol.trajectory.noises
        size = min(noises, BATCH)
        padded = -(-noises // size) * size
        wanted = [(cell, distillation.steps(cell, diffusion)) for cell in cells]
        for _ in experiment.evaluation.sample_seeds:
            pairs = []
            if first and model != "teacher":
                final = traits(experiment.models[model].objective).sigma_min_only
                pairs = distillation.jumps(LEVELS, diffusion, final)
            first = False
            levels = {level for _, steps in wanted for pair in steps for level in pair}
            levels |= {level for pair in pairs for level in pair}
            teacher += padded * _solve(levels, protocol.trajectory.points, diffusion)
            own += padded * (sum(_moves(cell, steps) for cell, steps in wanted) + len(pairs))
    return own, teacher


def _moves(cell: Cell, steps: list[tuple[float, float]]) -> int:
    """Passes of one image through the steps of a cell; Heun's are two, but the one to 0."""
    if cell.sampler != "heun":
        return len(steps)
    return sum(2 if s > 0 else 1 for _, s in steps)


def _solve(levels: set[float], points: int, diffusion: Mapping[str, float]) -> int:
    """Passes of one image down the fine grid, with a step aside for each level between."""
    bounds = diffusion["sigma_min"], diffusion["sigma_max"], diffusion["rho"]
    grid = set(schedule.karras_grid(points, *bounds).tolist())
    aside = sum(1 for level in levels if level and level not in grid)
    return 2 * (points - 1) + 2 * aside + (0.0 in levels)
