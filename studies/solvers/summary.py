"""Write docs/solvers.md from the study's results.

Run it after the study, from the project's root: ``python studies/solvers/summary.py``. The same
results give the same page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from ctm_core.config import Cell, Experiment, load_experiment
from ctm_core.data.dataset import Dataset, open_dataset
from ctm_core.diffusion.sampling import grid_of
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.models.generation import Generator
from ctm_core.plan.passes import expected
from ctm_core.report.scores import Row, aggregate, read_evaluations, read_runs
from ctm_core.report.statistics import paired
from ctm_core.report.typeset import Markdown, markdown_table
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_text
from ctm_core.training.batches import Batch
from ctm_core.training.distances import build_distance
from ctm_core.training.objectives.ctm import CtmObjective

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "solvers.md"
METRICS = {"fd_classifier_digits_1024": "FD", "trajectory_error_24": "trajectory error"}
NFES = (1, 2, 4)
#: What is compared: a model, and what it is compared with.
QUESTIONS = {
    "Equal steps, so a little more than half the evaluations": [
        ("ctm_ab2", "ctm"),
        ("ctm_dpmpp_2m", "ctm"),
    ],
    "Equal evaluations, twice the steps": [("ctm_ab2_fine", "ctm"), ("ctm_dpmpp_2m_fine", "ctm")],
    "Equal evaluations, as few as possible": [
        ("ctm_ab2", "ctm_coarse"),
        ("ctm_dpmpp_2m", "ctm_coarse"),
    ],
    "Heun at fewer steps": [("ctm_coarse", "ctm")],
}
WORDS = {"lower": "better", "higher": "worse", "undecided": "undecided"}
#: Batches of images that the solvers' errors are measured on, and steps of the reference solve for
#: each of theirs.
BATCHES, SIZE, REFINED = 16, 16, 8
INTRODUCTION = """\
# Solvers that evaluate the teacher half as often

The teacher's solve is most of what CTM's training computes. `solver: ab2` and `solver: dpmpp_2m`
evaluate the teacher k + 1 times for k steps, Heun's method 2k times ([training](training.md)). Do
students learn as much from them? `studies/solvers` trains the default experiment's `ctm` with
each, with three training seeds, on the default's grid of 10 points and on one of 19, and with
Heun's method on 6 points, where it evaluates the teacher as often as the others do on 10.

```sh
snakemake --cores all --configfile studies/solvers/config.yaml --directory studies/solvers
python studies/solvers/summary.py     # writes this page
```
"""


@torch.no_grad()
def errors(experiment: Experiment, teacher: Generator, data: Dataset) -> dict[str, float]:
    """Root mean square distance per pixel of x_u from a finer solve, over training's own draws."""

    def objective(name: str) -> CtmObjective:
        own = teacher.model
        networks = {"student": own, "target": own, "teacher": own}
        return CtmObjective(
            section=experiment.student(name),
            diffusion=experiment.diffusion,
            distance=build_distance("l2"),
            **networks,
        )

    reference, levels = objective("ctm"), grid_of(experiment.diffusion.model_dump())
    squares: dict[str, list[torch.Tensor]] = {}
    for step in range(BATCHES):
        images, labels = data.batch(torch.arange(SIZE) + SIZE * step)
        batch = Batch(images.float() / 127.5 - 1, labels, seed=0, step=step)
        exact: dict[int, torch.Tensor] = {}  # by grid points: of one grid, all draw the same
        for name in experiment.students:
            one = objective(name)
            drawn, grid, x_t = one.noised(batch)
            if len(grid) not in exact:
                fine = karras_grid(REFINED * (len(grid) - 1) + 1, **levels).to(grid)
                steps = torch.full_like(drawn.i, REFINED * drawn.k)
                exact[len(grid)] = reference.solve(x_t, fine, REFINED * drawn.i, steps, labels)
            error = one.earlier(batch, x_t, grid, drawn) - exact[len(grid)]
            squares.setdefault(name, []).append(error.square().mean())
    return {name: math.sqrt(float(torch.stack(own).mean())) for name, own in squares.items()}


