"""Questions to Slurm by its own commands: which jobs are alive, which it would refuse.

Nothing here is needed to run a job. Where a command is missing, fails or hangs, the answer is
"unknown" (None, or an empty list).
"""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Seconds that a command may take to answer.
PATIENCE = 30.0
#: Seconds between polls of cancelled jobs, and how long to poll: Slurm gives them KillWait (30 s
#: by default) to end by themselves.
POLL, STOPPING = 1.0, 180.0
#: States in which processes of a job may exist (``squeue``'s %T).
ALIVE = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
#: What ``squeue`` says of a job that it no longer remembers.
FORGOTTEN = "Invalid job id"
#: How the comments of jobs submitted by Snakemake's plugin begin.
COMMENTS = ("rule_", "group_")


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def job_number() -> str | None:
    """Number of the job that this process belongs to."""
    return os.environ.get("SLURM_JOB_ID") or None


def restarts() -> int:
    """How often Slurm has requeued this process's job."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def nodes() -> int:
    """Number of nodes of this process's job."""
    count = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or ""
    return int(count) if count.isdecimal() else 1


def current_job() -> str | None:
    """Number of the job that this process belongs to, with its cluster if that has a name."""
    job = job_number()
    cluster = os.environ.get("SLURM_CLUSTER_NAME")
    return job and (f"{job}@{cluster}" if cluster else job)


def lives(job: str) -> bool | None:
    """Whether processes of a job, named as :func:`current_job` does, may still exist."""
    number, _, cluster = job.partition("@")
    if cluster and cluster != _setting("ClusterName"):
        return None
    answer = _ask("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", number)
    if answer is None:
        return None
    if answer.returncode != 0:
        return False if FORGOTTEN in answer.stderr else None
    return bool({line.strip() for line in answer.stdout.splitlines()} & ALIVE)


def _setting(name: str) -> str | None:
    """A line of Slurm's configuration."""
    answer = _ask("scontrol", "show", "config")
    for line in answer.stdout.splitlines() if answer is not None else ():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return value.strip()
    return None


def keeps_accounts() -> bool:
    """Whether Slurm keeps accounts, so that one may be named."""
    return _setting("AccountingStorageType") not in (None, "(null)", "accounting_storage/none")


def jobs_of(folder: Path) -> list[str]:
    """Numbers of the user's waiting and running jobs that a Snakemake in ``folder`` submitted."""
    answer = _ask("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A|%k|%Z")
    if answer is None or answer.returncode != 0:
        return []
    fields = (line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2)
    place = os.path.realpath(folder)
    return sorted(
        {
            job.strip()
            for job, comment, there in fields
            if comment.startswith(COMMENTS) and os.path.realpath(there.strip()) == place
        },
        key=int,
    )


def stop(jobs: Sequence[str]) -> bool:
    """Cancel jobs and wait until nothing of them runs; whether that was seen."""
    if not jobs:
        return True
    _ask("scancel", *jobs)
    deadline = time.monotonic() + STOPPING
    while left := [job for job in jobs if lives(job)]:
        if time.monotonic() > deadline:
            return False
        # A job that was just starting may have missed it.
        _ask("scancel", *left)
        time.sleep(POLL)
    return True


def refusal(resources: Mapping[str, str | int | None], threads: int) -> str | None:
    """Why Slurm would refuse a job with these resources (Snakemake's names); None: it would not.

    The job is only tested (``sbatch --test-only``), never submitted.
    """
    options = {
        "account": resources.get("slurm_account"),
        "partition": resources.get("slurm_partition"),
        "time": resources.get("runtime"),
        "mem": resources.get("mem_mb"),
        "qos": resources.get("qos"),
        "constraint": resources.get("constraint"),
        "cpus-per-task": threads,
    }
    if gpus := resources.get("gpu"):
        kind = resources.get("gpu_model")
        options["gpus"] = f"{kind}:{gpus}" if kind else gpus
    words = [f"--{name}={value}" for name, value in options.items() if value not in (None, "")]
    answer = _ask("sbatch", "--test-only", *words, "--wrap", "true")
    if answer is None:
        return "sbatch is missing or does not answer"
    if answer.returncode == 0:
        return None
    for prefix in ("sbatch: error: ", "allocation failure: "):
        answer.stderr = answer.stderr.replace(prefix, "")
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    # The last line is the reason.
    return lines[-1] if lines else f"sbatch ended with exit code {answer.returncode}"
