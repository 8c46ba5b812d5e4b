"""What the numbers of an experiment come to: jobs, samplings, bytes of a batch, and their bounds.

Every number of a configuration has bounds of its own. Products of allowed numbers can still be too
large; they are refused here, before anything is listed or allocated. ``experiment`` is a
:class:`ctm_core.config.Experiment`, which asks this module while it is validated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Trainings and evaluations of a project; samplings of an experiment.
MOST_JOBS, MOST_SAMPLINGS = 20_000, 500_000
#: The largest tensor of a batch.
MOST_BYTES = 2**36


def jobs(experiment: Any) -> int:
    """How many models are trained or converted, and evaluated at how many steps, in sum."""
    return sum(1 + len(experiment.exported_steps(model)) for model, _ in experiment.runs())


def samplings(experiment: Any) -> int:
    """Cells of each model, seed and step, with each sample seed; an upper limit."""
    samplers = experiment.evaluation.samplers
    cells = {model: sum(grid.size for grid in grids) for model, grids in samplers.items()}
    per_seed: int = sum(
        cells[model] * len(experiment.exported_steps(model)) for model, _ in experiment.runs()
    )
    return per_seed * len(experiment.evaluation.sample_seeds)


def batches(experiment: Any) -> dict[str, int]:
    """Images that go through a network at once, by the key that says so."""
    processes = experiment.resources.training.processes
    sizes: dict[str, int] = {"evaluation.batch_size": experiment.evaluation.batch_size}
    trained = {name: f"models.{name}" for name in experiment.students}
    if experiment.trains_teacher:
        trained["teacher"] = "teacher"
    for name, place in trained.items():
        training = experiment.training(name)
        key = "batch_size" if training.micro_batch is None else "micro_batch"
        sizes[f"{place}.training.{key}"] = training.shared(processes)[1]
    return sizes


def problems(experiment: Any) -> Iterator[str]:
    """What is too much, as sentences that begin with the key."""
    if (count := jobs(experiment)) > MOST_JOBS:
        yield f"seeds: {count:,} trainings and evaluations; at most {MOST_JOBS:,}"
    if (count := samplings(experiment)) > MOST_SAMPLINGS:
        yield (
            f"evaluation.samplers: {count:,} samplings (cells, steps, seeds and sample_seeds); "
            f"at most {MOST_SAMPLINGS:,}"
        )
    shape = experiment.dataset.shape
    if shape is None:
        return
    channels = experiment.network.model_channels * experiment.network.channel_mult[0]
    for key, images in batches(experiment).items():
        size = 4 * images * channels * shape[1] * shape[2]
        if size > MOST_BYTES:
            yield (
                f"{key}: activations of {images:,} images at the first level take "
                f"{size / 2**30:,.0f} GiB; at most {MOST_BYTES >> 30}"
            )