def models(experiment: Experiment, rows: Sequence[Row], error: dict[str, float]) -> str:
    """One line per model: its solver, its evaluations, its solver's error, its values."""
    lines = []
    for name, student in experiment.students.items():
        images = student.training.steps * student.training.batch_size
        passes = expected(experiment, name).by_network["teacher"]
        line = {
            "model": f"`{name}`",
            "solver": f"`{student.solver}`",
            "grid points": str(student.grid_points),
            "teacher's evaluations per image": f"{passes / images:.1f}",
            "error of x_u": f"{error[name]:.4f}",
        }
        for nfe in NFES:
            metrics = row_of(rows, name, nfe).metrics
            line[f"FD, NFE {nfe}"] = str(metrics[next(iter(METRICS))])
        lines.append({key: Markdown(value) for key, value in line.items()})
    return markdown_table(pd.DataFrame(lines))


def row_of(rows: Sequence[Row], model: str, nfe: int) -> Row:
    """The row of a model at an NFE; raises UserError if the study is not finished."""
    cell = Cell.of("gamma", nfe, 0.0)
    for row in rows:
        if (row.model, row.cell) == (model, cell) and row.train_seeds == (0, 1, 2):
            return row
    raise UserError(
        f"the table has no {model} at NFE {nfe} of three training seeds: finish the study"
    )


def answers(rows: Sequence[Row]) -> str:
    """For each question, how each cell compares: paired differences over training seeds."""
    parts = []
    for question, pairs in QUESTIONS.items():
        lines = []
        for first, second in pairs:
            for nfe in NFES:
                line = {"first": f"`{first}`", "second": f"`{second}`", "NFE": str(nfe)}
                one, two = (row_of(rows, name, nfe).metrics for name in (first, second))
                for metric, shown in METRICS.items():
                    difference = paired(one[metric], two[metric])
                    line[f"{shown}: first − second"] = str(difference)
                    line[f"{shown}: first is"] = WORDS[difference.outcome]
                lines.append({key: Markdown(value) for key, value in line.items()})
        parts += [f"### {question}", markdown_table(pd.DataFrame(lines))]
    return "\n\n".join(parts)


def verdict(rows: Sequence[Row]) -> str:
    """One bullet per question, counted over its cells."""
    lines = []
    for question, pairs in QUESTIONS.items():
        for metric, shown in METRICS.items():
            cells = [[row_of(rows, name, nfe) for name in pair] for pair in pairs for nfe in NFES]
            summaries = [[row.metrics[metric] for row in pair] for pair in cells]
            outcomes = [WORDS[paired(first, second).outcome] for first, second in summaries]
            counts = [f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)]
            lines.append(f"* {question}, {shown}: {', '.join(counts)}.")
    return "\n".join(lines)


def page(experiment: Experiment, rows: Sequence[Row], error: dict[str, float]) -> str:
    """The page's text."""
    parts = [
        INTRODUCTION.strip(),
        "## What is lost",
        verdict(rows),
        "Better and worse mean that the 95% interval of the paired difference over the three\n"
        "training seeds lies on one side of 0. Undecided does not mean equal: three trainings\n"
        "give wide intervals. This is one data set of 8×8 digits, and FD in a small classifier's\n"
        "features is not FID.",
        "## Models",
        models(experiment, rows, error),
        "The error of x_u is the root mean square distance per pixel from Heun's method with\n"
        f"{REFINED} times the steps, over times, noises and numbers of steps as training draws\n"
        "them, on the teacher of the study.",
        "## Comparisons",
        answers(rows),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Read the study's results and write the page."""
    experiment = load_experiment(HERE / "digits-solvers.yaml")
    results = HERE / "results"
    rows = aggregate(read_evaluations(read_runs(results)))
    row_of(rows, "ctm", 1)
    teacher = results / "digits-solvers/teacher/seed-0/teacher.safetensors"
    error = errors(
        experiment, Generator.from_file(teacher), open_dataset(results / "data/digits/train")
    )
    write_text(PAGE, page(experiment, rows, error))


if __name__ == "__main__":
    main()
