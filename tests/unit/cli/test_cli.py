"""Bad input through the command: one sentence, no traceback, the right code, nothing lost."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml
from fixtures import tiny
from fixtures.tiny import Ended, FileSizeLimit, KillAt, Trained
from PIL import Image

from ctm_core.cli.command import cli
from ctm_core.data.dataset import Dataset
from ctm_core.models import weight_file
from ctm_core.runtime import checkpoint
from ctm_core.runtime.files import read_json
from ctm_core.runtime.runs import RunFolder
from ctm_core.training.batches import Batch
from ctm_core.training.objectives.ctm import CtmObjective

Ctm = Callable[..., Ended]
VERBS = (
    "assets",
    "compare",
    "convert",
    "data",
    "evaluate",
    "features",
    "figures",
    "likelihood",
    "new",
    "plan",
    "report",
    "sample",
    "table",
    "teacher",
    "train",
    "verify",
)


class Desk:
    """A working directory with the tiny experiment and everything it needs."""

    def __init__(
        self, folder: Path, digits: Dataset, teacher: Trained, student: Trained, run: Ctm
    ) -> None:
        self.folder, self.digits, self.run = folder, digits, run
        self.teacher, self.student = teacher, student
        self.config = tiny.write_experiment(folder / "tiny.yaml")

    def teach(self, *more: str | Path, **options: Any) -> Ended:
        return self.run(*self.words("teacher", **options), *more)

    def train(self, *more: str | Path, **options: Any) -> Ended:
        return self.run(*self.words("train", **options), *more)

    def words(self, verb: str, **options: Any) -> list[str | Path]:
        """The words of a training verb, with some options replaced; None leaves one out."""
        given: dict[str, Any] = {
            "config": self.config,
            "data": self.digits.path,
            "output": self.folder / "out",
            "runs": self.folder / "runs",
        }
        if verb == "train":
            given |= {"model": "ctm", "teacher": self.teacher.weights}
        chosen = {name: value for name, value in (given | options).items() if value is not None}
        return [verb, *(w for name, value in chosen.items() for w in (f"--{name}", value))]

    def lay_out(self, source: Path, model: str = "ctm") -> Path:
        """A copy of a run folder where the command looks for it."""
        run = self.folder / "runs" / "tiny" / model / "seed-0" / source.name
        shutil.copytree(source, run)
        return run


@pytest.fixture
def desk(tmp_path: Path, digits: Dataset, teacher: Trained, student: Trained, ctm: Ctm) -> Desk:
    return Desk(tmp_path, digits, teacher, student, ctm)


def said(ended: Ended, code: int) -> str:
    """The one sentence that a command ended with."""
    assert ended.code == code, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    [sentence] = [line for line in ended.stderr.splitlines() if line.startswith("ctm: ")]
    assert ended.stderr.rstrip("\n").endswith(sentence)  # and it is the last word
    return sentence.removeprefix("ctm: ")


def refused(ended: Ended) -> str:
    return said(ended, 2)


# -- the command -------------------------------------------------------------------------------


def test_help(ctm: Ctm) -> None:
    ended = ctm("--help")
    assert ended.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in ended.stdout
        assert ctm(verb, "--help").code == 0
    assert ctm("--version").stdout.startswith("ctm, version ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--modle", "x"], "No such option '--modle'"),
        (["train"], "Missing option '--config'"),
        (["sample", "w.safetensors", "--nfe", "0"], "0 is not in the range x>=1"),
        (["sample", "w.safetensors", "--gamma", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["sample", "w.safetensors", "-n", "many"], "'many' is not a valid integer"),
        (["sample"], "Missing argument 'WEIGHTS'"),
    ],
)
def test_words_that_are_none(ctm: Ctm, words: list[str], expected: str) -> None:
    assert expected in refused(ctm(*words))


def test_ctrl_c_can_be_resumed(ctm: Ctm, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctm_core.data.dataset.prepare", pressed)
    sentence = said(ctm("data", "--dataset", "digits", "--output", "x"), 75)
    assert sentence == "interrupted; run the same command again to continue"


def test_a_mistake_of_ours_is_not_hidden(ctm: Ctm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the user can mend becomes a sentence."""
    for error in (ZeroDivisionError(), OSError(errno.EIO, "Input/output error")):

        def fail(*arguments: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr("ctm_core.data.dataset.prepare", fail)
        with pytest.raises(type(error)):
            ctm("data", "--dataset", "digits", "--output", "x")


# -- from data to table ------------------------------------------------------------------------


def test_the_verbs_work_together(desk: Desk, digits: Dataset, references: list[Path]) -> None:
    folder = desk.folder
    ended = desk.run("data", "--dataset", "digits", "--output", folder / "data")
    assert ended.code == 0
    assert digits.fingerprint[:12] in ended.stdout
    ended = desk.teach(data=folder / "data")
    assert (ended.code, ended.stdout) == (0, f"{folder / 'out' / 'teacher.safetensors'}\n")
    ended = desk.train(teacher=folder / "out" / "teacher.safetensors")
    assert (ended.code, ended.stdout) == (0, f"{folder / 'out' / 'student.safetensors'}\n")
    made = (folder / "out" / "student.safetensors").read_bytes()
    assert made == desk.student.weights.read_bytes()
    protocol = folder / "tiny.yaml.d" / "tiny.yaml"
    protocol.parent.mkdir()
    protocol.write_text(yaml.safe_dump(tiny.PROTOCOL))
    reference = folder / "features" / "tiny.safetensors"
    ended = desk.run(
        *("features", "reference", "--protocol", protocol),
        *("--data", folder / "data", "--output", reference),
    )
    assert ended.code == 0
    assert reference.read_bytes() == references[0].read_bytes()
    for model, name in (("teacher", "teacher"), ("ctm", "student")):
        ended = desk.run(
            *("evaluate", "--config", desk.config, "--model", model, "--step", "12"),
            *("--weights", folder / "out" / f"{name}.safetensors", "--runs", folder / "runs"),
            *("--output", folder / model, reference, references[1]),
        )
        assert ended.code == 0, ended
    evaluations = [folder / model / "evaluation.json" for model in ("teacher", "ctm")]
    ended = desk.run("table", "--output", folder, *evaluations)
    assert ended.code == 0
    assert (folder / "table.csv").read_text().count("\n") == 6  # a head, and five cells


def test_sample(desk: Desk) -> None:
    output = desk.folder / "a" / "samples.npy"
    weights = desk.student.weights
    ended = desk.run("sample", weights, "--output", output, "-n", "5", "--class", "3")
    assert ended.code == 0
    assert "80 → 0.002" in ended.stdout
    images = np.load(output, allow_pickle=False)
    assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (3 * 48, 2 * 48)
    again = desk.folder / "again.npy"
    words = ["--class", "3", "--sampler", "gamma", "--nfe", "1", "--gamma", "0", "--seed", "0"]
    assert desk.run("sample", weights, "--output", again, "-n", "9", *words).code == 0
    assert (np.load(again)[:5] == images).all()
    words = ["--nfe", "3", "-n", "2", "--output", again]
    assert desk.run("sample", desk.teacher.weights, *words).code == 0


# -- configs and names -------------------------------------------------------------------------


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


def test_missing_weights_and_references(desk: Desk, references: list[Path]) -> None:
    absent = desk.folder / "absent.safetensors"
    assert refused(desk.run("sample", absent)).startswith(f"{absent} is missing")
    words = ["evaluate", "--config", desk.config, "--model", "ctm", "--output", desk.folder / "e"]
    ended = desk.run(*words, "--weights", absent, *references)
    assert refused(ended).startswith(f"{absent} is missing")
    ended = desk.run(*words, "--weights", desk.student.weights, absent)
    assert refused(ended).startswith(f"{absent} is missing")
    ended = desk.run("table", "--output", desk.folder, desk.folder / "absent.json")
    assert f"{desk.folder / 'absent.json'} is missing" in refused(ended)


# -- damaged files -----------------------------------------------------------------------------


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


# -- runs --------------------------------------------------------------------------------------


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


# -- disks -------------------------------------------------------------------------------------


def checkpoint_bytes(student: Trained) -> int:
    return max(path.stat().st_size for path in student.run.glob("checkpoints/*/*"))


def test_no_room_for_a_checkpoint(desk: Desk) -> None:
    """A limit on file sizes, which needs no rights: the run ends, and goes on with room."""
    limit = FileSizeLimit(checkpoint_bytes(desk.student) - 1)
    ended = tiny.ctm(desk.words("train"), desk.folder, [limit])
    sentence = refused(ended)
    assert "the limit on file sizes is reached" in sentence
    [run] = (desk.folder / "runs" / "tiny" / "ctm" / "seed-0").iterdir()
    assert read_json(run / "failed.json") == {"exit_code": 2, "message": sentence}
    again = tiny.ctm([*desk.words("train"), "--attempt", "2"], desk.folder)
    assert refused(again) == sentence
    ended = tiny.ctm(desk.words("train"), desk.folder)
    assert ended.code == 0, ended
    made = desk.folder / "out" / "student.safetensors"
    assert made.read_bytes() == desk.student.weights.read_bytes()


def mounted(folder: Path, options: str) -> bool:
    """Mount a file system in memory on a folder, if this user and machine can."""
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        bool(shutil.which("mount")) and not subprocess.run(words, capture_output=True).returncode
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB, where a mount is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted(disk, "size=256k"):
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full(desk: Desk, small_disk: Path) -> None:
    """In the middle of training: the results of before stay, and the run goes on with room."""
    runs = small_disk / "runs"
    sentence = refused(desk.train(runs=runs))
    assert sentence.endswith("the disk is full; free some space and run the same command again")
    assert not (desk.folder / "out").exists()
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert desk.train(runs=runs).code == 0
    made = desk.folder / "out" / "student.safetensors"
    assert made.read_bytes() == desk.student.weights.read_bytes()


@pytest.mark.parametrize("at", [1, 4, 9, 20, 31])
def test_the_disk_fills_up_anywhere(desk: Desk, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The n-th file cannot be synced: config, first checkpoint, export, delivery."""
    real, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    sentence = refused(desk.train())
    assert "the disk is full; free some space and run the same command again" in sentence
    assert not list(desk.folder.rglob("*.tmp"))
    assert not list(desk.folder.glob("out/*.safetensors"))
    monkeypatch.setattr(os, "fsync", real)
    assert desk.train().code == 0
    made = desk.folder / "out" / "student.safetensors"
    assert made.read_bytes() == desk.student.weights.read_bytes()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written, for root by a mount and for others by its mode."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    if not mounted(folder, "ro"):
        pytest.skip("root without the right to mount has no read-only folder")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("place", ["output", "runs"])
def test_a_read_only_folder(desk: Desk, read_only: Path, place: str) -> None:
    sentence = refused(desk.train(**{place: read_only / "results"}))
    assert sentence.startswith(str(read_only / "results"))
    assert "is read-only" in sentence or "permission denied" in sentence
    if place == "output":  # the training itself is not lost
        [run] = (desk.folder / "runs" / "tiny" / "ctm" / "seed-0").iterdir()
        assert checkpoint.steps(run / "checkpoints") == [8, 12]
        assert desk.train().code == 0
    ended = desk.run("data", "--dataset", "digits", "--output", read_only / "data")
    assert str(read_only) in refused(ended)


def test_results_below_a_file(desk: Desk) -> None:
    (desk.folder / "file").touch()
    sentence = refused(desk.train(runs=desk.folder / "file" / "runs"))
    assert sentence.endswith("a part of the path is a file, not a folder; correct the path")
    assert "is a file" in refused(desk.train(output=desk.folder / "file"))
    ended = desk.run("sample", desk.student.weights, "--output", desk.folder / "file" / "x.npy")
    assert str(desk.folder / "file") in refused(ended)


# -- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words", "expected"),
    [
        ("teacher", ["--gamma", "0.5"], "sampler heun has no gamma; leave it out"),
        ("teacher", ["--sampler", "gamma"], "needs a model that jumps"),
        ("teacher", ["--nfe", "4"], "so nfe must be 1, 3, 5, …, not 4"),
        ("student", ["--sampler", "heun", "--gamma", "0"], "sampler heun has no gamma"),
        (
            "student",
            ["--sampler", "ddim"],
            "unknown sampler 'ddim'; allowed: gamma, heun, euler, gamma_paper",
        ),
        ("student", ["--class", "10"], "there is no class '10'; classes are 0, 1, 2"),
        ("student", ["--class", "-1"], "there is no class '-1'"),
        ("student", ["--class", "²"], "there is no class '²'"),
        ("student", ["--class", "cat"], "there is no class 'cat'"),
        ("student", ["--output", "picture.png"], "must end in .npy"),
    ],
)
def test_samples_that_cannot_be(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, model: str, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(desk.folder)
    assert expected in refused(desk.run("sample", getattr(desk, model).weights, *words))
    assert [path.name for path in desk.folder.iterdir()] == ["tiny.yaml"]


def test_weights_of_nan(desk: Desk) -> None:
    model, record = weight_file.load_weights(desk.student.weights)
    with torch.no_grad():
        model.output_weight.fill_(math.nan)
    spoilt = desk.folder / "spoilt.safetensors"
    weight_file.export(spoilt, model, record)
    ended = desk.run("sample", spoilt, "--output", desk.folder / "s.npy")
    assert "gives NaN or infinity by gamma at nfe 1; its weights are unusable" in refused(ended)
    assert not (desk.folder / "s.npy").exists()


# -- evaluation --------------------------------------------------------------------------------


def test_a_killed_evaluation_continues(desk: Desk, references: list[Path]) -> None:
    def command(output: str, *before: Callable[[], None]) -> Ended:
        words = ["evaluate", "--config", desk.config, "--model", "ctm", "--weights"]
        words += [desk.student.weights, "--output", output, "--runs", f"runs-{output}"]
        return tiny.ctm([*words, *references], desk.folder, before)

    def rows(output: str) -> Any:
        record = json.loads((desk.folder / output / "evaluation.json").read_text())
        return record["rows"], (desk.folder / output / "previews.safetensors").read_bytes()

    assert command("whole").code == 0
    for count in (2, 3):
        ended = command("killed", KillAt("ctm_core.evaluation.cells:save_tensors", count))
        assert ended.code == -signal.SIGKILL
    ended = command("killed")
    assert ended.code == 0
    assert "ctm: 3 of 6 cells are done already\n" in ended.stderr
    assert rows("killed") == rows("whole")


def test_the_group_lists_every_verb() -> None:
    context = click.Context(cli)
    assert sorted(cli.list_commands(context)) == sorted(VERBS)
