"""Names of the files under ``results/``, as rules declare them and as a plan counts them.

Paths are relative to the working directory of the workflow. A training seed may be the text
``{seed}``, which stands for any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ctm_core.config import Experiment
from ctm_core.config.protocols import Protocol, ReferenceFile

__all__ = [
    "ANY_SEED",
    "evaluated",
    "evaluation_data",
    "evaluation_folder",
    "further_weights",
    "live_weights",
    "prepared",
    "reference",
    "reference_data",
    "start",
    "trained",
    "training_folder",
    "weights",
]

ANY_SEED = "{seed}"


def prepared(dataset: str, split: str) -> dict[str, str]:
    """The files of a prepared data set."""
    folder = f"results/data/{dataset}/{split}"
    return {
        "images": f"{folder}/images.npy",
        "labels": f"{folder}/labels.npy",
        "manifest": f"{folder}/manifest.json",
    }


def training_folder(experiment: Experiment, model: str, seed: int | str = ANY_SEED) -> str:
    """Where a training's results stand."""
    return f"results/{experiment.experiment}/{model}/seed-{seed}"


def weights(
    experiment: Experiment, model: str, step: int | None = None, seed: int | str = ANY_SEED
) -> str:
    """The file that holds a model's weights after ``step``, by default the last."""
    asset = experiment.imported(model)
    if asset is not None:
        origin = "teachers" if model == "teacher" else "released"
        return f"results/{origin}/{asset}/weights.safetensors"
    final = "teacher" if model == "teacher" else "student"
    last = step in (None, experiment.last_step(model))
    name = final if last else f"snapshot-{step:08d}"
    return f"{training_folder(experiment, model, seed)}/{name}.safetensors"


def live_weights(experiment: Experiment, model: str, step: int, seed: int | str = ANY_SEED) -> str:
    """The file from which another training goes on: weights as they were, not their average."""
    return f"{training_folder(experiment, model, seed)}/live-{step:08d}.safetensors"


def further_weights(experiment: Experiment, model: str, seed: int | str = ANY_SEED) -> list[str]:
    """What a training exports beside its last weights: snapshots, and live weights for forks."""
    last = experiment.last_step(model)
    snapshots = [n for n in experiment.exported_steps(model) if n != last]
    return [
        *(weights(experiment, model, n, seed) for n in snapshots),
        *(live_weights(experiment, model, n, seed) for n in experiment.fork_steps(model)),
    ]


def start(experiment: Experiment, model: str, seed: int | str = ANY_SEED) -> dict[str, str]:
    """The weights that a training starts from, by the option of `ctm train` that takes each."""
    student = experiment.student(model)
    found = {}
    if student.uses_teacher:
        assert experiment.teacher is not None
        found["teacher"] = weights(experiment, "teacher", seed=experiment.teacher.seed)
    if (fork := student.init_from) is not None:
        found["init"] = live_weights(experiment, fork.model, fork.step, seed)
        found["init_average"] = weights(experiment, fork.model, fork.step, seed)
    return found


def evaluation_folder(experiment: Experiment, model: str, seed: int | str, step: int) -> str:
    """Where an evaluation's results stand."""
    return f"{training_folder(experiment, model, seed)}/step-{step}"


def evaluated(experiments: Iterable[Experiment], name: str) -> list[str]:
    """A file of every evaluation: of each model and seed, at each step that a protocol scores."""
    return [
        f"{evaluation_folder(experiment, model, seed, step)}/{name}"
        for experiment in experiments
        for model, seed in experiment.runs()
        for step in experiment.exported_steps(model)
        if experiment.protocols(model, step)
    ]


def trained(experiments: Iterable[Experiment], name: str) -> list[str]:
    """A file of every training."""
    return [
        f"{training_folder(experiment, model, seed)}/{name}"
        for experiment in experiments
        for model, seed in experiment.runs()
        if experiment.imported(model) is None
    ]


def reference(protocol: str) -> str:
    """The file of a protocol's reference statistics."""
    return f"results/features/{protocol}.safetensors"


def reference_data(protocol: Protocol) -> Mapping[str, str]:
    """The prepared images that a reference is made of; none if its statistics are a file.

    Held-out images, where a metric compares with them, have keys that begin with ``held_out_``.
    """
    if isinstance(protocol.reference, ReferenceFile):
        return {}
    found = prepared(protocol.reference.dataset, protocol.reference.split)
    if protocol.needs_held_out_images:
        test = prepared(protocol.reference.dataset, "test")
        found |= {f"held_out_{name}": path for name, path in test.items()}
    return found


def evaluation_data(
    experiment: Experiment, protocols: Mapping[str, Protocol], model: str, step: int
) -> dict[str, str]:
    """What an evaluation reads beside its weights and references.

    The teacher's weights under ``teacher``, and images under ``train_images`` and so on, each
    where a metric, the labels or likelihood need them.
    """
    chosen = [protocols[name] for name in experiment.protocols(model, step)]
    found = {}
    teacher = experiment.teacher
    if model != "teacher" and teacher is not None and any(p.needs_teacher for p in chosen):
        found["teacher"] = weights(experiment, "teacher", seed=teacher.seed)
    splits = {"train"} if any(p.needs_training_images for p in chosen) else set()
    likelihood = experiment.evaluation.likelihood
    if likelihood is not None and experiment.measures_likelihood(model, step):
        splits.add(likelihood.split)
    for split in sorted(splits):
        files = prepared(experiment.dataset.name, split)
        found |= {f"{split}_{name}": path for name, path in files.items()}
    return found
