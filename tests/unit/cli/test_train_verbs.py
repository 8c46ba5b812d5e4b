"""Bad input of a training: one sentence, no traceback, the right code, nothing lost."""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.desk import Desk, refused, said

from ctm_core.models import weight_file
from ctm_core.runtime import checkpoint
from ctm_core.runtime.files import read_json
from ctm_core.runtime.runs import RunFolder
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective

# -- configs and names ---------------------------------------------------------------------------


def test_unknown_key(desk: Desk) -> None:
    tiny.write_experiment(desk.config, {"teacher.training.learning_rte": 1.0})
    for ended in (desk.teach(), desk.train()):
        sentence = refused(ended)
        assert sentence.startswith(f"{desk.config}: unknown key 'teacher.training.learning_rte'")
        assert "learning_rate" in sentence
    assert not (desk.folder / "runs").exists()


def test_unknown_data_set(desk: Desk) -> None:
    ended = desk.run("data", "--dataset", "digts", "--output", desk.folder / "data")
    known = "cifar10, digits, fashion-mnist, imagenet64, images"
    assert refused(ended) == f"unknown dataset 'digts'; known are {known}"
    ended = desk.run(
        "data", "--dataset", "digits", "--split", "dev", "--output", desk.folder / "d"
    )
    assert "the dataset digits has no split 'dev'" in refused(ended)
    assert sorted(path.name for path in desk.folder.iterdir()) == ["tiny.yaml"]


def test_unknown_model(desk: Desk, references: list[Path]) -> None:
    sentence = "the experiment tiny has no student 'cd'; its students are ctm"
    assert refused(desk.train(model="cd")) == sentence
    ended = desk.run(
        *("evaluate", "--config", desk.config, "--model", "cd"),
        *("--weights", desk.student.weights, "--output", desk.folder / "e", *references),
    )
    assert refused(ended) == sentence
    assert "has no student 'teacher'" in refused(desk.train(model="teacher"))


def test_a_teacher_of_another_data_set(desk: Desk) -> None:
    other = desk.folder / "fashion-teacher.safetensors"
    model, record = weight_file.load_weights(desk.teacher.weights)
    others = {"dataset": "fashion-mnist", "dataset_fingerprint": "f" * 64}
    weight_file.export(other, model, record | others)
    sentence = refused(desk.train(teacher=other))
    assert sentence == (
        f"{other} was trained for the data set fashion-mnist, not digits; train a teacher for it "
        "with `ctm teacher`"
    )
    assert not (desk.folder / "runs").exists()


def test_data_of_another_set(desk: Desk) -> None:
    tiny.write_experiment(desk.config, {"dataset.name": "fashion-mnist"})
    assert "holds digits, split train, but the experiment tiny learns" in refused(desk.teach())


@pytest.mark.parametrize("missing", ["config", "data", "teacher"])
def test_missing_files(desk: Desk, missing: str) -> None:
    path = desk.folder / "absent"
    sentence = refused(desk.train(**{missing: path}))
    assert str(path) in sentence
    assert "missing" in sentence or "holds no prepared dataset" in sentence


# -- damaged files -------------------------------------------------------------------------------


def test_truncated_weights(desk: Desk) -> None:
    cut = desk.folder / "cut.safetensors"
    cut.write_bytes(desk.teacher.weights.read_bytes()[:-100])
    for ended in (desk.train(teacher=cut), desk.run("sample", cut)):
        assert refused(ended).startswith(f"{cut} is corrupt")
    assert not (desk.folder / "runs").exists()


def test_truncated_data(desk: Desk, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(desk.digits.path, data)
    (data / "images.npy").write_bytes((data / "images.npy").read_bytes()[:5000])
    sentence = refused(desk.teach(data=data))
    assert sentence.startswith(f"{data / 'images.npy'} is corrupt")
    assert "ctm data" in sentence


def test_truncated_checkpoints(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """One: the one before it serves. All: training begins anew. Both end in the same bytes."""
    run = desk.lay_out(desk.student.run)
    for steps in ([12], [8, 12]):
        shutil.rmtree(run / "exports")
        shutil.copytree(desk.student.run / "exports", run / "exports")
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(desk.student.run / "checkpoints", run / "checkpoints")
        for step in steps:
            file = run / "checkpoints" / f"step-{step:08d}" / "student.safetensors"
            file.write_bytes(file.read_bytes()[:500])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert desk.train().code == 0
        assert caplog.text.count("skipping a corrupt checkpoint") == len(steps)
        made = desk.folder / "out" / "student.safetensors"
        assert made.read_bytes() == desk.student.weights.read_bytes()


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_of_another_config(desk: Desk) -> None:
    run = desk.lay_out(desk.student.run)
    before = tiny.tree(run)
    other = tiny.write_experiment(
        desk.folder / "other.yaml", {"models.ctm.training.learning_rate": 1e-3}
    )
    for words in ({"config": other}, {"seed": 1}):
        sentence = refused(desk.train("--run", run, **words))
        assert sentence.startswith(f"{run} belongs to another run: its ")
        assert sentence.endswith("give another --run folder, or leave --run out")
    after = tiny.tree(run)
    assert after.pop("lock") is not None
    before.pop("lock")
    assert after == before
    assert not (desk.folder / "out").exists()
    assert desk.train("--run", run).code == 0


def test_a_run_in_use(desk: Desk) -> None:
    run = desk.lay_out(desk.student.run)
    config, inputs = read_json(run / "config.json"), read_json(run / "inputs.json")
    with RunFolder(run, config=config, inputs=inputs):
        before = tiny.tree(desk.folder)
        sentence = said(desk.train(), 75)
        assert sentence.startswith(f"{run} is in use by process {os.getpid()} on ")
        assert tiny.tree(desk.folder) == before


def test_divergence_ends_with_3_and_is_not_repeated(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = CtmObjective.backward
    trained: list[int] = []

    def spoilt(self: CtmObjective, batch: Batch, *arguments: Any) -> dict[str, float]:
        trained.append(batch.step)
        terms = backward(self, batch, *arguments)
        return terms | {"dsm": math.nan} if batch.step == 5 else terms

    monkeypatch.setattr(CtmObjective, "backward", spoilt)
    sentence = said(desk.train(), 3)
    assert "the dsm became nan at step 6 (the checkpoint of step 4 is kept)" in sentence
    [run] = (desk.folder / "runs" / "tiny" / "ctm" / "seed-0").iterdir()
    assert read_json(run / "failed.json") == {"exit_code": 3, "message": sentence}
    assert checkpoint.steps(run / "checkpoints") == [4]
    trained.clear()
    assert said(desk.train("--attempt", "2"), 3) == sentence
    assert trained == []
    monkeypatch.undo()
    assert desk.train("--attempt", "1").code == 0
    assert not (run / "failed.json").exists()
    made = desk.folder / "out" / "student.safetensors"
    assert made.read_bytes() == desk.student.weights.read_bytes()
