"""The smoke experiment from data to table by the verbs of `ctm`, in the DAG's order.

    python benchmarks/smoke_dag.py FOLDER [--tiny]

It needs no Snakemake. Everything is written under FOLDER, in which the verbs run one after the
other in this process; the GPU that torch sees computes, or else the CPU.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import yaml

from ctm_core.cli.command import cli
from ctm_core.config import dag
from ctm_core.config.dag import Files, Job
from ctm_core.config.project import ROOT, Project, open_project, protocol_file

__all__ = ["arguments", "differences", "write_config"]

SMOKE = ROOT / "config/experiments/smoke.yaml"
#: What tells values of runs.csv apart.
KEYS = (
    "model", "step", "train_seed", "sample_seed", "sampler", "gamma", "nfe", "times", "protocol",
)  # fmt: skip


def write_config(folder: Path, *, tiny: bool) -> Path:
    """The smoke experiment, with ``tiny`` cut down to two trainings of four steps."""
    described = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    if tiny:
        short = {"steps": 4, "checkpoint_every": 2, "snapshots": [], "preview_every": 0}
        short["log_every"] = 1
        described["models"] = {"ctm": described["models"]["ctm"]}
        for section in (described["teacher"], described["models"]["ctm"]):
            section["training"] |= short
        described["evaluation"] |= {
            "sample_seeds": [0],
            "samplers": {
                "teacher": [{"sampler": "heun", "nfe": [3]}],
                "ctm": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
            },
            "protocols": {"desk-smoke": "all"},
            "likelihood": None,
        }
    file = folder / "smoke.yaml"
    file.write_text(yaml.safe_dump(described), encoding="utf-8")
    return file


def arguments(project: Project, job: Job) -> list[str]:
    """The words after `ctm` of a job, as the workflow's rules have them."""
    reads: dict[str, Any] = dict(job.reads)
    made: dict[str, Any] = dict(job.makes)
    if job.kind == "data":
        name, split = str(job.name).split()
        return ["data", "--dataset", name, "--split", split, "--output", _folder(made["manifest"])]
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


def _options(reads: Files, **names: str) -> list[str]:
    """Each option with its file; of prepared data with the folder."""
    words = []
    for name, option in names.items():
        if (path := reads.get(name)) is not None:
            words += [option, _folder(path) if str(path).endswith("manifest.json") else str(path)]
    return words


def _folder(path: Any) -> str:
    return os.path.dirname(str(path))


def run(folder: Path, *, tiny: bool) -> None:
    """Every job up to the table; what stops one is raised."""
    folder.mkdir(parents=True, exist_ok=True)
    project = open_project(write_config(folder, tiny=tiny).resolve())
    os.chdir(folder)
    for job in dag.graph(project):
        words = arguments(project, job)
        print("ctm", *words, flush=True)
        cli.main(words, standalone_mode=False)


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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    run(given.folder, tiny=given.tiny)
