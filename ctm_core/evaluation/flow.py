"""A model's jumps beside its teacher's ODE, kept by a hash of what they depend on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ctm_core.config import Cell
from ctm_core.distillation import Noises, cell_errors, jump_errors, jumps
from ctm_core.evaluation.inputs import Inputs
from ctm_core.evaluation.kept import kept
from ctm_core.generation import Generator
from ctm_core.metrics.names import MetricName
from ctm_core.protocols import Protocol
from ctm_core.trajectory import Trajectory

__all__ = ["model_jumps", "trajectory_rows"]

#: Levels between which all jumps of a model are measured.
LEVELS = 9


def trajectory_rows(inputs: Inputs, generator: Generator, folder: Path) -> list[dict[str, Any]]:
    """The trajectory error of every cell, for each sampling seed and protocol that asks for it."""
    found: list[dict[str, Any]] = []
    for name, cells in inputs.chosen.items():
        protocol = inputs.references[name].protocol
        if not protocol.needs_teacher:
            continue
        for seed in inputs.experiment.evaluation.sample_seeds:
            noises = _noises(protocol, generator, seed)
            rows = kept(
                folder / "trajectory",
                _key(inputs, noises) | {"cells": cells},
                partial(_cell_rows, inputs, generator, cells, noises),
            )
            found += [row | {"protocol": name} for row in rows]
    return found


def _cell_rows(
    inputs: Inputs, generator: Generator, cells: list[Cell], noises: Noises
) -> list[dict[str, Any]]:
    estimates = cell_errors(generator.model, _teacher(inputs, generator), cells, noises)
    return [
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


def model_jumps(inputs: Inputs, generator: Generator, folder: Path) -> list[dict[str, float]]:
    """``{t, s, error}`` of every jump between a few levels; empty where nobody asks or none is."""
    asking = [r.protocol for r in inputs.references.values() if r.protocol.needs_teacher]
    if not asking or not generator.has_jumps:
        return []
    noises = _noises(asking[0], generator, inputs.experiment.evaluation.sample_seeds[0])
    pairs = jumps(LEVELS, noises.diffusion, generator.final_only)
    found: list[dict[str, float]] = kept(
        folder / "trajectory",
        _key(inputs, noises) | {"jumps": pairs},
        lambda: jump_errors(generator.model, _teacher(inputs, generator), pairs, noises),
    )
    return found


def _noises(protocol: Protocol, generator: Generator, seed: int) -> Noises:
    return Noises(
        count=protocol.trajectory.noises,
        seed=seed,
        shape=generator.shape,
        classes=generator.classes,
        diffusion=generator.record["diffusion"],
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
