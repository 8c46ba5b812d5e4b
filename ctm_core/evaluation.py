"""From weights to rows of the table: sample every cell, score it, keep what is done.

Each (cell, sampling seed, protocol) ends as one file of feature moments in the run folder, named
by a hash of everything it depends on. A killed evaluation finds them again; a changed grid of NFE
and gamma computes only what is new.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctm_core.config import Cell, Experiment
from ctm_core.errors import UserError
from ctm_core.features import FeatureExtractor, build_features
from ctm_core.files import (
    load_tensors,
    read_metadata,
    save_tensors,
    sha256_file,
    sha256_json,
    write_json,
)
from ctm_core.generation import Generator
from ctm_core.metrics.moments import Moments
from ctm_core.metrics.reference import Reference, load_reference, score
from ctm_core.model_file import read_record
from ctm_core.previews import write_previews
from ctm_core.progress import Progress
from ctm_core.protocols import Protocol
from ctm_core.provenance import code_version
from ctm_core.runs import RunFolder
from ctm_core.teachers.fit import check_imported, is_imported

__all__ = ["evaluate"]

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class _Task:
    """One cell with one sampling seed under one protocol, and the file its moments live in."""

    cell: Cell
    seed: int
    protocol: str
    file: Path


def evaluate(
    experiment: Experiment,
    model: str,
    weights: Path,
    references: Sequence[Path],
    *,
    seed: int,
    output: Path,
    runs: Path = Path("runs"),
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluate one weight file on every cell of its model.

    Parameters
    ----------
    weights
        What `ctm teacher` or `ctm train` exported.
    references
        Reference moments of every protocol that scores this model.
    seed, step
        The training seed and step the file is claimed to have; both are checked.
    output
        Folder for ``evaluation.json`` and ``previews.safetensors``.
    runs
        Root of the run folders; finished cells are kept under it.

    Raises
    ------
    UserError
        If the weights are of another experiment, model, seed, step or configuration, or a
        reference is missing or was made from other images.
    Interrupted
        If another process evaluates the same weights.
    """
    experiment.last_step(model)  # refuses an unknown model before anything is read
    record = read_record(weights)
    _check_weights(experiment, model, weights, record, seed, step)
    torch.set_num_threads(experiment.threads)
    digest = sha256_file(weights)
    step = int(record["step"])
    if not step and is_imported(record) and experiment.imported(model):
        step = experiment.last_step(model)  # the file's name did not tell
    loaded = _references(references, experiment, model, record)
    # A folder for each step: the snapshots of one training are evaluated side by side.
    folder = runs / experiment.experiment / model / f"seed-{seed}" / f"evaluation-{step:08d}"
    identity = {
        "experiment": experiment.experiment,
        "model": model,
        "seed": seed,
        "train_hash": "evaluation",
    }
    began = time.monotonic()
    with RunFolder(folder, config=identity, inputs={}):
        generator = Generator.from_file(weights)
        tasks = _tasks(experiment, model, step, loaded, digest, folder)
        _compute(experiment, generator, tasks, loaded)
        rows = _rows(experiment, model, tasks, loaded)
        write_previews(
            output / "previews.safetensors",
            model,
            experiment.cells(model, int(record["step"])),
            generator,
            seed=experiment.evaluation.sample_seeds[0],
        )
        seconds = time.monotonic() - began
    result = {
        "experiment": experiment.experiment,
        "dataset": experiment.dataset.name,
        "dataset_fingerprint": record["dataset_fingerprint"],
        "model": model,
        "objective": record["objective"],
        "step": step,
        "train_seed": seed,
        "params_m": sum(p.numel() for p in generator.model.parameters()) / 1e6,
        "checkpoint_sha256": digest,
        "train_hash": record["train_hash"],
        "code_version": code_version(),
        "seconds": round(seconds, 3),
        "protocols": {name: reference.record() for name, reference in loaded.items()},
        "rows": rows,
    }
    write_json(output / "evaluation.json", result)
    return result


def _check_weights(
    experiment: Experiment,
    model: str,
    path: Path,
    record: dict[str, Any],
    seed: int,
    step: int | None,
) -> None:
    expected: dict[str, Any] = {}
    if not is_imported(record):
        expected = {"experiment": experiment.experiment, "model": model, "seed": seed}
    if step is not None and (record["step"] or not is_imported(record)):
        expected["step"] = step
    for key, value in expected.items():
        if record[key] != value:
            raise UserError(
                f"{path} is of {key} {record[key]}, not {value}; give the file that "
                f"{experiment.experiment} made for {model}"
            )
    if is_imported(record):
        check_imported(experiment, record, path, model)
        own = experiment.diffusion.model_dump(mode="json")
        if record["diffusion"] != own:
            raise UserError(
                f"{path} is sampled between the noise levels that its authors used "
                f"({record['diffusion']}), not those of {experiment.experiment}; correct "
                "`diffusion` in the config"
            )
        return
    # `precision: auto` has been resolved by the machine that trained.
    hashes = [e.train_hash(model) for e in (experiment, *map(experiment.resolved, PRECISIONS))]
    if record["train_hash"] not in hashes:
        raise UserError(
            f"{path} was trained with another configuration of {model} (train_hash "
            f"{str(record['train_hash'])[:12]}, now {hashes[0][:12]}); train it again"
        )


