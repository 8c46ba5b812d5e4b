"""How well a model follows its teacher's ODE, sampler by sampler and jump by jump.

Noises and classes are those of the seeds' samples (:mod:`ctm_core.models.generation`). The
teacher's ODE is solved once for all samplers; the error is defined in
:mod:`ctm_core.evaluation.metrics.trajectory_error`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER, sampler_traits
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


@dataclass(frozen=True)
class Noises:
    """The noises and classes that errors are measured on, and the teacher's solve from them."""

    count: int  #: of each seed
    seeds: tuple[int, ...]  #: sampling seeds whose latents and labels they are
    shape: tuple[int, int, int]  #: (C, H, W)
    classes: int  #: 0 for an unconditional teacher
    diffusion: Mapping[str, float]  #: ``sigma_min``, ``sigma_max``, ``rho``
    batch_size: int  #: of all seeds together; the last batch is padded
    points: int  #: grid points of the teacher's fine solve

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """Unit noises (batch_size, C, H, W), classes, and how many are not padding.

        Seed after seed; small batches are slow, so that of one seed is filled with the next.
        """
        drawn = [self._drawn(seed) for seed in self.seeds]
        noises, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        for start in range(0, len(noises), self.batch_size):
            rows = torch.arange(start, start + self.batch_size) % len(noises)
            used = min(self.batch_size, len(noises) - start)
            yield noises[rows], labels[rows] if self.classes else None, used

    def _drawn(self, seed: int) -> tuple[Tensor, Tensor]:
        noise = randomness.normal(seed, "latents", 0, 0, self.count, self.shape)
        return noise, randomness.integers(seed, "labels", 0, 0, self.count, max(self.classes, 1))


def steps(cell: Cell, diffusion: Mapping[str, float], end: float | None = None) -> list[Step]:
    """The steps (t, s) of a cell's sampler, without the noise between them.

    ``end``: the one time that the model jumps to; None: any. The last step of an ODE sampler, from
    sigma_min to 0, is left out: the fine solve ends the same way.
    """
    plan = sampling.plan(*cell, **sampling.grid_of(diffusion), end=end)
    pairs = list(zip(plan.t.tolist(), plan.s.tolist(), strict=True))
    whole = len(pairs) == 1 or sampler_traits(cell.sampler).jumps
    return pairs if whole else [(t, s) for t, s in pairs if s > 0]


def jumps(points: int, diffusion: Mapping[str, float], end: float | None = None) -> list[Step]:
    """All jumps between ``points`` levels of a grid, or only those to ``end``."""
    levels = karras_grid(points, **sampling.grid_of(diffusion)).tolist()
    if end is not None:
        return [(t, end) for t in levels[:-1]]
    return [(t, s) for i, t in enumerate(levels) for s in levels[i + 1 :]]


def errors(
    model: Trajectory,
    teacher: Trajectory,
    cells: Sequence[Cell],
    pairs: Sequence[Step],
    noises: Noises,
) -> tuple[list[dict[Cell, Estimate]], list[dict[str, float]]]:
    """The trajectory error of each cell, and ``{t, s, error}`` of each jump (t, s) of ``pairs``.

    Those of the cells are one ``{cell: error}`` per seed; the jumps' are over all noises. Model
    and teacher are in eval mode on one device, and may be the same. The teacher is solved once.
    ODE samplers follow the model's denoiser.
    """
    walks = [(cell.sampler, steps(cell, noises.diffusion, model.end)) for cell in cells]
    if pairs:
        walks.append((JUMP_SAMPLER, list(pairs)))
    squares = _squares(model, teacher, walks, noises)
    single = rms(squares.pop()).tolist() if pairs else []
    by_seed = zip(*(torch.split(own, noises.count, dim=1) for own in squares), strict=True)
    return (
        [dict(zip(cells, map(trajectory_error, own), strict=True)) for own in by_seed],
        [{"t": t, "s": s, "error": e} for (t, s), e in zip(pairs, single, strict=True)],
    )


@torch.no_grad()
def _squares(
    model: Trajectory,
    teacher: Trajectory,
    walks: Sequence[tuple[str, list[Step]]],
    noises: Noises,
) -> list[Tensor]:
    """Squared errors (steps, seeds · count) of each walk, which is a sampler and its steps."""
    levels = sorted({level for _, pairs in walks for pair in pairs for level in pair})
    device = next(teacher.parameters()).device
    batches: list[list[Tensor]] = []
    for noise, labels, count in noises.batches():
        y = None if labels is None else labels.to(device)
        x = noise.to(device, torch.float64) * noises.diffusion["sigma_max"]
        denoiser = sampling.denoiser(teacher, y if teacher.label_dim else None, noise.dtype)
        grid = sampling.grid_of(noises.diffusion)
        states = path(denoiser, x, levels, points=noises.points, **grid)
        own_labels = y if model.label_dim else None
        moves = [sampling.move(model, name, own_labels, noise.dtype) for name, _ in walks]
        batches.append(
            [
                squared_errors(move, states, pairs)[:, :count]
                for move, (_, pairs) in zip(moves, walks, strict=True)
            ]
        )
        if not all(bool(torch.isfinite(squares).all()) for squares in batches[-1]):
            raise UserError(
                "a step of the model or its teacher gives NaN or infinity; the weights are "
                "unusable, train them again"
            )
    return [torch.cat(parts, dim=1) for parts in zip(*batches, strict=True)]
