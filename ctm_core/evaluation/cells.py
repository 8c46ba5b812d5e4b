"""One pass over the samples of every cell, for all protocols and their metrics.

Each (cell, sampling seed, protocol) ends as one file of a :class:`State` in the run folder, named
by a hash of everything it depends on. A killed evaluation finds them again; a changed grid of NFE
and gamma, or a metric that needs nothing new of the samples, computes only what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.config import Cell
from ctm_core.config.protocols import Protocol
from ctm_core.diffusion import randomness
from ctm_core.evaluation.inputs import Inputs
from ctm_core.evaluation.metrics.fd import is_long_enough
from ctm_core.evaluation.metrics.nearest import nearest_distances
from ctm_core.evaluation.metrics.reference import Reference
from ctm_core.evaluation.metrics.scoring import scores
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import FeatureExtractor, build_features
from ctm_core.models.generation import Generator
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors, sha256_json
from ctm_core.runtime.progress import Progress

__all__ = ["Task", "compute", "rows", "tasks"]

log = logging.getLogger(__name__)

#: Blocks of the moments where a single value needs an error of its own.
BLOCKS = 8


@dataclass(frozen=True)
class Task:
    """One cell with one sampling seed under one protocol, and the file its state lives in."""

    cell: Cell
    seed: int
    protocol: str
    file: Path


def tasks(inputs: Inputs, folder: Path) -> list[Task]:
    """Every (cell, seed, protocol); cells first, so that one sampling serves all protocols."""
    experiment, chosen = inputs.experiment, inputs.chosen
    found = []
    for cell in experiment.cells(inputs.model, inputs.step):
        for seed in experiment.evaluation.sample_seeds:
            for name in [name for name, cells in chosen.items() if cell in cells]:
                key = sha256_json({"cell": cell, "seed": seed} | _content(inputs, name))
                file = folder / "cells" / f"{key[:24]}.safetensors"
                found.append(Task(cell, seed, name, file))
    return found


def _content(inputs: Inputs, name: str) -> dict[str, Any]:
    """What decides on the state of a cell beside the cell itself."""
    reference = inputs.references[name]
    protocol = reference.protocol
    decisive = ("features", "input_size", "resize", "samples", "rounding", "labels", "precision")
    return {
        "weights": inputs.digest,
        "protocol": protocol.model_dump(mode="json", include=set(decisive)),
        "features": reference.weights_sha256,
        "batch_size": inputs.experiment.evaluation.batch_size,
        "needs": sorted(protocol.needs),
        "keep": protocol.neighbours.rows if protocol.keeps_features else None,
        "blocks": _blocks(reference, inputs.experiment.evaluation.sample_seeds),
        "training": inputs.datasets["train"].fingerprint
        if protocol.needs_training_images
        else None,
    }


def _single(protocol: Protocol, seeds: tuple[int, ...]) -> bool:
    """Whether a row rests on one value, so that its error must come from the samples alone."""
    return len(seeds) == 1 and protocol.seeds == "separate"


def _blocks(reference: Reference, seeds: tuple[int, ...]) -> int:
    """Blocks of a cell's moments: for an error, for the extrapolated distance, or one."""
    protocol = reference.protocol
    if _single(protocol, seeds):
        return BLOCKS
    together = protocol.samples * (len(seeds) if protocol.seeds == "pooled" else 1)
    return 4 if is_long_enough(together, reference.moments.dim) else 1


def compute(inputs: Inputs, generator: Generator, planned: list[Task]) -> None:
    """Sample what no file holds yet, once for all protocols that want it."""
    extractors: dict[str, FeatureExtractor] = {}
    groups: dict[tuple[Cell, int], list[Task]] = {}
    for task in planned:
        if not _done(task):
            groups.setdefault((task.cell, task.seed), []).append(task)
    kept = len({(task.cell, task.seed) for task in planned}) - len(groups)
    if kept:
        log.info("%d of %d cells are done already", kept, kept + len(groups))
    title = f"{inputs.experiment.experiment} {inputs.model} evaluation"
    bar = Progress(title, kept + len(groups), kept)
    for (cell, seed), wanted in groups.items():
        for task in wanted:
            if task.protocol not in extractors:
                reference = inputs.references[task.protocol]
                extractors[task.protocol] = build_features(reference.protocol)
        for same in _by_sampling(inputs, wanted):
            _pass(inputs, generator, cell, seed, same, extractors)
        bar.advance(max(inputs.references[t.protocol].protocol.samples for t in wanted))
    bar.close()


