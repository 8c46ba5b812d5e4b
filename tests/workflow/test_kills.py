"""kill -9 at the worst moments, then the same command: the same bytes as undisturbed.

The killed process ends itself at a chosen rename (see kill/sitecustomize.py), so every run of this
file dies at the same place.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.project import Project

Branch = Callable[[], Project]
KILL = Path(__file__).parent / "kill"

TEACHER = "results/smoke/teacher/seed-0/teacher.safetensors"
STUDENT = "results/smoke/ctm/seed-0/student.safetensors"
EVALUATION = "results/smoke/ctm/seed-0/step-30/evaluation.json"


@pytest.mark.parametrize(
    "target, removed, place, skip, left",
    [
        pytest.param(
            TEACHER,
            ["results/smoke/teacher/seed-0/t*", "runs/smoke/teacher/seed-0/[!e]*"],
            "*/checkpoints/.step-00000040.partial/optimizer.safetensors",
            0,
            "runs/smoke/teacher/seed-0/*/checkpoints/.step-00000040.partial/student.safetensors",
            id="teacher, half a checkpoint written",
        ),
        pytest.param(
            STUDENT,
            ["results/smoke/ctm/seed-0/*.*", "runs/smoke/ctm/seed-0/[!e]*"],
            "*/checkpoints/step-00000020",
            0,
            "runs/smoke/ctm/seed-0/*/checkpoints/step-00000010/state.json",
            id="student, a checkpoint about to appear",
        ),
        pytest.param(
            STUDENT,
            ["results/smoke/ctm/seed-0/*.*", "runs/smoke/ctm/seed-0/[!e]*"],
            "*/runs/*/exports/snapshot-00000015.safetensors",
            0,
            "runs/smoke/ctm/seed-0/*/checkpoints/step-00000010/state.json",
            id="student, between two checkpoints",
        ),
        pytest.param(
            STUDENT,
            ["results/smoke/ctm/seed-0/*.*", "runs/smoke/ctm/seed-0/[!e]*"],
            "*/results/*/student.safetensors",
            0,
            "runs/smoke/ctm/seed-0/*/exports/student.safetensors",
            id="student, weights about to be delivered",
        ),
        pytest.param(
            EVALUATION,
            ["results/smoke/ctm/seed-0/step-30", "runs/smoke/ctm/seed-0/evaluation*"],
            "*/evaluation*/cells/*",
            3,
            "runs/smoke/ctm/seed-0/evaluation*/cells/*.safetensors",
            id="evaluation, the fourth cell",
        ),
        pytest.param(
            EVALUATION,
            ["results/smoke/ctm/seed-0/step-30", "runs/smoke/ctm/seed-0/evaluation*"],
            "*/step-30/evaluation.json",
            0,
            "results/smoke/ctm/seed-0/step-30/previews.safetensors",
            id="evaluation, about to be delivered",
        ),
    ],
)
def test_the_same_bytes_after_a_kill(
    branch: Branch,
    tmp_path: Path,
    target: str,
    removed: list[str],
    place: str,
    skip: int,
    left: str,
) -> None:
    project = branch()
    pattern = f"{Path(target).parent}/*.*"
    expected = project.results(pattern)
    assert target in expected
    project.remove(*removed)
    assert not (project.path / target).exists()

    mark = tmp_path / "killed"
    deadly = {
        "PYTHONPATH": os.pathsep.join([str(KILL), os.environ.get("PYTHONPATH", "")]),
        "CTM_KILL_AT": place,
        "CTM_KILL_SKIP": str(skip),
        "CTM_KILL_MARK": str(mark),
    }
    killed = project.snakemake("--", target, code=1, **deadly)
    assert mark.exists() and "died with <Signals.SIGKILL" in killed
    assert not (project.path / target).exists()
    state = {path: path.stat().st_mtime_ns for path in project.path.glob(left)}
    assert state or left.startswith("results"), f"nothing is left of the killed run under {left}"

    project.snakemake("--", target, **deadly)
    assert project.results(pattern) == expected
    if "cells" in left:
        assert len(state) == skip
        assert all(path.stat().st_mtime_ns == then for path, then in state.items())
