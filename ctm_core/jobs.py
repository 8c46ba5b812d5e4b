"""Whole training jobs: from a config, a data set and a teacher's file to exported weights."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctm_core import ema, model_file, objectives, randomness, sampling
from ctm_core.config import Experiment, Student, Training
from ctm_core.data import Dataset
from ctm_core.errors import UserError
from ctm_core.files import atomic_write, sha256_file, write_json
from ctm_core.objectives.dsm import DsmObjective
from ctm_core.provenance import code_version
from ctm_core.runs import RunFolder, environment
from ctm_core.teachers.fit import check_imported, copy_shared, is_imported
from ctm_core.training import Trainer, resolve_precision

if TYPE_CHECKING:
    from ctm_core.trajectory import Trajectory

__all__ = ["train_student", "train_teacher"]

log = logging.getLogger(__name__)

PREVIEWS = 64


def train_teacher(
    experiment: Experiment,
    dataset: Dataset,
    *,
    output: Path,
    seed: int | None = None,
    runs: Path = Path("runs"),
    run: Path | None = None,
    attempt: int = 1,
) -> Path:
    """Train an EDM denoiser from nothing and export its EMA.

    Returns
    -------
    ``output/teacher.safetensors``; ``training.jsonl`` and ``training.json`` stand beside it.
    """
    device = _device()
    experiment = _resolved(experiment, device)
    training, section = experiment.training("teacher"), experiment.teacher
    assert section is not None
    seed = section.seed if seed is None else seed
    _check_dataset(experiment, dataset)
    student = _fresh(experiment, dataset, seed, time_s=False).to(device)

    def objective(averages: dict[float, Trajectory]) -> DsmObjective:
        return DsmObjective(section, student)

    return _run(
        experiment,
        "teacher",
        "dsm",
        dataset,
        student,
        training.ema,
        objective,
        inputs={"dataset": dataset.fingerprint},
        output=output / "teacher.safetensors",
        seed=seed,
        folder=run or runs / experiment.experiment / "teacher" / f"seed-{seed}",
        explicit=run is not None,
        attempt=attempt,
    )


def train_student(
    experiment: Experiment,
    model: str,
    dataset: Dataset,
    teacher: Path | None,
    *,
    output: Path,
    seed: int,
    init: Path | None = None,
    init_average: Path | None = None,
    runs: Path = Path("runs"),
    run: Path | None = None,
    attempt: int = 1,
) -> Path:
    """Distil a student from a teacher's file and export its EMA.

    Parameters
    ----------
    teacher
        None where the objective has none.
    init, init_average
        For a model with ``init_from``: the live weights and the EMA that the other exported.

    Returns
    -------
    ``output/student.safetensors``, with snapshots and the record beside it.

    Raises
    ------
    UserError
        If the teacher was trained for another data set, network or process, a file is given that
        the model does not use or one is lacking, or its section asks for what cannot be trained
        yet.
    """
    from ctm_core import perceptual

    device = _device()
    experiment = _resolved(experiment, device)
    section = experiment.student(model)
    _check_inputs(section, model, teacher, init, init_average)
    _refuse_untrained(experiment, model)
    assert teacher is not None
    _check_dataset(experiment, dataset)
    denoiser, record = model_file.load_weights(teacher)
    _check_teacher(experiment, dataset, record, teacher)
    denoiser.to(device)
    student = _fresh(experiment, dataset, seed, time_s=True).to(device)
    if section.initial == "teacher":
        copy_shared(denoiser, student)
    distance = perceptual.build_distance(section.distance, section.perceptual).to(device)

    def objective(averages: dict[float, Trajectory]) -> objectives.Objective:
        return objectives.build(
            section.objective,
            experiment=experiment,
            model=model,
            student=student,
            target=averages[section.target_ema],
            teacher=denoiser,
            distance=distance,
        )

    return _run(
        experiment,
        model,
        section.objective,
        dataset,
        student,
        tuple(dict.fromkeys((section.target_ema, *section.training.ema))),
        objective,
        inputs={
            "dataset": dataset.fingerprint,
            "teacher": sha256_file(teacher),
            "distance": distance.weights_sha256,
        },
        output=output / "student.safetensors",
        seed=seed,
        folder=run or runs / experiment.experiment / model / f"seed-{seed}",
        explicit=run is not None,
        attempt=attempt,
    )


def _run(
    experiment: Experiment,
    model: str,
    objective_name: str,
    dataset: Dataset,
    student: Trajectory,
    rates: tuple[float, ...],
    build_objective: Callable[[dict[float, Trajectory]], objectives.Objective],
    *,
    inputs: Mapping[str, str | None],
    output: Path,
    seed: int,
    folder: Path,
    explicit: bool,
    attempt: int,
) -> Path:
    section = experiment.training(model)
    train_hash = experiment.train_hash(model)
    if not explicit:
        folder = folder / train_hash[:12]
    identity = {
        "experiment": experiment.experiment,
        "model": model,
        "seed": seed,
        "train_hash": train_hash,
        "configuration": experiment.model_dump(mode="json"),
    }
    if section.channels_last:
        student.to(memory_format=torch.channels_last)
    averages = {rate: ema.frozen_copy(student).train() for rate in rates}
    record = {
        "experiment": experiment.experiment,
        "model": model,
        "objective": objective_name,
        "seed": seed,
        "train_hash": train_hash,
        "ema": section.final_ema,
        "dataset": experiment.dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "inputs": dict(inputs),
        "network": experiment.network.model_dump(mode="json"),
        "diffusion": experiment.diffusion.model_dump(mode="json"),
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "label_dim": _label_dim(experiment, dataset),
        "class_names": dataset.class_names,
        "time_s": model != "teacher",
    }

    def export(path: Path, average: Trajectory, step: int) -> None:
        model_file.export(path, average, record | {"step": step})

    with RunFolder(folder, config=identity, inputs=inputs, attempt=attempt) as run:
        run.restore_environment(experiment.threads)
        trainer = Trainer(
            title=f"{experiment.experiment} {model} seed {seed}",
            section=section,
            objective=build_objective(averages),
            student=student.train(),
            averages=averages,
            dataset=dataset,
            labels=experiment.conditional,
            seed=seed,
            run=run,
            device=next(student.parameters()).device,
            preview=_preview(experiment, dataset, model),
        )
        exports = _exports(section, run.path / "exports", output.name)
        trainer.train(exports, export)
        summary = {
            "experiment": experiment.experiment,
            "model": model,
            "objective": objective_name,
            "seed": seed,
            "train_hash": train_hash,
            "steps": section.steps,
            "parameters": sum(p.numel() for p in student.parameters()),
            "seconds": round(trainer.seconds, 3),
            "exact": run.exact,
            "forward_passes": trainer.objective.evaluations,
            "hardware": environment(),
            "precision": section.precision,
            "weights_sha256": sha256_file(exports[section.steps]),
            "dataset_fingerprint": dataset.fingerprint,
            "teacher_sha256": inputs.get("teacher"),
            "code_version": code_version(),
        }
        _deliver(run.path, exports, output.parent, summary)
    return output


def _exports(section: Training, folder: Path, final: str) -> dict[int, Path]:
    files = {step: folder / f"snapshot-{step:08d}.safetensors" for step in section.snapshots}
    return files | {section.steps: folder / final}


def _deliver(
    run: Path, exports: Mapping[int, Path], folder: Path, summary: Mapping[str, Any]
) -> None:
    """Copy the run's results to where the workflow declared them, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (run / "training.jsonl", *sorted(exports.values())):
        if source.name == "training.jsonl":
            write_json(folder / "training.json", summary)
        with atomic_write(folder / source.name) as temporary:
            shutil.copyfile(source, temporary)


