"""Make the reference of an experiment: run it in several processor settings, keep every value.

    python studies/reference/run.py digits
    python studies/reference/run.py digits-full --shared 3

Each setting is the experiment itself in another number of threads or precision, with a folder of
its own and, in addition, the scores of two cells after 25 and 50% of each training. The first
setting has three training seeds of every student, the others one. The values go to
config/reference/EXPERIMENT.json, which `ctm compare` reads. Stopped, it goes on where it was;
`--gather` only reads the results that are there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ctm_core.config import Cell, load_experiment, read_yaml
from ctm_core.report.agreement.reference_runs import write_reference
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
#: Threads of a job, and precision of every training, by the setting's name.
SETTINGS = {"fp32-1": (1, "fp32"), "fp32-2": (2, "fp32"), "bf16-1": (1, "bf16")}
SHARES = (0.25, 0.5)


def derived(path: Path, threads: int, precision: str, seeds: list[int]) -> dict[str, Any]:
    """An experiment's file in one setting, with snapshots and two of their cells."""
    experiment = load_experiment(path)
    section: dict[str, Any] = read_yaml(path)
    section |= {"threads": threads, "seeds": seeds}
    samplers = section["evaluation"]["samplers"]
    trained = {name: section["models"][name] for name in experiment.students}
    for model, known in trained.items():
        known.pop("seeds", None)
        training = dict(known["training"])  # several models may share one section
        steps = {round(share * experiment.last_step(model)) for share in SHARES}
        training["snapshots"] = sorted(steps.union(training.get("snapshots", ())))
        known["training"] = training | {"precision": precision}
        every = experiment.cells(model)
        cells = [cell for cell in every if cell.sampler == every[0].sampler and not cell.times]
        samplers[model] = [
            *({**grid, "steps": "last"} for grid in samplers[model]),
            *(grid_of(cell, cells) for cell in (cells[0], cells[-1])),
        ]
    if experiment.trains_teacher:
        teacher = section["teacher"]
        teacher["training"] = {**teacher["training"], "precision": precision}
    return section


def grid_of(cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """A grid of one cell; at NFE 1 with a gamma that the model takes at others."""
    gammas = [one.gamma for one in (cell, *cells) if one.gamma is not None]
    return {"sampler": cell.sampler, "nfe": [cell.nfe], "gamma": gammas[:1]}


def prepare(folder: Path, section: dict[str, Any]) -> None:
    """The configuration of one setting."""
    folder.mkdir(parents=True, exist_ok=True)
    name = section["experiment"]
    text = yaml.safe_dump(section, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    listing = yaml.safe_dump({"experiments": [f"{name}.yaml"]})
    (folder / "config.yaml").write_text(listing, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", help="a file of config/experiments")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shared", type=int, default=1, help="seeds that every setting has")
    parser.add_argument("--folder", type=Path, default=ROOT / "studies/reference/runs")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    asked = parser.parse_args()
    name, runs = asked.experiment, {}
    path = ROOT / "config/experiments" / f"{name}.yaml"
    output = ROOT / "config/reference" / f"{name}.json"
    try:
        for setting in asked.settings:
            folder = asked.folder.resolve() / name / setting
            if not asked.gather:
                seeds = asked.seeds[: asked.shared] if runs else asked.seeds
                prepare(folder, derived(path, *SETTINGS[setting], seeds))
                command = ["snakemake", "--cores", asked.cores, "results/table.csv", "--directory"]
                command += [str(folder), "--configfile", str(folder / "config.yaml")]
                subprocess.run(command, cwd=ROOT, check=True)
            runs[setting] = folder / "results"
        configuration = load_experiment(path).model_dump(mode="json")
        write_reference(runs, name, configuration, output)
    except UserError as error:
        parser.exit(2, f"reference: {error}\n")
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
