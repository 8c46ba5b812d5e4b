"""Samples to look at: the same noises in every cell, and the sampling paths of a few of them.

``previews.safetensors`` holds, for each cell, uint8 images (64, C, H, W) under the cell's label.
For the gamma sampler with the most jumps it also holds, under ``path/<label>``, every state of a
few samples: uint8 (2n, M, C, H, W), alternating between where a jump starts and where it lands.
The noise levels of these states are in the metadata, under ``paths``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import JUMP_SAMPLER
from ctm_core.diffusion import sampling
from ctm_core.models.generation import Generator
from ctm_core.runtime.files import save_tensors

SHOWN = 64
#: Samples whose paths are kept, and the longest path that fits on a page.
WALKERS = 4
LONGEST = 8
PATH_PREFIX = "path/"


def write_previews(
    path: Path,
    model: str,
    cells: Sequence[Cell],
    generator: Generator,
    *,
    seed: int,
    weights_sha256: str,
) -> None:
    """Write the samples of every cell; noises and classes are the same for all cells."""
    classes = generator.classes
    labels = torch.arange(SHOWN) % classes if classes else None
    tensors = {
        cell.label: generator.images(
            SHOWN, **cell._asdict(), seed=seed, batch_size=SHOWN, labels=labels
        )
        for cell in cells
    }
    levels = {}
    for cell in path_cells(cells):
        chosen = None if labels is None else labels[:WALKERS]
        states, times = walk(generator, cell, seed=seed, labels=chosen)
        tensors[PATH_PREFIX + cell.label] = states
        levels[cell.label] = times
    shown = [] if labels is None else labels.tolist()
    metadata = {"model": model, "labels": json.dumps(shown), "paths": json.dumps(levels)}
    save_tensors(path, tensors, metadata | {"weights_sha256": weights_sha256})


def path_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The gamma sampler's cells with the most jumps on the grid, at most 8: one for each gamma."""
    several = [
        cell
        for cell in cells
        if cell.sampler == JUMP_SAMPLER and 1 < cell.nfe <= LONGEST and not cell.times
    ]
    longest = max((cell.nfe for cell in several), default=0)
    return [cell for cell in several if cell.nfe == longest]


def walk(
    generator: Generator,
    cell: Cell,
    *,
    seed: int,
    labels: Tensor | None,
    count: int = WALKERS,
) -> tuple[Tensor, list[float]]:
    r"""States uint8 (2n, count, C, H, W) of a seed's first samples, and their noise levels (2n,).

    Before the first jump, after it, before the second, … A state x at level t is shown as
    :math:`x / \sqrt{1 + t^2}`, so that noise of any level fits.
    """
    recorder = sampling.Recorder(generator.model)
    generator.draw(0, count, cell, seed=seed, labels=labels, model=recorder)
    states = [x for pair in zip(recorder.x, recorder.out, strict=True) for x in pair]
    times = [float(t) for pair in zip(recorder.t, recorder.s, strict=True) for t in pair]
    shown = [x.cpu() / (1.0 + t**2) ** 0.5 for x, t in zip(states, times, strict=True)]
    return torch.stack([sampling.to_uint8(x.clamp(-1, 1)) for x in shown]), times
