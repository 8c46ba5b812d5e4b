"""Full disks and folders that cannot be written: one sentence, and the run goes on with room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import tiny
from fixtures.desk import Desk, refused
from fixtures.mounts import mounted
from fixtures.results_factory import CTM, Results
from fixtures.tiny import FileSizeLimit, Trained

from ctm_core.data.dataset import Dataset
from ctm_core.runtime import checkpoint
from ctm_core.runtime.files import read_json


@pytest.mark.parametrize(
    ("verb", "size"),
    [
        ("figures", 3000),
        ("table", 300),
        ("report", 3000),
        ("sample", 700),
        ("likelihood", 700),
    ],
)
def test_a_file_that_cannot_grow_is_one_sentence(
    verb: str, size: int, tmp_path: Path, student: Trained, teacher: Trained, digits: Dataset
) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    words: list[str | Path] = [verb, "--output", out]
    if verb in ("figures", "table", "report"):
        path = Results(folder, sample_seeds=(0,)).evaluation("ctm", CTM)
        words += [path]
        if verb == "report":
            assert tiny.ctm(["table", "--output", folder, path], tmp_path).code == 0
            words = ["report", "--results", folder, "--output", out / "report.html"]
    elif verb == "sample":
        words = ["sample", student.weights, "-n", "16", "--output", out / "samples.npy"]
    else:
        words = ["likelihood", teacher.weights, "--data", digits.path, "-n", "1"]
        words += ["--output", out / "likelihood.json"]
    # The captured messages are files as well: the limits leave room for them.
    done = tiny.ctm(words, tmp_path, [FileSizeLimit(size)])
    assert done.code == 2, done
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ctm: {out}") and "the limit on file sizes is reached" in last
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size > size]
    assert not list(out.rglob("*.tmp"))


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