# -- assembly ---------------------------------------------------------------------------------


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _resolved(experiment: Experiment, device: torch.device) -> Experiment:
    return experiment.resolved(resolve_precision("auto", device))


def _label_dim(experiment: Experiment, dataset: Dataset) -> int:
    return dataset.classes if experiment.conditional else 0


def _fresh(experiment: Experiment, dataset: Dataset, seed: int, *, time_s: bool) -> Trajectory:
    torch.manual_seed(randomness.torch_seed(seed, "initial weights", 0))
    return model_file.build_model(
        network=experiment.network,
        diffusion=experiment.diffusion,
        resolution=dataset.resolution,
        channels=dataset.channels,
        label_dim=_label_dim(experiment, dataset),
        time_s=time_s,
    )


def _check_inputs(
    section: Student, model: str, teacher: Path | None, init: Path | None, average: Path | None
) -> None:
    """The files that a model's section asks for, no more and no less."""
    fork = section.init_from is not None
    for option, given, wanted, key in (
        ("--teacher", teacher, section.uses_teacher, "its objective"),
        ("--init", init, fork, "init_from"),
        ("--init-average", average, fork, "init_from"),
    ):
        if wanted and given is None:
            raise UserError(f"{model} needs {option} FILE, because of {key}; add it")
        if given is not None and not wanted:
            raise UserError(f"{option} {given}: {model} uses no such file; leave {option} out")


