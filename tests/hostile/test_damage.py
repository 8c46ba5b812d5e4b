"""No verb takes a damaged file of the project for a whole one.

A tiny project is made once. Each verb runs again and again on a copy of it, each time with one of
the binary files that it reads damaged: it ends in one sentence, or its results are those of the
undisturbed project.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import tiny
from hostile.damage import KINDS, applicable, damage

from ctm_core import cli

BINARY = {".safetensors", ".npy", ".png"}
TEACHER, STUDENT = "results/tiny/teacher/seed-0", "results/tiny/ctm/seed-0"
WEIGHTS, STEP = f"{STUDENT}/student.safetensors", f"{STUDENT}/step-12"
REFERENCE = "features reference --data data --protocol"
#: What each verb is called with, and where its results are.
VERBS = {
    "data": ("data --dataset digits --output data", "data"),
    "reference": (f"{REFERENCE} tiny.yaml --output tiny/features.safetensors", "tiny"),
    "pooled": (f"{REFERENCE} tiny-pooled.yaml --output pooled/features.safetensors", "pooled"),
    "teacher": (f"teacher --config config.yaml --data data --output {TEACHER}", TEACHER),
    "train": (
        "train --config config.yaml --data data --model ctm "
        f"--teacher {TEACHER}/teacher.safetensors --output {STUDENT}",
        STUDENT,
    ),
    "evaluate": (
        f"evaluate --config config.yaml --model ctm --step 12 --weights {WEIGHTS} "
        f"--data data --output {STEP} tiny/features.safetensors pooled/features.safetensors",
        STEP,
    ),
    "table": (f"table {STEP}/evaluation.json", "results/paper"),
    "figures": (f"figures {STEP}/evaluation.json", "results/figures"),
    "report": ("report --output report/report.html", "report"),
    "sample": (f"sample {WEIGHTS} -n 24 --output samples/samples.npy", "samples"),
    "snapshot": (
        f"sample {STUDENT}/snapshot-00000006.safetensors -n 24 --output earlier/samples.npy",
        "earlier",
    ),
    "likelihood": (
        f"likelihood {WEIGHTS} --data data -n 2 --tolerance 0.1 --output bits/bits.json",
        "bits",
    ),
    "score": (
        "evaluate --samples samples/samples.npy --output scored tiny/features.safetensors",
        "scored",
    ),
}


def run(verb: str) -> tiny.Ended:
    """A verb in this process; whatever escapes its ``main`` fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv, signal.getsignal(signal.SIGINT), torch.get_num_threads()
    sys.argv = ["ctm", *VERBS[verb][0].split()]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
        torch.set_num_threads(before[2])
    return tiny.Ended(code, out.getvalue(), err.getvalue())


def results(verb: str) -> dict[str, bytes]:
    """What a verb wrote, but for how fast it was."""
    files = (path for path in sorted(Path(VERBS[verb][1]).rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != "speed.json"}


class Project:
    """A finished project and the binary files that each verb reads of it."""

    def __init__(self, place: Path) -> None:
        self.folder, self.pristine = place / "project", place / "pristine"
        self.folder.mkdir()
        os.chdir(self.folder)
        tiny.write_experiment(Path("config.yaml"))
        for protocol in (tiny.PROTOCOL, tiny.POOLED):
            Path(f"{protocol['name']}.yaml").write_text(yaml.safe_dump(protocol))
        for verb in VERBS:
            ended = run(verb)
            assert ended.code == 0, ended.stderr
        shutil.copytree(self.folder, self.pristine)
        self._opened: set[str] = set()
        sys.addaudithook(self._note)
        self.read: dict[str, list[str]] = {}
        self.undisturbed: dict[str, tuple[dict[str, bytes], str]] = {}
        for verb in VERBS:  # on what is finished, as after any damage
            self.restore()
            self._opened.clear()
            ended = run(verb)
            assert ended.code == 0, ended.stderr
            self.read[verb] = sorted(self._opened & self.binary())
            self.undisturbed[verb] = results(verb), ended.stdout

    def binary(self) -> set[str]:
        """All binary files that the project wrote."""
        paths = (path for path in self.pristine.rglob("*") if path.suffix in BINARY)
        return {path.relative_to(self.pristine).as_posix() for path in paths}

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.pristine, self.folder)
        os.chdir(self.folder)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | os.PathLike):
            return
        if not {"w", "a", "x", "+"} & set(arguments[1] or ""):
            path = os.path.abspath(os.fspath(arguments[0]))
            self._opened.add(path.removeprefix(f"{self.folder}/"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    before, fsync = Path.cwd(), os.fsync
    tiny.without_syncs()
    yield Project(tmp_path_factory.mktemp("damage"))
    os.chdir(before)
    os.fsync = fsync


def test_every_kind_of_file_is_read_by_some_verb(project: Project) -> None:
    """All but pictures for people and the checkpoints before the last."""
    read = {name for names in project.read.values() for name in names}
    unread = {name for name in project.binary() - read if not name.endswith(".png")}
    assert len(read) > 30 and all("/checkpoints/step-00000008/" in name for name in unread), unread


@pytest.mark.parametrize("verb", VERBS)
def test_damage_is_noticed_or_without_effect(project: Project, verb: str) -> None:
    draw = random.Random(verb)
    for number, name in enumerate(project.read[verb]):
        project.restore()
        path = project.folder / name
        kinds = [kind for kind in KINDS if applicable(kind, path)]
        kind = kinds[number % len(kinds)]
        damage(kind, path, draw)
        ended = run(verb)
        case = verb, kind, name, ended.stderr
        if ended.code == 0:
            assert (results(verb), ended.stdout) == project.undisturbed[verb], case
        else:
            assert ended.code == 2 and "Traceback" not in ended.stderr, case
            assert ended.stderr.splitlines()[-1].startswith("ctm: "), case
