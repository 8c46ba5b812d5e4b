"""What the workflow asks of Snakemake that Snakemake does not document.

Tried with Snakemake 9.27.1 and snakemake-executor-plugin-slurm 2.8.0, the versions of
requirements/lock.txt. Nothing else in this project touches these interfaces, so what an update of
Snakemake breaks is mended here. tests/workflow/test_snakemake_internals.py exercises each.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Finished",
    "Request",
    "config_file",
    "default_resource",
    "finished",
    "needed_assets",
    "requests",
    "starts_jobs_itself",
    "submits_to_slurm",
    "was_submitted",
]

#: Resources that decide whether Slurm takes a job.
ASKED = (
    "slurm_account",
    "slurm_partition",
    "qos",
    "constraint",
    "runtime",
    "mem_mb",
    "gpu",
    "gpu_model",
)


@dataclass(frozen=True)
class Request:
    """What one kind of job asks of a cluster, with a rule that asks it."""

    rule: str
    resources: dict[str, str | int | None]
    threads: int


@dataclass(frozen=True)
class Finished:
    """What is recorded of the job that made a file."""

    rule: str
    began: float
    ended: float  #: the date that the file then had
    inputs: dict[str, str]  #: ``sha256:`` and the hash of every input, by path


def finished() -> dict[str, Finished]:
    """The job behind each file of the working directory that a finished job made."""
    records: dict[str, Finished] = {}
    for folder in ("metadata", "incomplete"):  # a file that is being made again has both
        root = Path(".snakemake") / folder
        for path in root.rglob("*"):
            parts = path.relative_to(root).parts
            encoded = "".join(part.removeprefix("@") for part in parts)
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                name = base64.urlsafe_b64decode(encoded).decode()
                if folder == "incomplete":
                    records.pop(name, None)
                    continue
                record = json.loads(path.read_text())
                began, ended = float(record["starttime"]), float(record["endtime"])
                inputs = dict(record["input_checksums"])
                records[name] = Finished(str(record["rule"]), began, ended, inputs)
    return records


def config_file(workflow: Any) -> str | None:
    """The first file given by ``--configfile``, or by a profile."""
    return str(workflow.configfiles[0]) if workflow.configfiles else None


def default_resource(workflow: Any, name: str) -> str | None:
    """One of ``default-resources``, as text; None where it is not set."""
    given = workflow.resource_settings.default_resources or {}
    return str(given[name].raw).strip("'\"") if name in given else None


def submits_to_slurm(workflow: Any) -> bool:
    """Whether jobs are submitted to Slurm by this process."""
    return bool(workflow.executor_plugin.name == "slurm")


def starts_jobs_itself(workflow: Any) -> bool:
    """Whether this is the user's Snakemake, not one that it started to run a job."""
    return bool(workflow.exec_mode.name == "DEFAULT")


def was_submitted(workflow: Any) -> bool:
    """Whether this Snakemake runs a job that was submitted to a batch system."""
    return bool(workflow.exec_mode.name == "REMOTE")


def needed_assets(workflow: Any) -> list[str]:
    """External files that the jobs to be run read, from their parameter ``needs``."""
    return sorted({name for job in _jobs(workflow) for name in job.params.get("needs", [])})


def requests(workflow: Any) -> list[Request]:
    """What the jobs to be submitted ask of a cluster, each kind once, by rule."""
    kinds: dict[tuple[Any, ...], Request] = {}
    for job in sorted(_jobs(workflow), key=lambda job: str(job.rule.name)):
        if not job.is_local:
            resources = {name: job.resources.get(name) for name in ASKED}
            request = Request(job.rule.name, resources, job.threads)
            kinds.setdefault((*resources.values(), job.threads), request)
    return list(kinds.values())


def _jobs(workflow: Any) -> Iterator[Any]:
    yield from workflow.dag.needrun_jobs(exclude_finished=False)
