"""Names of the files under ``results/``.

Paths are relative to the working directory of the workflow. Whatever varies may be the text of a
wildcard, such as ``{seed}``, instead of a value. :mod:`ctm_core.config.dag` says which job makes
and which reads each file.
"""

from __future__ import annotations

from pathlib import PurePath

from ctm_core.config.experiment import Experiment

ANY_SEED = "{seed}"


def _files(folder: str, *names: str) -> dict[str, str]:
    return {PurePath(name).stem: f"{folder}/{name}" for name in names}


def prepared(dataset: str, split: str) -> dict[str, str]:
    """The files of a prepared data set."""
    return _files(f"results/data/{dataset}/{split}", "images.npy", "labels.npy", "manifest.json")


def reference(protocol: str) -> str:
    """The file of a protocol's reference statistics."""
    return f"results/features/{protocol}.safetensors"


def training_folder(experiment: str, model: str, seed: int | str = ANY_SEED) -> str:
    """Where a training's results stand."""
    return f"results/{experiment}/{model}/seed-{seed}"


def training(experiment: str, model: str, seed: int | str = ANY_SEED) -> dict[str, str]:
    """What a training leaves beside weights: its curve, its record, and how fast it was."""
    folder = training_folder(experiment, model, seed)
    return {
        "curve": f"{folder}/training.jsonl",
        "record": f"{folder}/training.json",
        "speed": f"{folder}/speed.json",
    }


def evaluation(experiment: str, model: str, seed: int | str, step: int | str) -> dict[str, str]:
    """The files of an evaluation."""
    folder = f"{training_folder(experiment, model, seed)}/step-{step}"
    return _files(folder, "evaluation.json", "previews.safetensors", "speed.json")


def weights(
    experiment: Experiment, model: str, step: int | None = None, seed: int | str = ANY_SEED
) -> str:
    """The file that holds a model's weights after ``step``, by default the last."""
    asset = experiment.imported(model)
    if asset is not None:
        origin = "teachers" if model == "teacher" else "released"
        return converted(origin, asset)["weights"]
    final = "teacher" if model == "teacher" else "student"
    last = step in (None, experiment.last_step(model))
    name = final if last else f"snapshot-{step:08d}"
    return f"{training_folder(experiment.experiment, model, seed)}/{name}.safetensors"


def converted(origin: str, asset: str) -> dict[str, str]:
    """The files of a converted network; ``origin`` is ``teachers`` or ``released``."""
    return _files(f"results/{origin}/{asset}", "weights.safetensors", "provenance.json")


def live_weights(experiment: Experiment, model: str, step: int, seed: int | str = ANY_SEED) -> str:
    """The file from which another training goes on: weights as they were, not their average."""
    folder = training_folder(experiment.experiment, model, seed)
    return f"{folder}/live-{step:08d}.safetensors"


def further_weights(
    experiment: Experiment, model: str, seed: int | str = ANY_SEED
) -> tuple[str, ...]:
    """What a training exports beside its last weights: snapshots, and live weights for forks."""
    last = experiment.last_step(model)
    snapshots = [n for n in experiment.exported_steps(model) if n != last]
    return (
        *(weights(experiment, model, n, seed) for n in snapshots),
        *(live_weights(experiment, model, n, seed) for n in experiment.fork_steps(model)),
    )
