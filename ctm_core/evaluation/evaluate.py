"""From weights to rows of the table: sample every cell, score it, keep what is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctm_core.config import Experiment
from ctm_core.evaluation.cells import compute, rows, tasks
from ctm_core.evaluation.evaluation_file import write_evaluation
from ctm_core.evaluation.flow import trajectories
from ctm_core.evaluation.inputs import gather
from ctm_core.evaluation.likelihood_rows import likelihood_rows
from ctm_core.evaluation.previews import write_previews
from ctm_core.models.generation import Generator
from ctm_core.runtime.files import write_record
from ctm_core.runtime.provenance import code_version
from ctm_core.runtime.runs import RunFolder, environment
from ctm_core.runtime.threads import use_threads


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
    teacher: Path | None = None,
    data: Sequence[Path] = (),
) -> dict[str, Any]:
    """Evaluate one weight file on every cell of its model.

    Parameters
    ----------
    weights
        What `ctm teacher` or `ctm train` exported.
    references
        Reference statistics of every protocol that scores this model.
    seed, step
        The training seed and step the file is claimed to have; both are checked.
    output
        Folder for ``evaluation.json``, ``previews.safetensors`` and ``speed.json``.
    runs
        Root of the run folders; finished cells are kept under it.
    teacher
        The teacher's weights, for the trajectory error; the teacher itself needs none.
    data
        Prepared data sets, for memorisation, labels as in training, and likelihood.

    Raises
    ------
    UserError
        If the weights are of another experiment, model, seed, step or configuration, or something
        that a protocol needs is missing or was made from other images.
    Interrupted
        If another process evaluates the same weights.
    """
    inputs = gather(
        experiment, model, weights, references, seed=seed, step=step, teacher=teacher, data=data
    )
    use_threads(experiment.threads)
    # A folder for each step: the snapshots of one training are evaluated side by side.
    name = f"evaluation-{inputs.step:08d}"
    folder = runs / experiment.experiment / model / f"seed-{seed}" / name
    identity = {
        "experiment": experiment.experiment,
        "model": model,
        "seed": seed,
        "train_hash": "evaluation",
    }
    began = time.monotonic()
    with RunFolder(folder, config=identity, inputs={}):
        generator = Generator.from_file(weights, experiment.evaluation.sampling_precision)
        planned = tasks(inputs, folder)
        compute(inputs, generator, planned)
        scored = rows(inputs, planned)
        followed, jumps = trajectories(inputs, generator, folder)
        measured, likelihood = likelihood_rows(inputs, generator, folder)
        write_previews(
            output / "previews.safetensors",
            model,
            experiment.cells(model, int(inputs.record["step"])),
            generator,
            seed=experiment.evaluation.sample_seeds[0],
            weights_sha256=inputs.digest,
        )
        seconds = time.monotonic() - began
    sampled = experiment.evaluation.sampled_in()
    result = {
        "experiment": experiment.experiment,
        "dataset": experiment.dataset.name,
        "dataset_fingerprint": inputs.record["dataset_fingerprint"],
        "model": model,
        "objective": inputs.record["objective"],
        "step": inputs.step,
        "train_seed": seed,
        "params_m": sum(p.numel() for p in generator.model.parameters()) / 1e6,
        "checkpoint_sha256": inputs.digest,
        "train_hash": inputs.record["train_hash"],
        "code_version": code_version(),
        "protocols": {name: r.record() | sampled for name, r in inputs.references.items()}
        | likelihood,
        "rows": scored + followed + measured,
        "trajectory": jumps,
    }
    write_record(output / "speed.json", {"seconds": round(seconds, 3), "hardware": environment()})
    write_evaluation(output / "evaluation.json", result)
    return result
