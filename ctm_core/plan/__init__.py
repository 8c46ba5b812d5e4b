"""What a configuration will take, before anything runs: `ctm plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctm_core.config.asset_listing import ROOT
from ctm_core.config.dag import TARGETS, Job, by_rule, graph
from ctm_core.config.project import Project, open_project
from ctm_core.plan.costs import Costs, Estimate
from ctm_core.plan.record import Record, compare
from ctm_core.plan.speeds import DeviceSpeed, Speed, parse_device_speed, read_speed
from ctm_core.plan.storage import Shape, on_disk

__all__ = ["SPEED", "Plan", "plan"]

#: What `benchmarks/plan.py` measured.
SPEED = ROOT / "benchmarks" / "speed.json"


@dataclass(frozen=True)
class Plan:
    """What a target of a configuration takes, all jobs counted from nothing."""

    project: Project
    target: str
    estimates: list[Estimate]  #: each after those whose files it reads
    finished: int  #: jobs that have left all their files under ``results``
    disk: Mapping[str, float]  #: bytes by what they hold
    missing: Mapping[str, list[str]]  #: labels of unfinished jobs by the file that they lack
    commands: Mapping[str, str]  #: what makes the target, by where
    speed: Speed
    device: DeviceSpeed
    record: Record

    @property
    def hours(self) -> dict[str, float]:
        """Device hours of jobs that ask for GPUs (``gpu``) and of the others (``cpu``)."""
        hours = {"gpu": 0.0, "cpu": 0.0}
        for estimate in self.estimates:
            seconds = estimate.wall * max(estimate.gpus, 1)
            hours["gpu" if estimate.gpus else "cpu"] += seconds / 3600
        return hours

    @property
    def longest_chain(self) -> float:
        """Hours of the longest chain of jobs that wait for each other, each on its own machine."""
        ends: dict[str, float] = {}
        for estimate in self.estimates:
            job = estimate.job
            began = max((ends.get(file, 0.0) for file in job.inputs), default=0.0)
            ends |= dict.fromkeys(job.outputs, began + estimate.wall / 3600)
        return max(ends.values(), default=0.0)

    @property
    def operations(self) -> float:
        """Of all networks in all jobs."""
        return sum(estimate.operations for estimate in self.estimates)

    def to_json(self) -> dict[str, Any]:
        """Everything, of JSON types: bytes, seconds, operations, images."""
        return {
            "config": self.project.path,
            "target": TARGETS[self.target],
            "jobs": by_rule(estimate.job for estimate in self.estimates),
            "jobs_finished": self.finished,
            "measured_on": {"device": self.speed.device, "threads": self.speed.threads},
            "device_speed": self.device.given,
            "hours": self.hours,
            "hours_of_longest_chain": self.longest_chain,
            "operations": self.operations,
            "disk": dict(self.disk),
            "peak_memory": max((e.memory for e in self.estimates), default=0.0),
            "missing": dict(self.missing),
            "left_out": list(self.project.left_out),
            "commands": dict(self.commands),
            "estimates": [_estimate(each) for each in self.estimates],
            "recorded_on": self.record.device,
            "comparisons": [asdict(each) for each in self.record.comparisons],
            "records_of_other_configurations": self.record.others,
        }


def plan(
    config: Path,
    *,
    target: str = "table",
    speed: Path = SPEED,
    device_speed: str | None = None,
    results: Path = Path("results"),
    shapes: Mapping[str, Shape] | None = None,
) -> Plan:
    """Plan a configuration.

    Parameters
    ----------
    config
        A file that lists experiments, as Snakemake is given, or one experiment.
    target
        ``table``: results/table.csv and what it takes; ``all``: the report and figures too.
    speed
        What ``benchmarks/plan.py`` wrote.
    device_speed
        Another device than the one it was measured on: see :mod:`.speeds`.
    results
        The results of a finished run.
    shapes
        Of data sets that need not be looked at.
    """
    device = parse_device_speed(device_speed)
    measured = read_speed(speed)
    project = open_project(config)
    jobs = graph(project, target)
    root = results.parent
    costs = Costs(project, measured, device, root, shapes)
    estimates = costs.of(jobs)
    unfinished = [job for job in jobs if not job.finished(root)]
    return Plan(
        project=project,
        target=target,
        estimates=estimates,
        finished=len(jobs) - len(unfinished),
        disk=on_disk(project, jobs, costs.networks(), costs.shapes),
        missing=_missing(project, unfinished),
        commands=_commands(config, target, estimates),
        speed=measured,
        device=device,
        record=compare(estimates, results),
    )


def _missing(project: Project, jobs: list[Job]) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for job in jobs:
        for name in job.assets:
            if not project.assets[name].path().exists():
                readers.setdefault(name, []).append(job.label)
    return dict(sorted(readers.items()))


def _commands(config: Path, target: str, estimates: list[Estimate]) -> dict[str, str]:
    """The command on this machine, and on a cluster where jobs ask for GPUs."""
    gpus = max((estimate.gpus for estimate in estimates), default=0)
    given = config.as_posix()
    here = "" if given == "config/config.yaml" else f" --configfile {given}"
    there = "" if given == "config/paper.yaml" else f" --configfile {given}"
    end = TARGETS[target]
    resources = f" --resources gpu={gpus}" if gpus else ""

    def whole(start: str, options: str) -> str:
        # After --configfile a bare target would be taken for a second file.
        return f"{start}{options} {'-- ' if options else ''}{end}"

    machine = whole(f"snakemake --cores all{resources}", here)
    cluster = whole("snakemake --profile slurm", there)
    return {"cluster": cluster, "machine": machine} if gpus else {"machine": machine}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "rule": estimate.job.rule,
        "job": estimate.job.label,
        "passes": dict(estimate.passes),
        "operations": estimate.operations,
        "device_seconds": estimate.seconds,
        "seconds": estimate.wall,
        "gpus": estimate.gpus,
        "processes": estimate.processes,
        "memory": estimate.memory,
    }
