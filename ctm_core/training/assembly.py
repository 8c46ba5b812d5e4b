"""The parts of a training, each checked before anything runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ctm_core.config import Experiment, Student
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness, sampling
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import weight_file
from ctm_core.models.foreign.fit import check_imported, is_imported
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors

log = logging.getLogger(__name__)

#: Images of a preview.
PREVIEWS = 64


def fit(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    """What a model's record says of its images and network; teacher and student agree in it."""
    return {
        "dataset_fingerprint": dataset.fingerprint,
        "network": experiment.network.model_dump(mode="json"),
        "diffusion": experiment.diffusion.model_dump(mode="json"),
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "label_dim": dataset.classes if experiment.conditional else 0,
    }


def fresh(
    experiment: Experiment,
    dataset: Dataset,
    seed: int,
    *,
    time_s: bool,
    inner: str = "edm",
    end: float | None = None,
) -> Trajectory:
    """A network with starting weights that depend on the seed alone."""
    torch.manual_seed(randomness.torch_seed(seed, "initial weights", 0))
    return weight_file.build_model(
        network=experiment.network,
        diffusion=experiment.diffusion,
        resolution=dataset.resolution,
        channels=dataset.channels,
        label_dim=dataset.classes if experiment.conditional else 0,
        time_s=time_s,
        inner=inner,
        end=end,
    )


def check_inputs(
    section: Student,
    model: str,
    *,
    teacher: Path | None,
    weak_teacher: Path | None,
    init: Path | None,
    init_average: Path | None,
) -> None:
    """The files that a model's section asks for, no more and no less."""
    fork = section.init_from is not None
    for option, given, expected, key in (
        ("--teacher", teacher, section.uses_teacher, "its objective"),
        ("--weak-teacher", weak_teacher, section.weak_teacher is not None, "weak_teacher"),
        ("--init", init, fork, "init_from"),
        ("--init-average", init_average, fork, "init_from"),
    ):
        if expected and given is None:
            raise UserError(f"{model} needs {option} FILE, because of {key}; add it")
        if given is not None and not expected:
            raise UserError(f"{option} {given}: {model} uses no such file; leave {option} out")


def load_into(network: Trajectory, path: Path) -> None:
    """Load a weight file of ours; raises UserError if it does not fit."""
    weight_file.read_record(path)
    weight_file.load_state(network, load_tensors(path)[0], path)


def check_dataset(experiment: Experiment, dataset: Dataset) -> None:
    """Raise UserError unless these are the training images that the experiment learns."""
    if (dataset.name, dataset.split) != (experiment.dataset.name, "train"):
        raise UserError(
            f"{dataset.path} holds {dataset.name}, split {dataset.split}, but the experiment "
            f"{experiment.experiment} learns {experiment.dataset.name}, split train; prepare it "
            "with `ctm data`"
        )
    held = dataset.manifest.get("preparation", {}).get("settings", {})
    for key, value in experiment.dataset.settings.items():
        if held.get(key) != value:
            raise UserError(
                f"{dataset.path} was prepared with dataset.{key} {held.get(key)}, but "
                f"{experiment.experiment} has {value}; prepare it again with `ctm data`"
            )


def check_teacher(
    experiment: Experiment, dataset: Dataset, record: Mapping[str, Any], path: Path
) -> None:
    """Raise UserError unless a weight file fits this experiment as a teacher, by its record."""
    expected = fit(experiment, dataset)
    if record["model"] != "teacher":
        raise UserError(f"{path} is a student ({record['model']}), not a teacher")
    if is_imported(record):
        check_imported(experiment, record, path, "teacher")
        for key in ("dataset_fingerprint", "network", "diffusion"):
            del expected[key]
    for key, value in expected.items():
        if record[key] != value:
            if key == "dataset_fingerprint":
                what = f"was trained on other images of {record['dataset']}"
                if record["dataset"] != dataset.name:
                    what = f"was trained for the data set {record['dataset']}, not {dataset.name}"
            else:
                what = f"has another {key} than {experiment.experiment}"
            raise UserError(f"{path} {what}; train a teacher for it with `ctm teacher`")


def preview(
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
            latents=latents.to(device),
            labels=None if labels is None else labels.to(device),
            noise=lambda i: randomness.normal(0, "inject", i + 1, 0, PREVIEWS, shape),
            end=average.end,
            **sampling.grid_of(experiment.diffusion.model_dump()),
        )
        average.train(mode)
        log.debug("preview in %.2f s", time.monotonic() - began)
        return sampling.to_uint8(images, "truncate").cpu()

    return preview
