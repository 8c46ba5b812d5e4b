"""What is asked of Slurm, by stand-ins for its commands; tests/system asks a real one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ctm_core.runtime import slurm

Answer = Callable[..., None]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Puts commands into an otherwise empty PATH; each notes its arguments in its log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/{name}.log\n{script}\n')
        file.chmod(file.stat().st_mode | stat.S_IEXEC)

    return put


def asked(tmp_path: Path, name: str) -> list[str]:
    return (tmp_path / f"{name}.log").read_text().splitlines()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo RUNNING", True),
        ("echo COMPLETING", True),
        ("echo COMPLETED", False),
        ("echo PENDING", False),  # queued again: nothing of it runs
        ("echo NODE_FAIL", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1", None),
        ("exec /bin/sleep 60", None),
    ],
)
def test_whether_a_job_lives(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, script: str, expected: bool | None
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", 0.2 if "sleep" in script else 30)
    answer("squeue", script)
    assert slurm.lives("42") is expected


def test_nothing_is_known_without_slurm_or_of_another_cluster(answer: Answer) -> None:
    assert slurm.lives("42") is None
    assert slurm.jobs_of(Path.cwd()) == []
    assert slurm.keeps_accounts() is False
    assert slurm.refusal({}, 1) == "sbatch is missing or does not answer"
    answer("squeue", "echo RUNNING")
    answer("scontrol", "echo 'ClusterName             = mini'")
    assert slurm.lives("42@other") is None
    assert slurm.lives("42@mini") is True


def test_the_current_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.current_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert slurm.current_job() == "42"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "mini")
    assert slurm.current_job() == "42@mini"


def test_jobs_of_a_folder_are_those_that_its_snakemake_submitted(
    answer: Answer, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    answer(
        "squeue",
        f"echo '12|rule_train_wildcards_0|{tmp_path}'; echo '9|group_a|{tmp_path}/link';"
        f"echo '10|rule_train|{tmp_path}/other'; echo '11|(null)|{tmp_path}'",
    )
    assert slurm.jobs_of(tmp_path) == ["9", "12"]
    assert "--user=" in asked(tmp_path, "squeue")[0]


def test_stopping_waits_until_nothing_runs(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "POLL", 0.01)
    answer("scancel", "")
    answer("squeue", f"[ -e {tmp_path}/ended ] && echo CANCELLED || echo COMPLETING\n")
    monkeypatch.setattr(slurm, "STOPPING", 0.1)
    assert slurm.stop(["3", "4"]) is False
    (tmp_path / "ended").touch()
    assert slurm.stop(["3", "4"]) is True
    assert asked(tmp_path, "scancel")[-1] == "3 4"
    os.remove(tmp_path / "scancel.log")
    assert slurm.stop([]) is True
    assert not (tmp_path / "scancel.log").exists()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'sbatch: Job 5 to start at ...' >&2", None),
        (
            "echo 'sbatch: error: invalid partition specified: x' >&2;"
            "echo 'allocation failure: Invalid partition name specified' >&2; exit 1",
            "Invalid partition name specified",
        ),
        ("exit 3", "sbatch ended with exit code 3"),
    ],
)
def test_why_a_job_is_refused(
    answer: Answer, tmp_path: Path, script: str, expected: str | None
) -> None:
    answer("sbatch", script)
    resources = {
        "slurm_account": None,
        "slurm_partition": "gpu",
        "runtime": 60,
        "mem_mb": 1000,
        "gpu": 2,
        "gpu_model": "a100",
    }
    assert slurm.refusal(resources, 4) == expected
    assert asked(tmp_path, "sbatch") == [
        "--test-only --partition=gpu --time=60 --mem=1000 --cpus-per-task=4 --gpus=a100:2 "
        "--wrap true"
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("accounting_storage/none", False), ("(null)", False), ("accounting_storage/slurmdbd", True)],
)
def test_whether_accounts_are_kept(answer: Answer, kind: str, expected: bool) -> None:
    answer("scontrol", f"echo 'ClusterName = a'; echo 'AccountingStorageType   = {kind}'")
    assert slurm.keeps_accounts() is expected