def _by_sampling(inputs: Inputs, wanted: list[Task]) -> Iterator[list[Task]]:
    """Tasks that share their samples."""
    found: dict[tuple[str, int, str], list[Task]] = {}
    for task in wanted:
        protocol = inputs.references[task.protocol].protocol
        key = (protocol.rounding, protocol.samples, protocol.labels)
        found.setdefault(key, []).append(task)
    yield from found.values()


def _pass(
    inputs: Inputs,
    generator: Generator,
    cell: Cell,
    seed: int,
    same: list[Task],
    extractors: dict[str, FeatureExtractor],
) -> None:
    """Draw the samples of a cell once, and write the state of every task."""
    protocols = {task: inputs.references[task.protocol].protocol for task in same}
    first = protocols[same[0]]
    seeds = inputs.experiment.evaluation.sample_seeds
    states = {
        task: State(
            protocol.samples,
            protocol.needs,
            blocks=_blocks(inputs.references[task.protocol], seeds),
            keep=protocol.neighbours.rows,
        )
        for task, protocol in protocols.items()
    }
    training = None
    if any("nearest" in protocol.needs for protocol in protocols.values()):
        learned = inputs.datasets["train"]
        training = learned.batch(torch.arange(len(learned)))[0]
    for images in generator.batches(
        first.samples,
        sampler=cell.sampler,
        nfe=cell.nfe,
        gamma=cell.gamma,
        seed=seed,
        batch_size=inputs.experiment.evaluation.batch_size,
        rounding=first.rounding,
        labels=_labels(inputs, generator, first, seed),
    ):
        nearest = {} if training is None else {"nearest": nearest_distances(images, training)}
        for task, state in states.items():
            outputs = extractors[task.protocol].extract(images, protocols[task].outputs)
            state.update({**outputs, **nearest})
    for task, state in states.items():
        metadata = {"kind": "cell state", "cell": task.cell.label, "seed": str(seed)}
        save_tensors(task.file, state.tensors(), metadata)


def _labels(
    inputs: Inputs, generator: Generator, protocol: Protocol, seed: int
) -> torch.Tensor | None:
    """Classes as often as in training; None leaves the choice to the generator: uniform."""
    if protocol.labels == "uniform" or not generator.classes:
        return None
    dataset = inputs.datasets["train"]
    drawn = randomness.integers(seed, "labels", 0, 0, protocol.samples, len(dataset))
    return dataset.batch(drawn)[1].to(torch.int64)


def rows(inputs: Inputs, planned: list[Task]) -> list[dict[str, Any]]:
    """Score every task; a protocol that pools its seeds gives its rows for all of them."""
    seeds = inputs.experiment.evaluation.sample_seeds
    found = []
    by_cell: dict[tuple[str, Cell], list[Task]] = {}
    for task in planned:
        by_cell.setdefault((task.protocol, task.cell), []).append(task)
    for (name, cell), same in by_cell.items():
        reference = inputs.references[name]
        errors = _single(reference.protocol, seeds)
        for seed, state in _states(reference.protocol, same):
            place = {
                "sample_seed": seed,
                "sampler": cell.sampler,
                "gamma": cell.gamma,
                "nfe": cell.nfe,
                "protocol": name,
            }
            found += [
                place | row
                for row in scores(state, reference.state, reference.protocol, errors=errors)
            ]
    return found


def _states(protocol: Protocol, same: list[Task]) -> Iterator[tuple[int | str, State]]:
    if protocol.seeds == "separate":
        for task in same:
            yield task.seed, _read(task.file)
        return
    pooled = _read(same[0].file)
    for task in same[1:]:
        pooled = pooled.merge(_read(task.file))
    yield "+".join(str(task.seed) for task in same), pooled


def _done(task: Task) -> bool:
    if not task.file.exists():
        return False
    try:
        _read(task.file).moments()
    except (UserError, ValueError) as error:
        log.warning("%s is damaged and made again: %s", task.file, error)
        return False
    return True


def _read(path: Path) -> State:
    return State.from_tensors(load_tensors(path)[0])
