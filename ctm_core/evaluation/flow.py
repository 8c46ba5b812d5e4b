"""Trajectory errors of a model under evaluation, cached by a hash of what they depend on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ctm_core.config import Cell
from ctm_core.evaluation import distillation
from ctm_core.evaluation.inputs import Inputs
from ctm_core.evaluation.kept import kept
from ctm_core.evaluation.metrics.names import MetricName
from ctm_core.evaluation.metrics.trajectory_error import Step
from ctm_core.models.generation import Generator

#: Noise levels between which all jumps of a model are measured.
LEVELS = 9
#: Most noises per forward pass.
BATCH = 96


def trajectories(
    inputs: Inputs, generator: Generator, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Trajectory errors as rows of each cell, sampling seed and protocol that asks for them.

    The second list holds ``{t, s, error}`` of the jumps between a few levels, for the first
    protocol that asks; it is empty if none does, or the model does not jump.
    """
    rows: list[dict[str, Any]] = []
    jumps: list[dict[str, float]] = []
    diffusion = generator.record["diffusion"]
    seeds = inputs.experiment.evaluation.sample_seeds
    all_pairs = []
    if generator.has_jumps:
        all_pairs = distillation.jumps(LEVELS, diffusion, generator.model.end)
    for name, cells in inputs.chosen.items():
        protocol = inputs.references[name].protocol
        if not protocol.needs_teacher:
            continue
        assert inputs.teacher is not None
        noises = distillation.Noises(
            count=protocol.trajectory.noises,
            seeds=tuple(seeds),
            shape=generator.shape,
            classes=generator.classes,
            diffusion=diffusion,
            batch_size=min(len(seeds) * protocol.trajectory.noises, BATCH),
            points=protocol.trajectory.points,
        )
        pairs = [] if rows else all_pairs
        key = {
            "weights": inputs.digest,
            "teacher": inputs.teacher[1],
            "noises": noises.count,
            "seeds": seeds,
            "points": noises.points,
            "cells": [cell.key for cell in cells],
            "jumps": pairs,
        }
        measure = partial(_measured, inputs, generator, cells, pairs, noises)
        measured = kept(folder / "trajectory", key, measure)
        rows += [row | {"protocol": name} for row in measured["rows"]]
        jumps += measured["jumps"]
    return rows, jumps


def _measured(
    inputs: Inputs,
    generator: Generator,
    cells: list[Cell],
    pairs: list[Step],
    noises: distillation.Noises,
) -> dict[str, Any]:
    assert inputs.teacher is not None
    path, digest = inputs.teacher
    # A teacher that is evaluated is its own teacher.
    teacher = generator.model if digest == inputs.digest else Generator.from_file(path).model
    estimates, jumps = distillation.errors(generator.model, teacher, cells, pairs, noises)
    rows = [
        {
            "sample_seed": seed,
            **cell.record,
            "metric": str(MetricName("trajectory_error", n=noises.count)),
            "n": noises.count,
            "rank_deficient": False,
            **estimate._asdict(),
        }
        for seed, own in zip(noises.seeds, estimates, strict=True)
        for cell, estimate in own.items()
    ]
    return {"rows": rows, "jumps": jumps}
