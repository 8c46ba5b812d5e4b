"""A configuration from data to table by the verbs of `ctm`, in the DAG's order.

    python benchmarks/verbs.py CONFIG FOLDER [--until MODEL]

It needs no Snakemake. Everything is written under FOLDER, in which the verbs run one after the
other in this process; the GPU that torch sees computes, or else the CPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

from ctm_core.cli.command import cli
from ctm_core.config import dag
from ctm_core.config.dag import Files, Job
from ctm_core.config.project import Project, open_project, protocol_file

__all__ = ["TOOK", "arguments", "differences"]

#: Begins the line that is printed after each job: its seconds and its name follow.
TOOK = "took "
#: What tells values of runs.csv apart.
KEYS = (
    "model", "step", "train_seed", "sample_seed", "sampler", "gamma", "nfe", "times", "protocol",
)  # fmt: skip


def arguments(project: Project, job: Job) -> list[str]:
    """The words after `ctm` of a job, as the workflow's rules have them."""
    reads: dict[str, Any] = dict(job.reads)
    made: dict[str, Any] = dict(job.makes)
    if job.kind == "data":
        name, split = str(job.name).split()
        words = ["data", "--dataset", name, "--split", split]
        return [*words, *_described(project, name), "--output", _folder(made["manifest"])]
    if job.kind == "reference":
        words = ["features", "reference", "--protocol", protocol_file(str(job.name))]
        words += _options(reads, manifest="--data", held_out_manifest="--held-out")
        return [*words, "--output", made["statistics"]]
    if job.rule == "table":
        return ["table", "--output", _folder(made["table"]), *reads["evaluations"]]
    assert job.experiment is not None
    words = ["--config", project.files[job.experiment.experiment], "--seed", str(job.seed)]
    if job.kind == "train":
        verb = ["teacher"] if job.model == "teacher" else ["train", "--model", job.model]
        words = [*verb, *words, "--data", _folder(reads["manifest"])]
        words += _options(reads, teacher="--teacher", init="--init", init_average="--init-average")
        return [*words, "--output", _folder(made["weights"])]
    words = ["evaluate", "--model", job.model, *words, "--step", str(job.step)]
    words += ["--weights", reads["weights"]]
    words += _options(reads, teacher="--teacher", train_manifest="--data", test_manifest="--data")
    return [*words, "--output", _folder(made["evaluation"]), *reads["references"]]


def _described(project: Project, dataset: str) -> list[str]:
    """The experiment that says what own images are."""
    files = (
        project.files[name]
        for name, experiment in project.experiments.items()
        if experiment.dataset.name == dataset and experiment.dataset.reader
    )
    return [word for file in [*files][:1] for word in ("--config", file)]


def _options(reads: Files, **names: str) -> list[str]:
    """Each option with its file; of prepared data with the folder."""
    words = []
    for name, option in names.items():
        if (path := reads.get(name)) is not None:
            words += [option, _folder(path) if str(path).endswith("manifest.json") else str(path)]
    return words


def _folder(path: Any) -> str:
    return os.path.dirname(str(path))


def run(config: Path, folder: Path, until: str | None = None) -> None:
    """Every job up to the table, or to the training of a model; what stops one is raised.

    Prepared data that are there are not made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config.resolve()
    os.chdir(folder)
    project = open_project(config)
    for job in dag.graph(project):
        if job.kind == "data" and job.finished(Path()):
            continue
        words = arguments(project, job)
        print("ctm", *words, flush=True)
        began = time.monotonic()
        cli.main(words, standalone_mode=False)
        print(f"{TOOK}{time.monotonic() - began:.3f} {job.label}", flush=True)
        if until is not None and (job.kind, job.model) == ("train", until):
            break


def differences(first: Path, second: Path) -> list[dict[str, Any]]:
    """Every value of two folders' runs.csv, side by side; None where one lacks it."""
    tables = []
    for folder in (first, second):
        with (folder / "results/runs.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        tables.append(
            {(*(r.get(key, "") for key in KEYS), r["metric"]): float(r["value"]) for r in rows}
        )
    cells = []
    for key in dict.fromkeys([*tables[0], *tables[1]]):
        ours, other = (table.get(key) for table in tables)
        cells.append({"cell": list(key), "values": [ours, other]})
    return cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", metavar="MODEL", help="stop after its training")
    run(**vars(parser.parse_args()))
