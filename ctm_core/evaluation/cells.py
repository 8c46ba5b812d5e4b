"""One pass over the samples of every cell, for all protocols and their metrics.

Each (cell, sampling seed, protocol) ends as one file of a :class:`State` in the run folder, named
by a hash of everything it depends on. A killed evaluation finds them again; a changed grid of NFE
and gamma, or a metric that needs nothing new of the samples, computes only what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

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
from ctm_core.runtime.untrusted import printable

log = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

#: Blocks of the moments where a single value needs an error of its own.
BLOCKS = 8


@dataclass(frozen=True)
class Task:
    """One cell with one sampling seed under one protocol, and the file of its state."""

    cell: Cell
    seed: int
    reference: Reference
    file: Path

    @property
    def protocol(self) -> Protocol:
        return self.reference.protocol


def tasks(inputs: Inputs, folder: Path) -> list[Task]:
    """Every (cell, seed, protocol); cells first, so that one sampling serves all protocols."""
    experiment, chosen = inputs.experiment, inputs.chosen
    planned = []
    for cell in experiment.cells(inputs.model, inputs.step):
        for seed in experiment.evaluation.sample_seeds:
            for name in [name for name, cells in chosen.items() if cell in cells]:
                reference = inputs.references[name]
                key = sha256_json({"cell": cell.key, "seed": seed} | _content(inputs, reference))
                file = folder / "cells" / f"{key[:24]}.safetensors"
                planned.append(Task(cell, seed, reference, file))
    return planned


def _content(inputs: Inputs, reference: Reference) -> dict[str, Any]:
    """What decides on the state of a cell beside the cell itself."""
    protocol, evaluation = reference.protocol, inputs.experiment.evaluation
    decisive = {"features", "input_size", "resize", "samples", "rounding", "labels", "precision"}
    training = inputs.datasets["train"] if protocol.needs_training_images else None
    return evaluation.sampled_in() | {
        "weights": inputs.digest,
        "protocol": protocol.model_dump(mode="json", include=decisive),
        "features": reference.weights_sha256,
        "batch_size": evaluation.batch_size,
        "needs": sorted(protocol.needs),
        "keep": protocol.neighbours.rows if protocol.keeps_features else None,
        "blocks": _blocks(inputs, reference),
        "training": None if training is None else training.fingerprint,
    }


def _blocks(inputs: Inputs, reference: Reference) -> int:
    seeds = len(inputs.experiment.evaluation.sample_seeds)
    return moment_blocks(reference.protocol, seeds, reference.moments.dim)


def _single(protocol: Protocol, seeds: int) -> bool:
    """Whether a row rests on one value, so that its error must come from the samples alone."""
    return seeds == 1 and protocol.seeds == "separate"


def moment_blocks(protocol: Protocol, seeds: int, dim: int) -> int:
    """Blocks of the moments of a cell, for features of ``dim`` dimensions.

    As many as a standard error or the extrapolated distance needs, or one.
    """
    if _single(protocol, seeds):
        return BLOCKS
    together = protocol.samples * (seeds if protocol.seeds == "pooled" else 1)
    return 4 if is_long_enough(together, dim) else 1


def compute(inputs: Inputs, generator: Generator, planned: list[Task]) -> None:
    """Sample what no file holds yet, once for all protocols that want it."""
    extractors: dict[str, FeatureExtractor] = {}
    groups = _grouped((t for t in planned if not _done(t)), lambda t: (t.cell, t.seed))
    done = len({(task.cell, task.seed) for task in planned}) - len(groups)
    if done:
        log.info("%d of %d cells are done already", done, done + len(groups))
    title = f"{inputs.experiment.experiment} {inputs.model} evaluation"
    bar = Progress(title, done + len(groups), done)
    for wanted in groups.values():
        for protocol in (task.protocol for task in wanted):
            if protocol.name not in extractors:
                extractors[protocol.name] = build_features(protocol)
        for same in _grouped(wanted, _sampling).values():
            _pass(inputs, generator, same, extractors)
        bar.advance(max(task.protocol.samples for task in wanted))
    bar.close()


def _grouped(planned: Iterable[Task], key: Callable[[Task], KeyT]) -> dict[KeyT, list[Task]]:
    groups: dict[KeyT, list[Task]] = {}
    for task in planned:
        groups.setdefault(key(task), []).append(task)
    return groups


def _sampling(task: Task) -> tuple[str, int, str]:
    """What tasks of one cell and seed share if they share their samples."""
    return task.protocol.rounding, task.protocol.samples, task.protocol.labels


def _pass(
    inputs: Inputs,
    generator: Generator,
    same: list[Task],
    extractors: dict[str, FeatureExtractor],
) -> None:
    """Draw the samples of a cell once, and write the state of every task."""
    first, cell = same[0].protocol, same[0].cell
    states = [
        State(
            task.protocol.samples,
            task.protocol.needs,
            blocks=_blocks(inputs, task.reference),
            keep=task.protocol.neighbours.rows,
        )
        for task in same
    ]
    training = None
    if any("nearest" in task.protocol.needs for task in same):
        learned = inputs.datasets["train"]
        training = learned.batch(torch.arange(len(learned)))[0]
    for images in generator.batches(
        first.samples,
        **cell._asdict(),
        seed=same[0].seed,
        batch_size=inputs.experiment.evaluation.batch_size,
        rounding=first.rounding,
        labels=_labels(inputs, generator, first, same[0].seed),
    ):
        nearest = {} if training is None else {"nearest": nearest_distances(images, training)}
        for task, state in zip(same, states, strict=True):
            extractor = extractors[task.protocol.name]
            state.update({**extractor.extract(images, task.protocol.outputs), **nearest})
    for task, state in zip(same, states, strict=True):
        save_tensors(task.file, state.tensors(), {"kind": "cell state", **_identity(task)})


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
    scored = []
    by_cell = _grouped(planned, lambda task: (task.protocol.name, task.cell))
    for (name, cell), same in by_cell.items():
        reference = same[0].reference
        for seed, state in _states(reference.protocol, same):
            place = {"sample_seed": seed, **cell.record, "protocol": name}
            errors = _single(reference.protocol, len(same))
            values = scores(state, reference.state, reference.protocol, errors=errors)
            scored += [place | row for row in values]
    return scored


def _states(protocol: Protocol, same: list[Task]) -> Iterator[tuple[int | str, State]]:
    states = map(_read, same)
    if protocol.seeds == "separate":
        yield from zip((task.seed for task in same), states, strict=True)
    else:
        yield "+".join(str(task.seed) for task in same), reduce(State.merge, states)


def _done(task: Task) -> bool:
    if not task.file.exists():
        return False
    try:
        _read(task)
    except UserError as error:
        reason = str(error).removeprefix(f"{task.file} ").partition(";")[0]
        log.warning("%s is damaged and made again: it %s", task.file, reason)
        return False
    return True


def _identity(task: Task) -> dict[str, str]:
    return {"cell": task.cell.label, "seed": str(task.seed), "key": task.file.stem}


def _read(task: Task) -> State:
    """The state of a task; raises UserError if its file is damaged or another task's."""
    tensors, metadata = load_tensors(task.file)
    try:
        for name, expected in _identity(task).items():
            # The key is missing from the files of earlier versions.
            if metadata.get(name, expected) != expected:
                raise ValueError(f"expected the {name} {expected}, but got {metadata[name]}")
        state = State.from_tensors(tensors)
        state.moments()
    except ValueError as error:
        reason = printable(str(error))
        raise UserError(f"{task.file} is not the state of this cell ({reason})") from None
    return state
