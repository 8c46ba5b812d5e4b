"""What holds for every objective without an exception: exact resuming, cuts, counts, samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.tiny import KillAt, Trained

import ctm_core
from ctm_core.config import Experiment
from ctm_core.config.objective_traits import objectives, traits
from ctm_core.data.dataset import Dataset
from ctm_core.plan.passes import expected
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, read_json
from ctm_core.training import jobs

APPLY = "ctm_core.training.loop:Trainer._apply"


class Place:
    """A folder in which a student of some objective is trained by the command."""

    def __init__(
        self,
        folder: Path,
        digits: Dataset,
        teacher: Path,
        name: str,
        keys: dict[str, Any],
        more: tiny.Changes | None = None,
    ) -> None:
        self.folder, self.digits, self.teacher = folder, digits, teacher
        folder.mkdir()
        changes = tiny.of_objective(name) | {"models.ctm.training.snapshots": []} | (more or {})
        changes |= {f"models.ctm.training.{key}": value for key, value in keys.items()}
        if traits(name).ctm_loss:
            changes["models.ctm.lambda_scope"] = "global"
        tiny.write_experiment(folder / "tiny.yaml", changes)
        self.experiment: Experiment = tiny.experiment(changes)

    def train(self, *before: KillAt, processes: int = 1) -> tiny.Ended:
        section = self.experiment.student("ctm")
        words: list[str | Path] = ["train", "--config", "tiny.yaml", "--model", "ctm"]
        words += ["--data", self.digits.path, "--output", "out", "--processes", str(processes)]
        options = ["--teacher"] if section.uses_teacher else []
        options += ["--init", "--init-average"] if section.init_from is not None else []
        for option in options:  # a teacher has all that a student without s has
            words += [option, self.teacher]
        return tiny.ctm(words, self.folder, before)

    @property
    def weights(self) -> Path:
        return self.folder / "out" / "student.safetensors"

    @property
    def curve(self) -> list[dict[str, float]]:
        lines = (self.folder / "out" / "training.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def record(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "out" / "training.json"))


@pytest.mark.parametrize("name", objectives())
def test_a_killed_training_goes_on_exactly(
    name: str, tmp_path: Path, digits: Dataset, teacher: Trained
) -> None:
    keys = {"steps": 4, "checkpoint_every": 2}
    places = [
        Place(tmp_path / end, digits, teacher.weights, name, keys)
        for end in ("killed", "undisturbed")
    ]
    assert places[0].train(KillAt(APPLY, 4)).code == -9
    for place in places:
        ended = place.train()
        assert ended.code == 0, ended.stderr
    killed, undisturbed = places
    assert killed.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert killed.curve == undisturbed.curve
    ours, theirs = ({**p.record, "code_version": ""} for p in places)
    assert ours == theirs and ours["exact"] is True
    if not traits(name).ctm_loss:  # whose numbers are drawn
        predicted = expected(killed.experiment, "ctm").by_network
        assert ours["forward_passes"] == pytest.approx(predicted)

    model = ctm_core.load(killed.weights)
    assert model.sample(2, nfe=2).shape == (2, 1, 8, 8)
    if traits(name).final_only:
        with pytest.raises(UserError, match="sampled with gamma 1"):
            model.sample(2, nfe=2, gamma=0.5)
        with pytest.raises(UserError, match="sampled with gamma 1, not sampler heun"):
            model.sample(2, nfe=3, sampler="heun")
    if traits(name).final_only and not traits(name).time_s:
        with pytest.raises(UserError, match="no denoiser: it jumps to time"):
            model.denoise(torch.zeros(1, 1, 8, 8), 1.0)


DRY = {"network.dropout": 0.0, "teacher.training.steps": 1}


@pytest.fixture(scope="module")
def dry(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher without dropout, whose masks would be those of a micro-batch."""
    folder = tmp_path_factory.mktemp("dry")
    place = {"output": folder / "out", "runs": folder / "runs"}
    return jobs.train_teacher(tiny.experiment(DRY), digits, **place)


@pytest.mark.parametrize("name", objectives())
def test_micro_batches_and_processes_change_nothing(
    name: str, tmp_path: Path, digits: Dataset, dry: Path
) -> None:
    group = tiny.experiment(tiny.of_objective(name)).student("ctm").group
    size = max(2, group)
    keys = {"steps": 3, "batch_size": 4 * size, "ema": [0.5]}
    places = []
    for processes, micro_batch in ((1, 4 * size), (2, size)):
        own = keys | {"micro_batch": micro_batch}
        place = Place(tmp_path / str(processes), digits, dry, name, own, DRY)
        ended = place.train(processes=processes)
        assert ended.code == 0, ended.stderr
        places.append(place)
    whole, cut = places
    for ours, theirs in zip(cut.curve, whole.curve, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert cut.record["forward_passes"].keys() == whole.record["forward_passes"].keys()
    ours, theirs = (load_tensors(place.weights)[0] for place in places)
    for key, value in theirs.items():
        assert float((ours[key] - value).norm() / (value.norm() + 1e-3)) < 1e-3, key
