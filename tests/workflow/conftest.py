"""A finished smoke run, and copies of the project in which to break things."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.project import Project, copy_project
from fixtures.shared import made_once
from fixtures.versions import Versions, make_versions


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project's files, nothing made yet."""
    return copy_project(tmp_path / "project")


@pytest.fixture
def branch(finished: Project, tmp_path: Path) -> Callable[[], Project]:
    """Makes copies of the finished run that a test may change."""

    def make() -> Project:
        target = tmp_path / "branch"
        shutil.copytree(finished.path, target, symlinks=True)
        return Project(target)

    return make


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Two versions of a tiny experiment in git and DVC; work on a copy."""

    def make(folder: Path) -> None:
        made = dataclasses.asdict(make_versions(folder))
        (folder / "versions.json").write_text(json.dumps(made, default=str), encoding="utf-8")

    text = (made_once(tmp_path_factory, "versions", make) / "versions.json").read_text("utf-8")
    made = json.loads(text)
    return Versions(**made | {"path": Path(made["path"]), "tables": tuple(made["tables"])})


@pytest.fixture
def kill_when() -> Callable[..., None]:
    """SIGKILLs a Snakemake, or its whole group, as soon as a file exists."""

    def kill(
        process: "subprocess.Popen[str]", project: Project, pattern: str, group: bool
    ) -> None:
        while not list(project.path.glob(pattern)):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()

    return kill
