"""A model's jumps beside its teacher's ODE, kept by a hash of what they depend on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ctm_core.config import Cell
from ctm_core.config.protocols import Protocol
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.evaluation.distillation import Noises, errors
from ctm_core.evaluation.distillation import jumps as all_jumps
from ctm_core.evaluation.inputs import Inputs
from ctm_core.evaluation.kept import kept
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.trajectory_error import Step
from ctm_core.models.generation import Generator

__all__ = ["trajectories"]

#: Levels between which all jumps of a model are measured.
LEVELS = 9
#: Noises of one pass through the networks.
BATCH = 64


def trajectories(
    inputs: Inputs, generator: Generator, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """How far every cell, and every jump of the model, misses the teacher's ODE.

    Returns
    -------
    rows
        The trajectory error of each cell, sampling seed and protocol that asks for it.
    jumps
        ``{t, s, error}`` of the jumps between a few levels, from the first sampling seed's noises;
        empty if nobody asks, or the model does not jump.
    """
    rows: list[dict[str, Any]] = []
    jumps: list[dict[str, float]] = []
    for name, cells in inputs.chosen.items():
        protocol = inputs.references[name].protocol
        if not protocol.needs_teacher:
            continue
        for seed in inputs.experiment.evaluation.sample_seeds:
            noises = _noises(protocol, generator, seed)
            pairs = [] if rows or not generator.has_jumps else _pairs(generator)
            found = kept(
                folder / "trajectory",
                _key(inputs, noises) | {"cells": cells, "jumps": pairs},
                partial(_measured, inputs, generator, cells, pairs, noises),
            )
            rows += [row | {"protocol": name} for row in found["rows"]]
            jumps += found["jumps"]
    return rows, jumps


def _pairs(generator: Generator) -> list[Step]:
    return all_jumps(LEVELS, generator.record["diffusion"], generator.final_only)


def _measured(
    inputs: Inputs, generator: Generator, cells: list[Cell], pairs: list[Step], noises: Noises
) -> dict[str, Any]:
    teacher = _teacher(inputs, generator)
    estimates, jumps = errors(generator.model, teacher, cells, pairs, noises)
    rows = [
        {
            "sample_seed": noises.seed,
            "sampler": cell.sampler,
            "gamma": cell.gamma,
            "nfe": cell.nfe,
            "metric": str(MetricName("trajectory_error", n=noises.count)),
            "n": noises.count,
            "rank_deficient": False,
            **estimate._asdict(),
        }
        for cell, estimate in estimates.items()
    ]
    return {"rows": rows, "jumps": jumps}


def _noises(protocol: Protocol, generator: Generator, seed: int) -> Noises:
    return Noises(
        count=protocol.trajectory.noises,
        seed=seed,
        shape=generator.shape,
        classes=generator.classes,
        diffusion=generator.record["diffusion"],
        batch_size=min(protocol.trajectory.noises, BATCH),
        points=protocol.trajectory.points,
    )


def _teacher(inputs: Inputs, generator: Generator) -> Trajectory:
    assert inputs.teacher is not None
    path, digest = inputs.teacher
    return generator.model if digest == inputs.digest else Generator.from_file(path).model


def _key(inputs: Inputs, noises: Noises) -> dict[str, Any]:
    assert inputs.teacher is not None
    return {
        "weights": inputs.digest,
        "teacher": inputs.teacher[1],
        "noises": noises.count,
        "seed": noises.seed,
        "points": noises.points,
    }
