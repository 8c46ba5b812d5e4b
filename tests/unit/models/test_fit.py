"""Converted weights in an experiment: teachers, students, and those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures import tiny
from fixtures.foreign import saved

from ctm_core.data.dataset import Dataset
from ctm_core.evaluation.evaluate import evaluate
from ctm_core.models import foreign, weight_file
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, sha256_file
from ctm_core.training.jobs import train_student

NETWORK = {
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def imported(folder: Path, *, time_s: bool = False, **changes: Any) -> Path:
    """The converted file of a network that fits the tiny experiment, but for the changes."""
    sizes = {"channels": 1, "label_dim": 10} | changes.pop("sizes", {})
    made = made_by_others.model(NETWORK | changes, time_s=time_s, **sizes)
    folder.mkdir(exist_ok=True)
    state = made.state_dict()
    foreign.convert(saved(folder / "file.pt", state), folder / "made")
    return folder / "made/weights.safetensors"


def trained(digits: Dataset, teacher: Path, folder: Path, changes: tiny.Changes) -> Path:
    steps = {"models.ctm.training.steps": 1, "models.ctm.training.snapshots": []}
    return train_student(
        tiny.experiment(steps | dict(changes)),
        "ctm",
        digits,
        teacher,
        output=folder / "out",
        seed=0,
        runs=folder / "runs",
    )


def test_an_imported_teacher_teaches(digits: Dataset, tmp_path: Path) -> None:
    """Its augmentation map is left behind; the rest is where the student starts."""
    teacher = imported(tmp_path / "teacher", augment_dim=9)
    barely = {"models.ctm.training.learning_rate": 1e-12, "models.ctm.training.ema": [0.0]}
    weights = trained(digits, teacher, tmp_path, barely)
    given, _ = load_tensors(teacher)
    made, _ = load_tensors(weights)
    assert "model.map_augment.weight" in given and "model.map_augment.weight" not in made
    for name in given.keys() & made.keys():
        assert torch.allclose(made[name], given[name], atol=1e-9)
    assert weight_file.read_record(weights)["dataset_fingerprint"] == digits.fingerprint


@pytest.mark.parametrize(
    ("changes", "experiment", "reason"),
    [
        ({"model_channels": 12}, {}, r"its network\.model_channels is 12, not 8"),
        ({"sizes": {"resolution": 16}}, {}, "has another resolution than tiny"),
        ({"sizes": {"channels": 3}}, {}, "has another channels than tiny"),
        ({"sizes": {"label_dim": 5}}, {}, "has another label_dim than tiny"),
        ({"sizes": {"label_dim": 0}}, {}, "its conditional is False, not True"),
        ({}, {"diffusion": {"sigma_data": 0.4}}, r"its diffusion\.sigma_data is 0\.5, not 0\.4"),
    ],
)
def test_an_imported_teacher_that_does_not_fit(
    changes: dict[str, Any],
    experiment: tiny.Changes,
    reason: str,
    digits: Dataset,
    tmp_path: Path,
) -> None:
    teacher = imported(tmp_path / "teacher", **changes)
    with pytest.raises(UserError, match=reason):
        trained(digits, teacher, tmp_path, experiment)


def test_imported_weights_are_evaluated(
    references: list[Path], digits: Dataset, tmp_path: Path
) -> None:
    weights = imported(tmp_path / "student", time_s=True)
    result = evaluate(
        tiny.experiment(),
        "ctm",
        weights,
        references,
        seed=0,
        output=tmp_path / "out",
        runs=tmp_path / "runs",
    )
    assert (result["dataset"], result["dataset_fingerprint"]) == ("digits", None)
    assert (result["step"], result["train_hash"]) == (0, sha256_file(tmp_path / "student/file.pt"))
    assert result["rows"]
    with pytest.raises(UserError, match="from a CTM student, so it cannot be the teacher of tiny"):
        evaluate(
            tiny.experiment(), "teacher", weights, references, seed=0, output=tmp_path / "other"
        )
    levels = {"diffusion": {"sigma_max": 40.0}}
    with pytest.raises(UserError, match="is sampled between the noise levels that its authors"):
        evaluate(
            tiny.experiment(levels), "ctm", weights, references, seed=0, output=tmp_path / "other"
        )


@pytest.mark.parametrize(("name", "step"), [("file.pt", 700), ("model000600.pt", 600)])
def test_a_released_model_has_the_step_of_its_name_or_of_the_config(
    name: str, step: int, references: list[Path], tmp_path: Path
) -> None:
    changes = {
        "models.ctm": {"weights": "ctm-cifar10-cond", "step": 700},
        "evaluation.samplers.ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
        "evaluation.protocols": {"tiny": "all"},
    }
    made = made_by_others.model(NETWORK, channels=1, label_dim=10, time_s=True)
    foreign.convert(saved(tmp_path / name, made.state_dict()), tmp_path / "made")
    result = evaluate(
        tiny.experiment(changes),
        "ctm",
        tmp_path / "made/weights.safetensors",
        references[:1],
        seed=0,
        output=tmp_path / "out",
        runs=tmp_path / "runs",
    )
    assert result["step"] == step
