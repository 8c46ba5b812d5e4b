"""Does `ctm compare` find what is wrong? Known mistakes, each in a copy of a finished run.

    python studies/reference/sabotage.py studies/reference/runs/digits/fp32-1

Every mistake is one that the records do not show: configuration and hashes say what they should,
and what is computed is something else. It is made in training seed 0 of ``ctm``, whose other seeds
are left out. What `ctm compare` says goes to docs/comparing-sabotage.md.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ctm_core.config import Experiment, layout, load_experiment
from ctm_core.data.dataset import open_dataset
from ctm_core.evaluation.evaluate import evaluate
from ctm_core.evaluation.metrics import reference as statistics
from ctm_core.evaluation.metrics.state import State
from ctm_core.models.features import build_features
from ctm_core.models.generation import Generator
from ctm_core.report.agreement import compared_in
from ctm_core.report.agreement.printed import table_of
from ctm_core.report.tables import write_tables
from ctm_core.report.typeset import markdown_table
from ctm_core.runtime.errors import CtmError
from ctm_core.runtime.files import write_text
from ctm_core.training.jobs import train_student

ROOT = Path(__file__).resolve().parents[2]
MODEL = "ctm"
MISTAKES = ("learning rate × 3", "no denoising loss", "γ off by 0.3", "another reference")
MOST_LINES = 12
HEAD = """# What `ctm compare` finds

Mistakes that no record shows, made on purpose in one training of `ctm` in the default experiment
(`python studies/reference/sabotage.py`). Of each, the first values that differ."""


@contextmanager
def hashes_of(experiment: Experiment) -> Iterator[None]:
    """Every hash is that of ``experiment``, whatever is trained."""
    original = {model: experiment.train_hash(model) for model in ("teacher", *experiment.models)}
    with mock.patch.object(Experiment, "train_hash", lambda _, model: original[model]):
        yield


@contextmanager
def less_noise() -> Iterator[None]:
    """Sampling with a gamma that is 0.3 too small."""
    batches = Generator.batches

    def other(self: Generator, count: int, **options: Any) -> Iterator[torch.Tensor]:
        if options["gamma"] is not None:
            options["gamma"] = max(0.0, options["gamma"] - 0.3)
        return batches(self, count, **options)

    with mock.patch.object(Generator, "batches", other):
        yield


@contextmanager
def another_reference(data: Path) -> Iterator[None]:
    """Statistics of a fifth of the images, as if they were those of a test split."""
    load = statistics.load_reference
    dataset = open_dataset(data)

    def other(path: Path) -> statistics.Reference:
        known = load(path)
        facts, protocol = known.record(), known.protocol
        images = dataset.batch(torch.arange(4, len(dataset), 5))[0]
        state = State(len(images), known.protocol.needs - {"teacher"}, blocks=1, keep=len(images))
        state.update(build_features(protocol).extract(images, protocol.outputs))
        part = replace(known, state=state)
        object.__setattr__(part, "record", lambda: facts)
        return part

    with mock.patch("ctm_core.evaluation.inputs.load_reference", other):
        yield


def sabotaged(run: Path, folder: Path, mistake: str) -> Path:
    """A copy of a run's results with a mistake in its first training of the model."""
    (config,) = (path for path in run.glob("*.yaml") if path.name != "config.yaml")
    original = load_experiment(config)
    shutil.rmtree(folder, ignore_errors=True)
    results = folder / "results"
    shutil.copytree(run / "results", results, ignore=shutil.ignore_patterns("benchmarks"))
    own = results / original.experiment
    for other in (own / MODEL).glob("seed-[!0]*"):
        shutil.rmtree(other)
    data = results / "data" / original.dataset.name / "train"
    # A third of the samples, and without the slow rows: what is wrong shows in those.
    few = original.model_dump()
    few["evaluation"] |= {"sample_seeds": [0], "likelihood": None}
    few["evaluation"]["protocols"] = {
        name: cells for name, cells in few["evaluation"]["protocols"].items() if cells == "all"
    }
    rate = original.training(MODEL).learning_rate
    change: dict[str, Any] = {
        "learning rate × 3": {
            "training": few["models"][MODEL]["training"] | {"learning_rate": 3 * rate}
        },
        "no denoising loss": {"dsm": {"enabled": False}},
    }.get(mistake, {})
    few["models"][MODEL] |= change
    experiment = Experiment.model_validate(few)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hashes_of(original))
        if change:
            shutil.rmtree(own / MODEL / "seed-0")
            train_student(
                experiment,
                MODEL,
                open_dataset(data),
                own / "teacher/seed-0/teacher.safetensors",
                seed=0,
                output=own / MODEL / "seed-0",
                runs=folder / "runs",
            )
        if mistake == "γ off by 0.3":
            stack.enter_context(less_noise())
        if mistake == "another reference":
            stack.enter_context(another_reference(data))
        for step in experiment.exported_steps(MODEL):
            names = experiment.protocols(MODEL, step)
            evaluate(
                experiment,
                MODEL,
                results.parent / layout.weights(experiment, MODEL, step, 0),
                [results.parent / layout.reference(name) for name in names],
                seed=0,
                step=step,
                output=own / MODEL / "seed-0" / f"step-{step}",
                runs=folder / "runs",
                teacher=own / "teacher/seed-0/teacher.safetensors",
                data=[data],
            )
    evaluations = sorted(own.glob("*/seed-*/step-*/evaluation.json"))
    write_tables(evaluations, results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="one of the runs of studies/reference/run.py")
    parser.add_argument("--folder", type=Path, default=ROOT / "studies/reference/sabotage")
    parser.add_argument("--reference", type=Path, help="[default: that of the experiment]")
    parser.add_argument("--mistakes", nargs="+", choices=MISTAKES, default=MISTAKES)
    asked = parser.parse_args()
    parts = [HEAD]
    for mistake in asked.mistakes:
        folder = asked.folder / mistake.replace(" ", "-")
        (made,) = compared_in(sabotaged(asked.run, folder, mistake), asked.reference)
        own = [line for line in made.lines if line.quantity.model == MODEL]
        found = [line for line in own if line.verdict == "differs"]
        others = [line for line in made.lines if line.verdict == "differs" and line not in own]
        table = markdown_table(table_of(found[:MOST_LINES]))
        parts.append(
            f"## {mistake}\n\n{len(found)} values of `{MODEL}` differ, {made.since(MODEL)}; "
            f"{len(others)} of other models.\n\n{table}"
        )
        print(f"{mistake}: {made.sentence}", flush=True)
    write_text(ROOT / "docs/comparing-sabotage.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    try:
        main()
    except CtmError as error:
        sys.exit(f"sabotage: {error}")
