"""`dvc repro` stopped by Ctrl-C and by kill -9: the same command goes on, to the same bytes."""

import os
import signal
import subprocess
from pathlib import Path

from fixtures.project import ROOT
from fixtures.versions import AFFECTED, EXPERIMENT, FIRST, SECOND, Repository, Versions

#: Holds a process at a chosen rename, so that nothing here depends on speed.
HOLD = ROOT / "tests/system/hold"
REPORT = "results/report.html"


def stopped(project: Repository, at: str, mark: Path, number: signal.Signals) -> int:
    """Run `dvc repro` until a file appears, then signal all of its processes; its exit code."""
    process = project.start(
        "dvc",
        "repro",
        PYTHONPATH=os.pathsep.join(filter(None, (str(HOLD), os.environ.get("PYTHONPATH")))),
        CTM_HOLD_AT=f"*/{at}",
        CTM_HOLD_MARK=str(mark),
    )
    while not mark.exists():
        try:
            output = process.communicate(timeout=0.1)[0]
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(output)
    os.killpg(process.pid, number)
    process.communicate(timeout=300)
    return process.returncode


def test_ctrl_c_then_kill_9(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    project.go("first")
    project.remove("runs/tiny/ctm")
    project.edit(EXPERIMENT, FIRST, SECOND)

    checkpoints = "runs/tiny/ctm/seed-0/*/checkpoints"
    at = f"{checkpoints}/step-00000002"
    assert stopped(project, at, tmp_path / "interrupted", signal.SIGINT) > 0
    assert list(project.path.glob(at))
    assert not list(project.path.glob("results/tiny/ctm/seed-0/student.safetensors"))
    assert project.left() == AFFECTED

    # No unlock is needed after Ctrl-C; this one dies in the evaluation.
    at = "runs/tiny/ctm/seed-0/evaluation*/cells/*"
    assert stopped(project, at, tmp_path / "killed", signal.SIGKILL) == -signal.SIGKILL
    assert (
        "continues after step 2" in (project.path / "logs/train/tiny/ctm/seed-0.log").read_text()
    )
    assert not list(project.path.glob("results/tiny/ctm/seed-0/step-4/evaluation.json"))
    assert "--unlock" in project.run("dvc", "repro", code=255)
    project.run("snakemake", "--unlock")
    left = {name: n for name, n in AFFECTED.items() if name != "train_tiny_ctm"}
    assert project.left() == left

    project.run("dvc", "repro")
    made = project.made()
    # The report prints how long a training took and the commit that it ran from.
    assert {name for name in made if made[name] != versions.second[name]} <= {REPORT}
    assert made.keys() == versions.second.keys()
    assert project.left() == {}
