"""How well a model follows its teacher's ODE, sampler by sampler and jump by jump.

Noises and classes are those of the samples of a seed (:mod:`ctm_core.models.generation`), the
teacher is solved once for all samplers, and the measure is
:mod:`ctm_core.evaluation.metrics.trajectory_error`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER
from ctm_core.diffusion import randomness, sampling
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.evaluation.metrics.subsampling import Estimate
from ctm_core.evaluation.metrics.trajectory_error import (
    Step,
    path,
    rms,
    squared_errors,
    trajectory_error,
)
from ctm_core.runtime.errors import UserError

__all__ = ["Noises", "cell_errors", "errors", "jump_errors", "jumps", "steps"]

#: Points of the teacher's fine solve.
POINTS = 128


@dataclass(frozen=True)
class Noises:
    """The noises and classes that errors are measured on, and the teacher's solve from them.

    Attributes
    ----------
    count
        How many.
    seed
        Sampling seed whose latents and labels they are.
    shape
        (C, H, W).
    classes
        Of the data; 0 where the teacher is unconditional.
    diffusion
        ``sigma_min``, ``sigma_max``, ``rho``.
    batch_size
        Of one pass; the last batch is padded.
    points
        Of the fine solve.
    """

    count: int
    seed: int
    shape: tuple[int, int, int]
    classes: int
    diffusion: Mapping[str, float]
    batch_size: int = 64
    points: int = POINTS

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """Unit noises (batch_size, C, H, W), classes, and how many of them count."""
        size = self.batch_size
        for start in range(0, self.count, size):
            noise = randomness.normal(self.seed, "latents", 0, start, size, self.shape)
            labels = None
            if self.classes:
                labels = randomness.integers(self.seed, "labels", 0, start, size, self.classes)
            yield noise, labels, min(size, self.count - start)

    @property
    def grid(self) -> dict[str, float]:
        """The keywords of a Karras grid."""
        return {key: self.diffusion[key] for key in ("sigma_min", "sigma_max", "rho")}


def steps(cell: Cell, diffusion: Mapping[str, float]) -> list[Step]:
    """The steps (t, s) of a cell's sampler.

    Noise that a sampler adds between its jumps is none of them. The last step of an ODE sampler,
    from sigma_min to 0, is left out: the fine solve ends the same way.
    """
    grid = diffusion["sigma_min"], diffusion["sigma_max"], diffusion["rho"]
    plan = sampling.plan(*cell, *grid)
    pairs = list(zip(plan.t.tolist(), plan.s.tolist(), strict=True))
    return pairs if len(pairs) == 1 else [(t, s) for t, s in pairs if s > 0]


def jumps(points: int, diffusion: Mapping[str, float], final_only: bool = False) -> list[Step]:
    """All jumps between ``points`` levels of a grid, or those to sigma_min alone."""
    grid = diffusion["sigma_min"], diffusion["sigma_max"], diffusion["rho"]
    levels = karras_grid(points, *grid).tolist()
    pairs = [(t, s) for i, t in enumerate(levels) for s in levels[i + 1 :]]
    return [(t, s) for t, s in pairs if s == levels[-1] or not final_only]


def cell_errors(
    model: Trajectory, teacher: Trajectory, cells: Sequence[Cell], noises: Noises
) -> dict[Cell, Estimate]:
    """The trajectory error of every cell, each by its own sampler's steps.

    Parameters
    ----------
    model, teacher
        In eval mode, on one device; they may be the same.
    cells
        Samplers; ``heun`` and ``euler`` step along the model's own denoiser.

    Raises
    ------
    UserError
        If the model cannot do a cell's steps, or a step gives NaN or infinity.
    """
    return errors(model, teacher, cells, (), noises)[0]


def jump_errors(
    model: Trajectory, teacher: Trajectory, pairs: Sequence[Step], noises: Noises
) -> list[dict[str, float]]:
    """``{t, s, error}`` of every jump; parameters and errors as :func:`cell_errors`."""
    return errors(model, teacher, (), pairs, noises)[1]


def errors(
    model: Trajectory,
    teacher: Trajectory,
    cells: Sequence[Cell],
    pairs: Sequence[Step],
    noises: Noises,
) -> tuple[dict[Cell, Estimate], list[dict[str, float]]]:
    """:func:`cell_errors` and :func:`jump_errors` from one solve of the teacher."""
    wanted: dict[Any, tuple[str, list[Step]]] = {
        cell: (cell.sampler, steps(cell, noises.diffusion)) for cell in cells
    }
    if pairs:
        wanted["jumps"] = (JUMP_SAMPLER, list(pairs))
    squares = _squares(model, teacher, wanted, noises)
    found = rms(squares["jumps"]).tolist() if pairs else []
    return (
        {cell: trajectory_error(squares[cell]) for cell in cells},
        [{"t": t, "s": s, "error": e} for (t, s), e in zip(pairs, found, strict=True)],
    )


@torch.no_grad()
def _squares(
    model: Trajectory,
    teacher: Trajectory,
    wanted: Mapping[Any, tuple[str, list[Step]]],
    noises: Noises,
) -> dict[Any, Tensor]:
    levels = sorted({level for _, pairs in wanted.values() for pair in pairs for level in pair})
    device = next(teacher.parameters()).device
    found: dict[Any, list[Tensor]] = {key: [] for key in wanted}
    for noise, labels, count in noises.batches():
        y = None if labels is None else labels.to(device)
        x = noise.to(device, torch.float64) * noises.diffusion["sigma_max"]
        denoiser = sampling.denoiser(teacher, y if teacher.label_dim else None, noise.dtype)
        states = path(denoiser, x, levels, points=noises.points, **noises.grid)
        own_labels = y if model.label_dim else None
        for key, (sampler, pairs) in wanted.items():
            move = sampling.move(model, sampler, own_labels, noise.dtype)
            errors = squared_errors(move, states, pairs)
            if not bool(torch.isfinite(errors).all()):
                raise UserError(
                    "a step of the model or its teacher gives NaN or infinity; the weights are "
                    "unusable, train them again"
                )
            found[key].append(errors[:, :count])
    return {key: torch.cat(batches, dim=1) for key, batches in found.items()}
