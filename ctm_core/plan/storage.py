"""Disk and memory: how large data sets, checkpoints, weights and states are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ctm_core.config import Dataset, Experiment, datasets, layout
from ctm_core.config.asset_listing import Asset
from ctm_core.config.dag import Job
from ctm_core.config.project import Project
from ctm_core.config.protocols import Protocol
from ctm_core.data.readers import images
from ctm_core.evaluation.cells import moment_blocks
from ctm_core.evaluation.previews import SHOWN
from ctm_core.plan.network_costs import Cost, features
from ctm_core.plan.passes import sampled
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

#: Bytes of a float32 and of a float64.
SINGLE, DOUBLE = 4, 8


class Shape(NamedTuple):
    """A data set before it is prepared."""

    image: tuple[int, int, int]  #: C, H, W
    classes: int
    counts: Mapping[str, int]  #: images by split


def data_shape(dataset: str, root: Path = Path(), *, own: bool = False) -> Shape | None:
    """What a data set's traits or its prepared manifest say; None if neither does.

    Of a data set of own images there is only the manifest.
    """
    known = datasets.traits("images" if own else dataset)
    if known.shape is not None and known.classes is not None:
        return Shape(known.shape, known.classes, known.counts)
    path = root / layout.prepared(dataset, "train")["manifest"]
    try:
        manifest = read_json(path)
        count, channels, height, width = manifest["shape"]
        return Shape((channels, height, width), manifest["classes"], {"train": count})
    except (UserError, ValueError, KeyError, TypeError):
        return None


def listed(section: Dataset, known: Mapping[str, Asset]) -> Shape | None:
    """What config/assets.yaml says of own images that are an asset; None if it says nothing."""
    asset = known.get(section.asset or "")
    if asset is None or section.shape is None or not asset.images:
        return None
    classes = (asset.classes or 1) if section.classes == "names" else 1
    counts = {str(split): count for split, count in asset.images.items()}
    return Shape(section.shape, classes, counts)


def survey(section: Dataset) -> Shape | None:
    """What the source of own images holds that are not prepared yet; None if it is not there."""
    if section.reader is None or section.source is None or section.shape is None:
        return None
    with suppress(UserError):
        classes, counts, *_ = images.survey(section.source, section)
        return Shape(section.shape, len(classes), counts)
    return None


def averages(experiment: Experiment, model: str) -> int:
    """How many EMAs of the weights a training keeps; those of equal decay are one."""
    training = experiment.training(model)
    student = experiment.students.get(model)
    own = student is not None and student.traits.ctm_loss
    return len({*((student.target_ema,) if student and own else ()), *training.ema})


def checkpoint(
    experiment: Experiment, model: str, network: Cost, discriminator: Cost | None
) -> int:
    """Bytes of one checkpoint: student, averages, two moments of the optimiser, and the same of
    the discriminator's heads."""
    copies = 1 + averages(experiment, model) + 2
    heads = 0 if discriminator is None else 3 * discriminator.trained
    return SINGLE * (copies * network.parameters + heads)


