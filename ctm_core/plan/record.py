"""What a finished run measured, beside what was predicted.

``training.json`` holds the forward passes of a training, ``speed.json`` the seconds of a training
or of an evaluation, and the tables that Snakemake writes under ``results/benchmarks/`` the seconds
and the largest memory of each job.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ctm_core.config import Experiment
from ctm_core.evaluation.evaluation_file import Evaluation, read_evaluation
from ctm_core.plan.costs import Estimate
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import read_bytes
from ctm_core.training.training_file import Speed, TrainingRecord, read_speed, read_training


@dataclass(frozen=True)
class Comparison:
    """One number of one job, predicted by the plan and measured by a run."""

    job: str  #: its label
    what: str  #: ``passes: teacher``, ``seconds``, ``memory``
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """Measured over predicted, less 1; 0 where both are nothing."""
        if not self.predicted:
            return 0.0 if not self.measured else float("inf")
        return self.measured / self.predicted - 1


class Record(NamedTuple):
    """Every number that the finished jobs left, beside its prediction."""

    comparisons: list[Comparison]
    others: list[str]  #: labels of jobs whose record is of another configuration
    device: str | None  #: what the trainings ran on; None if there is no record


def compare(estimates: Iterable[Estimate], results: Path) -> Record:
    """Compare what jobs left in ``results``; a UserError if a record is corrupt."""
    comparisons: list[Comparison] = []
    others: list[str] = []
    device = None
    for estimate in estimates:
        job = estimate.job
        record, speed = _record(estimate, results), None
        if record is not None and job.experiment is not None:
            if not _belongs(record.train_hash, job.experiment, job.model):
                others.append(job.label)
                continue
            speed = read_speed(results / Path(str(job.makes["speed"])).relative_to("results"))
            comparisons += _of_record(estimate, record, speed)
            if speed is not None and job.kind == "train":
                hardware = speed.hardware
                device = f"{hardware.get('device')}, {hardware.get('threads')} threads"
        comparisons += _of_benchmark(estimate, results, timed=speed is None)
    return Record(comparisons, others, device)


def _record(estimate: Estimate, results: Path) -> TrainingRecord | Evaluation | None:
    job = estimate.job
    if job.experiment is None or job.kind not in ("train", "evaluate"):
        return None
    record = job.makes["record" if job.kind == "train" else "evaluation"]
    file = results / Path(str(record)).relative_to("results")
    if not file.exists():
        return None
    return read_training(file) if job.kind == "train" else read_evaluation(file)


def _belongs(train_hash: str, experiment: Experiment, model: str) -> bool:
    # A converted file does not say how it was trained; `precision: auto` is resolved in a record.
    if experiment.imported(model) is not None:
        return True
    resolved = [experiment.resolved(precision) for precision in ("fp32", "bf16")]
    return train_hash in {e.train_hash(model) for e in (experiment, *resolved)}


def _of_record(
    estimate: Estimate, record: TrainingRecord | Evaluation, speed: Speed | None
) -> list[Comparison]:
    measured: dict[str, int] = {}
    if isinstance(record, TrainingRecord):
        measured = record.forward_passes
    elif rows := [row for row in record.rows if row.protocol == "likelihood"]:
        measured = {"likelihood": sum(row.nfe * row.n for row in rows)}
    label = estimate.job.label
    comparisons = [
        Comparison(label, f"passes: {name}", estimate.passes[name], float(count))
        for name, count in measured.items()
        if name in estimate.passes
    ]
    if speed is not None:
        comparisons.append(Comparison(label, "seconds", estimate.work, speed.seconds))
    return comparisons


def _of_benchmark(estimate: Estimate, results: Path, *, timed: bool) -> list[Comparison]:
    """From Snakemake's table: ``s`` and ``max_rss`` in MiB; a repeated job's last line."""
    file = results / "benchmarks" / f"{estimate.job.benchmark}.tsv"
    if not estimate.job.benchmark or not file.exists():
        return []
    label, comparisons = estimate.job.label, []
    try:
        lines = read_bytes(file).decode().splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t"))
        if not rows:
            return []
        row = rows[-1]
        if timed and estimate.wall:
            comparisons.append(Comparison(label, "seconds", estimate.wall, float(row["s"])))
        if estimate.memory and row["max_rss"] not in ("NA", "-"):
            measured = float(row["max_rss"]) * 2**20
            predicted = estimate.memory * estimate.processes
            comparisons.append(Comparison(label, "memory", predicted, measured))
    except (KeyError, ValueError, TypeError, csv.Error):
        raise UserError(f"{file} is not a benchmark table of Snakemake; remove it") from None
    return comparisons