def _references(
    paths: Sequence[Path], experiment: Experiment, model: str, record: dict[str, Any]
) -> dict[str, Reference]:
    """The reference of every protocol that scores the model, checked."""
    found = {}
    for path in paths:
        try:
            protocol = Protocol.model_validate_json(read_metadata(path)["protocol"])
        except (KeyError, ValueError):
            raise UserError(
                f"{path} is not a reference file; make one with `ctm features reference`"
            ) from None
        found[protocol.name] = load_reference(path, protocol)
    wanted = experiment.protocols(model, int(record["step"]))
    for name in wanted:
        if name not in found:
            raise UserError(f"no reference given for the protocol {name}; add its file")
        reference = found[name]
        if reference.resolution != record["resolution"]:
            raise UserError(
                f"the reference of {name} is of {reference.resolution}-pixel images, "
                f"{model} makes {record['resolution']}-pixel ones"
            )
        learned = {"dataset": record["dataset"], "split": "train"}
        if (
            record["dataset_fingerprint"] is not None  # converted files do not know their data
            and reference.protocol.reference.model_dump() == learned
            and reference.fingerprint != record["dataset_fingerprint"]
        ):
            raise UserError(
                f"the reference of {name} was made from other images of {record['dataset']} than "
                f"{model} has learned; make one of them again"
            )
    return {name: found[name] for name in wanted}


def _tasks(
    experiment: Experiment,
    model: str,
    step: int,
    references: dict[str, Reference],
    digest: str,
    folder: Path,
) -> list[_Task]:
    """Every (cell, seed, protocol); cells first, so that one sampling serves all protocols."""
    chosen = experiment.protocols(model, step)
    tasks = []
    for cell in experiment.cells(model, step):
        for seed in experiment.evaluation.sample_seeds:
            for name in [name for name, cells in chosen.items() if cell in cells]:
                reference = references[name]
                protocol = reference.protocol.model_dump(
                    mode="json", exclude={"name", "reference"}
                )
                key = sha256_json(
                    {
                        "weights": digest,
                        "cell": cell,
                        "seed": seed,
                        "protocol": protocol,
                        "features": reference.weights_sha256,
                        "batch_size": experiment.evaluation.batch_size,
                    }
                )
                file = folder / "cells" / f"{key[:24]}.safetensors"
                tasks.append(_Task(cell, seed, name, file))
    return tasks


def _compute(
    experiment: Experiment,
    generator: Generator,
    tasks: list[_Task],
    references: dict[str, Reference],
) -> None:
    """Sample what no file holds yet, once for all protocols that want it."""
    extractors: dict[str, FeatureExtractor] = {}
    groups: dict[tuple[Cell, int], list[_Task]] = {}
    for task in tasks:
        if not _done(task):
            groups.setdefault((task.cell, task.seed), []).append(task)
    kept = len({(task.cell, task.seed) for task in tasks}) - len(groups)
    if kept:
        log.info("%d of %d cells are done already", kept, kept + len(groups))
    title = f"{experiment.experiment} {generator.record['model']} evaluation"
    bar = Progress(title, kept + len(groups), kept)
    for (cell, seed), wanted in groups.items():
        by_sampling: dict[tuple[str, int], list[_Task]] = {}
        for task in wanted:
            protocol = references[task.protocol].protocol
            by_sampling.setdefault((protocol.rounding, protocol.samples), []).append(task)
        for (rounding, count), same in by_sampling.items():
            moments: dict[str, Moments] = {}
            for images in generator.batches(
                count,
                sampler=cell.sampler,
                nfe=cell.nfe,
                gamma=cell.gamma,
                seed=seed,
                batch_size=experiment.evaluation.batch_size,
                rounding=rounding,
            ):
                for task in same:
                    name = task.protocol
                    if name not in extractors:
                        extractors[name] = build_features(references[name].protocol)
                    found = Moments.of(extractors[name](images))
                    moments[name] = moments[name].merge(found) if name in moments else found
            for task in same:
                metadata = {"kind": "cell moments", "cell": task.cell.label, "seed": str(seed)}
                save_tensors(task.file, moments[task.protocol].tensors(), metadata)
        bar.advance(max(references[t.protocol].protocol.samples for t in wanted))
    bar.close()


def _rows(
    experiment: Experiment, model: str, tasks: list[_Task], references: dict[str, Reference]
) -> list[dict[str, Any]]:
    """Score every task; a protocol that pools its seeds gives one row for all of them."""
    rows = []
    by_cell: dict[tuple[str, Cell], list[_Task]] = {}
    for task in tasks:
        by_cell.setdefault((task.protocol, task.cell), []).append(task)
    for (name, cell), same in by_cell.items():
        states = [(task.seed, _moments(task.file)) for task in same]
        if references[name].protocol.seeds == "pooled":
            pooled = states[0][1]
            for _, state in states[1:]:
                pooled = pooled.merge(state)
            scored: list[tuple[int | str, Moments]] = [
                ("+".join(str(s) for s, _ in states), pooled)
            ]
        else:
            scored = list(states)
        for seed, state in scored:
            rows.append(
                {
                    "sample_seed": seed,
                    "sampler": cell.sampler,
                    "gamma": cell.gamma,
                    "nfe": cell.nfe,
                    **score(references[name], state),
                }
            )
    return rows


def _done(task: _Task) -> bool:
    if not task.file.exists():
        return False
    try:
        _moments(task.file)
    except (UserError, ValueError) as error:
        log.warning("%s is damaged and made again: %s", task.file, error)
        return False
    return True


def _moments(path: Path) -> Moments:
    return Moments.from_tensors(load_tensors(path)[0])
