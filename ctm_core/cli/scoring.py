"""From weights to scores: `ctm features`, `ctm evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from ctm_core.cli._options import FILE, FOLDER, SEED

__all__ = ["evaluate", "features"]


@click.group()
def features() -> None:
    """Make what evaluation compares with: small classifiers and reference statistics."""


@features.command()
@click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote.")
@click.option("--output", type=FILE, required=True, help="Weight file to write.")
def classifier(data: Path, output: Path) -> None:
    """Train the small classifier of a data set (the committed ones were made by this)."""
    from ctm_core.data import open_dataset
    from ctm_core.features.classifier import train_classifier

    train_classifier(open_dataset(data), output)
    click.echo(output)


@features.command()
@click.option("--protocol", type=FILE, required=True, help="The protocol's YAML file.")
@click.option(
    "--data", type=FOLDER, help="Folder that `ctm data` wrote, unless the reference is a file."
)
@click.option("--held-out", type=FOLDER, help="Its test split, for memorisation.")
@click.option("--output", type=FILE, required=True, help="Statistics file to write.")
def reference(protocol: Path, data: Path | None, held_out: Path | None, output: Path) -> None:
    """Make a protocol's reference statistics, from the prepared data set or its file."""
    from ctm_core.protocols import load_protocol

    loaded = load_protocol(protocol)
    from ctm_core.data import open_dataset
    from ctm_core.metrics.reference import write_reference

    given = [None if folder is None else open_dataset(folder) for folder in (data, held_out)]
    write_reference(output, loaded, *given)
    click.echo(output)


@click.command()
@click.option("--config", type=FILE, required=True, help="The experiment's YAML file.")
@click.option("--model", required=True, help="teacher, or a student of the config.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Training seed.")
@click.option("--step", type=int, help="Training step of the weights  [default: the file's]")
@click.option("--weights", type=FILE, required=True, help="Weight file to evaluate.")
@click.option("--teacher", type=FILE, help="The teacher's weights, for the trajectory error.")
@click.option(
    "--data",
    type=FOLDER,
    multiple=True,
    help="Folder that `ctm data` wrote, for memorisation, labels and likelihood; may be repeated.",
)
@click.option(
    "--output", type=FOLDER, required=True, help="Folder for evaluation.json and previews."
)
@click.option(
    "--runs",
    type=FOLDER,
    default=Path("runs"),
    show_default=True,
    help="Where finished cells are kept, so a killed job continues.",
)
@click.argument("references", type=FILE, nargs=-1, required=True)
def evaluate(
    config: Path,
    model: str,
    seed: int,
    step: int | None,
    weights: Path,
    teacher: Path | None,
    data: tuple[Path, ...],
    output: Path,
    runs: Path,
    references: tuple[Path, ...],
) -> None:
    """Sample every cell of a model and score it against REFERENCES, cell by cell."""
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    from ctm_core.evaluation import evaluate as run_evaluation

    run_evaluation(
        experiment,
        model,
        weights,
        list(references),
        seed=seed,
        step=step,
        output=output,
        runs=runs,
        teacher=teacher,
        data=data,
    )
    click.echo(output / "evaluation.json")