def on_disk(
    project: Project,
    jobs: Iterable[Job],
    networks: Mapping[tuple[str, str], tuple[Cost, Cost | None]],
    shapes: Mapping[str, Shape | None],
) -> dict[str, float]:
    """Bytes by what they hold, of networks by experiment and model; unknown data are nothing."""
    disk = dict.fromkeys(("data", "weights", "runs", "scores"), 0.0)
    for job in jobs:
        if job.kind == "data" and job.name is not None:
            dataset, split = job.name.split()
            if (shape := shapes.get(dataset)) is not None:
                channels, height, width = shape.image
                # uint8 images and int64 labels.
                disk["data"] += shape.counts.get(split, 0) * (channels * height * width + 8)
        elif job.kind == "train" and job.experiment is not None:
            network, discriminator = networks[job.experiment.experiment, job.model]
            training = job.experiment.training(job.model)
            files = len(job.experiment.exported_steps(job.model))
            files += len(job.experiment.fork_steps(job.model))
            exports = SINGLE * network.parameters * files
            disk["weights"] += exports
            # One checkpoint more than are kept while it is written; exports are copied.
            kept = min(training.keep + 1, -(-training.steps // training.checkpoint_every))
            one = checkpoint(job.experiment, job.model, network, discriminator)
            disk["runs"] += exports + kept * one
        elif job.kind == "convert":
            for (name, model), (network, _) in networks.items():
                if project.experiments[name].imported(model) == job.name:
                    disk["weights"] += SINGLE * network.parameters
                    break
        elif job.kind == "evaluate" and job.experiment is not None:
            disk["scores"] += _scores(project, job, shapes)
    return disk


def _scores(project: Project, job: Job, shapes: Mapping[str, Shape | None]) -> float:
    experiment = job.experiment
    assert experiment is not None
    shape = shapes.get(experiment.dataset.name)
    if shape is None:
        return 0.0
    channels, height, width = shape.image
    section = experiment.evaluation
    shown = len(experiment.cells(job.model, job.step)) * SHOWN
    scores = float(shown * channels * height * width)
    for name, cells in experiment.protocols(job.model, job.step).items():
        protocol = project.protocols[name]
        if (known := features(protocol, shape.image)) is not None:
            state = state_bytes(protocol, known[1], len(section.sample_seeds))
            scores += state * len(cells) * len(section.sample_seeds)
    return scores


def state_bytes(protocol: Protocol, dimensions: int, seeds: int) -> int:
    """Bytes of the state of one cell: moments in float64, and features where they are kept."""
    blocks = moment_blocks(protocol, seeds, dimensions)
    rows = min(protocol.neighbours.rows, protocol.samples) if protocol.keeps_features else 0
    return blocks * DOUBLE * (dimensions**2 + dimensions) + rows * SINGLE * dimensions


def training_memory(
    experiment: Experiment,
    model: str,
    network: Cost,
    teacher: Cost | None,
    discriminator: Cost | None,
    frozen: Cost | None,
) -> float:
    """Peak bytes of one process of a training, beside the program itself.

    Weights, gradients, two moments and the averages are held throughout; on top of them the graphs
    of the student and of the outer map, or, while a checkpoint is written, copies of the moments.
    """
    training = experiment.training(model)
    half = training.precision == "bf16"
    _, micro = training.shared(experiment.resources.training.processes)
    held = SINGLE * network.parameters * (4 + averages(experiment, model))
    for other in (teacher, frozen):
        if other is not None:
            rounded = half or training.frozen_precision is not None
            held += (2 if rounded else SINGLE) * other.parameters
    graphs = network.activation_bytes * micro * (1 if model == "teacher" else 2)
    if discriminator is not None:
        held += SINGLE * (discriminator.parameters + 3 * discriminator.trained)
        graphs += discriminator.activation_bytes * micro
    if half:
        graphs /= 2
    if training.recompute:
        graphs /= 3
    # A checkpoint is gathered in one array and written from another.
    return held + max(graphs, 4.0 * SINGLE * network.parameters)


def evaluation_memory(
    project: Project, job: Job, network: Cost, shape: Shape, teacher: Cost | None
) -> float:
    """Peak bytes of an evaluation, beside the program itself; rough."""
    experiment = job.experiment
    assert experiment is not None
    peak = float(SINGLE * network.parameters)
    if teacher is not None:
        peak += SINGLE * teacher.parameters
    # Without gradients a U-Net keeps what its skip connections carry: of what a backward pass
    # would need, a seventh at the paper's sizes, a quarter at that of the digits.
    peak += network.activation_bytes * experiment.evaluation.batch_size / 6
    for name in experiment.protocols(job.model, job.step):
        if (known := features(project.protocols[name], shape.image)) is not None:
            cost, dimensions = known
            seeds = len(experiment.evaluation.sample_seeds)
            peak += SINGLE * cost.parameters
            peak += 2 * state_bytes(project.protocols[name], dimensions, seeds)
    if sampled(experiment, project.protocols, job.model, job.step).likelihood:
        peak += network.activation_bytes * 64
    return peak
