"""A teacher trained on augmented images: EDM's pipeline in the loop, and cifar10-teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fixtures import cifar, tiny
from fixtures.project import ROOT
from pydantic import ValidationError

from ctm_core import config
from ctm_core.config import Experiment, load_experiment
from ctm_core.data import dataset
from ctm_core.data.dataset import Dataset
from ctm_core.data.readers import cifar10
from ctm_core.models import weight_file
from ctm_core.plan import plan
from ctm_core.training import jobs
from ctm_core.training.augmentation import EDM, activate, augment, draw
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import DsmObjective, dsm_loss

AUGMENTED = {"network.augment_dim": 9, "teacher.augment": 0.5}


def section(**keys: Any) -> config.Teacher:
    return config.Teacher.model_validate({"training": {"steps": 1, "batch_size": 8}} | keys)


def model() -> Any:
    torch.manual_seed(0)
    made = weight_file.build_model(
        network=tiny.experiment(AUGMENTED | {"network.dropout": 0.0}).network,
        diffusion=config.Diffusion(),
        resolution=8,
        channels=1,
        label_dim=0,
        time_s=False,
    )
    # The map of the labels starts at zero, like every embedding: give it something to say.
    torch.nn.init.normal_(made.model.map_augment.weight)
    return made


def batch() -> Batch:
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, None, seed=2, step=3)


def gradients(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("flip", [True, False])
def test_the_network_sees_augmented_images_and_is_told(flip: bool) -> None:
    network, by_hand, given = model(), model(), batch()
    made = DsmObjective(section(augment=0.5), network, flip=flip)
    assert made.flips
    terms = made.backward(given, 1.0)
    settings = EDM._replace(p=0.5)
    parameters = activate(draw(given.uniform), settings)
    if not flip:
        assert bool(parameters.xflip.any()) and bool(parameters.yflip.any())
        still = torch.zeros_like(parameters.xflip)
        parameters = parameters._replace(xflip=still, yflip=still)
    images, labels = augment(given.images, parameters, settings)
    assert bool((labels != 0).any()) and not torch.equal(images, given.images)
    sigma = (-1.2 + 1.2 * torch.special.ndtri(given.uniform("sigma"))).exp().float()
    loss, _ = dsm_loss(by_hand, images, sigma, given.normal("noise"), None, labels)
    loss.mean().backward()
    assert terms == {"loss": pytest.approx(float(loss.detach().mean()), rel=1e-6)}
    for ours, theirs in zip(gradients(network), gradients(by_hand), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_it_nothing_changes() -> None:
    given = batch()
    plain = DsmObjective(section(), model())
    assert not plain.flips
    assert plain._augmented(given) == (given.images, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher.augment": 0.12}, "set network.augment_dim to 9"),
        ({"teacher.augment": 0.12, "network.augment_dim": 8}, "set network.augment_dim to 9"),
        ({"teacher.augment": 1.2, "network.augment_dim": 9}, "less than or equal to 1"),
        ({"teacher": {"asset": "a", "augment": 0.1}}, "belongs to a teacher's training"),
        ({"models.ctm.augment": 0.12, "network.augment_dim": 9}, "augment"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tiny.experiment(changes)


def test_training_resumes_and_teaches(digits: Dataset, tmp_path: Path) -> None:
    experiment = tiny.experiment(AUGMENTED)
    whole = jobs.train_teacher(experiment, digits, output=tmp_path / "a", runs=tmp_path / "runs")
    record = weight_file.read_record(whole)
    assert record["network"]["augment_dim"] == 9
    plain = jobs.train_teacher(
        tiny.experiment({"network.augment_dim": 9}),
        digits,
        output=tmp_path / "b",
        runs=tmp_path / "runs",
    )
    assert weight_file.read_record(plain)["train_hash"] != record["train_hash"]
    assert plain.read_bytes() != whole.read_bytes()
    again = jobs.train_teacher(
        experiment, digits, output=tmp_path / "c", runs=tmp_path / "elsewhere"
    )
    assert again.read_bytes() == whole.read_bytes()
    student = jobs.train_student(
        experiment, "ctm", digits, whole, seed=0, output=tmp_path / "s", runs=tmp_path / "runs"
    )
    assert "map_augment.weight" not in " ".join(weight_file.load_weights(student)[0].state_dict())


# -- config/experiments/cifar10-teacher.yaml -----------------------------------------------------

TEACHER = ROOT / "config/experiments/cifar10-teacher.yaml"


def test_settings_are_the_published_ones() -> None:
    made = load_experiment(TEACHER)
    assert made.teacher is not None and made.teacher.training is not None
    training = made.teacher.training
    images = training.steps * training.batch_size
    assert images == 200_000_000
    assert training.warmup_steps == int(10_000_000 / training.batch_size)
    assert training.ema[0] == pytest.approx(0.5 ** (training.batch_size / 500_000), rel=1e-12)
    assert (made.teacher.augment, training.ema_rampup, made.network.dropout) == (0.12, 0.05, 0.13)
    assert (training.optimizer, training.learning_rate) == ("adam", 1e-3)


def test_students_of_the_paper_can_learn_from_it() -> None:
    own, paper = (
        yaml.safe_load((ROOT / f"config/experiments/{name}.yaml").read_text(encoding="utf-8"))
        for name in ("cifar10-teacher", "cifar10-uncond")
    )
    assert own["network"] == paper["network"] and own["diffusion"] == paper["diffusion"]
    taught = Experiment.model_validate(paper | {"teacher": own["teacher"]})
    # A student's hash covers its teacher's settings; the teacher is the same in both files.
    assert taught.train_hash("teacher") == load_experiment(TEACHER).train_hash("teacher")


def test_it_is_planned() -> None:
    made = plan(TEACHER, device_speed="60TFLOP/s")
    rules = {estimate.job.rule for estimate in made.estimates}
    assert {"data", "teacher_cifar10-teacher", "evaluate", "table"} <= rules
    assert made.hours["gpu"] > 100


def test_it_trains_with_every_number_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"train": {"data_batch_1": None}, "test": {"test_batch": None}}
    drawn = {
        name: cifar.draw(64, seed) for seed, name in enumerate(("data_batch_1", "test_batch"))
    }
    md5 = cifar.write_folder(tmp_path / "source", drawn)
    batches = {split: {name: md5[name] for name in files} for split, files in names.items()}
    monkeypatch.setattr(cifar10, "BATCHES", batches)
    images = dataset.prepare("cifar10", "train", str(tmp_path / "source"), tmp_path / "train")
    assert images.flip and images.images.shape == (64, 3, 32, 32)

    small = yaml.safe_load(TEACHER.read_text(encoding="utf-8"))
    small["network"] |= {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1}
    small["teacher"]["training"] |= {
        "steps": 4, "batch_size": 8, "micro_batch": 4, "warmup_steps": 2,
        "checkpoint_every": 2, "preview_every": 0, "log_every": 1,
    }  # fmt: skip
    experiment = Experiment.model_validate(small | {"threads": 1})
    weights = jobs.train_teacher(
        experiment, images, output=tmp_path / "out", runs=tmp_path / "runs"
    )
    made, record = weight_file.load_weights(weights)
    assert record["objective"] == "dsm" and made.model.augment_dim == 9
    log = [json.loads(line) for line in (tmp_path / "out/training.jsonl").read_text().splitlines()]
    assert len(log) == 4 and all(np.isfinite(entry["loss"]) for entry in log)