def _refuse_untrained(experiment: Experiment, model: str) -> None:
    """One sentence about what a configuration can say and the engine cannot do yet."""
    section = experiment.student(model)
    asked = {
        f"objective: {section.objective}": section.objective != "ctm",
        "adversarial": section.adversarial is not None,
        "init_from": section.init_from is not None,
        "live weights for a fork": bool(experiment.fork_steps(model)),
        "lambda_scope: global": section.lambda_scope == "global",
        "training.accumulation: sum": section.training.accumulation == "sum",
    }
    if untrained := [key for key, is_asked in asked.items() if is_asked]:
        raise UserError(
            f"{model} of {experiment.experiment} asks for {', '.join(untrained)}, which this "
            "version of ctm can plan but not train yet"
        )


def _check_dataset(experiment: Experiment, dataset: Dataset) -> None:
    if (dataset.name, dataset.split) != (experiment.dataset.name, "train"):
        raise UserError(
            f"{dataset.path} holds {dataset.name}, split {dataset.split}, but the experiment "
            f"{experiment.experiment} learns {experiment.dataset.name}, split train; prepare it "
            "with `ctm data`"
        )


def _check_teacher(
    experiment: Experiment, dataset: Dataset, record: Mapping[str, Any], path: Path
) -> None:
    expected = {
        "dataset_fingerprint": dataset.fingerprint,
        "network": experiment.network.model_dump(mode="json"),
        "diffusion": experiment.diffusion.model_dump(mode="json"),
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "label_dim": _label_dim(experiment, dataset),
    }
    if record["model"] != "teacher":
        raise UserError(f"{path} is a student ({record['model']}), not a teacher")
    if is_imported(record):
        check_imported(experiment, record, path, "teacher")
        for key in ("dataset_fingerprint", "network", "diffusion"):
            del expected[key]
    for key, value in expected.items():
        if json.loads(json.dumps(record[key])) != json.loads(json.dumps(value)):
            if key == "dataset_fingerprint":
                what = f"was trained on other images of {record['dataset']}"
                if record["dataset"] != dataset.name:
                    what = f"was trained for the data set {record['dataset']}, not {dataset.name}"
            else:
                what = f"has another {key} than {experiment.experiment}"
            raise UserError(f"{path} {what}; train a teacher for it with `ctm teacher`")


def _preview(
    experiment: Experiment, dataset: Dataset, model: str
) -> Callable[[Trajectory], torch.Tensor]:
    """Samples of fixed noises, so that the pictures of a run show one thing getting better."""
    shape = tuple(int(n) for n in dataset.images.shape[1:])
    latents = randomness.normal(0, "latents", 0, 0, PREVIEWS, shape)
    labels = torch.arange(PREVIEWS) % dataset.classes if experiment.conditional else None
    sampler, nfe = ("heun", 17) if model == "teacher" else ("gamma", 1)

    def preview(average: Trajectory) -> torch.Tensor:
        began, mode = time.monotonic(), average.training
        device = next(average.parameters()).device
        average.eval()
        images = sampling.sample(
            average,
            sampler=sampler,
            nfe=nfe,
            gamma=None if sampler == "heun" else 0.0,
            latents=latents.to(device),
            labels=None if labels is None else labels.to(device),
            noise=lambda i: randomness.normal(0, "inject", i + 1, 0, PREVIEWS, shape),
            sigma_min=experiment.diffusion.sigma_min,
            sigma_max=experiment.diffusion.sigma_max,
            rho=experiment.diffusion.rho,
        )
        average.train(mode)
        log.debug("preview in %.2f s", time.monotonic() - began)
        return sampling.to_uint8(images, "truncate").cpu()

    return preview
