"""From weights to scores: `ctm features`, `ctm evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from ctm_core.cli._options import EITHER, FILE, FOLDER, SEED, WEIGHTS, echo
from ctm_core.runtime import devices
from ctm_core.runtime.errors import UserError

__all__ = ["evaluate", "features"]


@click.group()
def features() -> None:
    """Make what evaluations need: small classifiers and reference statistics."""


@features.command()
@click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote.")
@click.option("--output", type=FILE, required=True, help="Weight file to write.")
def classifier(data: Path, output: Path) -> None:
    """Train the small classifier of a data set (this made the committed ones)."""
    from ctm_core.config.dag import FEATURE_THREADS
    from ctm_core.data.dataset import open_dataset
    from ctm_core.models.features.classifier import train_classifier
    from ctm_core.runtime.threads import use_threads

    use_threads(FEATURE_THREADS)
    train_classifier(open_dataset(data), output)
    echo(output)


@features.command()
@click.option("--protocol", type=FILE, required=True, help="The protocol's YAML file.")
@click.option(
    "--data", type=FOLDER, help="Folder that `ctm data` wrote, unless the reference is a file."
)
@click.option("--held-out", type=FOLDER, help="Its test split, for memorisation.")
@click.option("--output", type=FILE, required=True, help="Statistics file to write.")
def reference(protocol: Path, data: Path | None, held_out: Path | None, output: Path) -> None:
    """Make a protocol's reference statistics, from the prepared data set or its file."""
    from ctm_core.config.dag import FEATURE_THREADS
    from ctm_core.config.protocols import load_protocol

    loaded = load_protocol(protocol)
    from ctm_core.data.dataset import open_dataset
    from ctm_core.evaluation.metrics.reference import write_reference
    from ctm_core.runtime.threads import use_threads

    use_threads(FEATURE_THREADS)
    given = [None if folder is None else open_dataset(folder) for folder in (data, held_out)]
    write_reference(output, loaded, *given)
    echo(output)


@click.command()
@click.option("--config", type=FILE, help="The experiment's YAML file.")
@click.option("--model", help="teacher, or a student of the config.")
@click.option("--seed", type=SEED, default=0, help="Training seed.")
@click.option("--step", type=int, help="Training step of the weights  [default: the file's]")
@click.option("--weights", type=WEIGHTS, help="Weight file to evaluate.")
@click.option("--teacher", type=WEIGHTS, help="The teacher's weights, for the trajectory error.")
@click.option(
    "--data",
    type=FOLDER,
    multiple=True,
    help="Folder that `ctm data` wrote, for memorisation, labels and likelihood; may be repeated.",
)
@click.option(
    "--samples",
    type=EITHER,
    help="Instead of a model: images to score, a .npy or .npz array or a folder of PNG and JPEG "
    "files.",
)
@click.option(
    "--output", type=FOLDER, required=True, help="Folder for evaluation.json and previews."
)
@click.option(
    "--runs",
    type=FOLDER,
    default=Path("runs"),
    help="Folder for finished cells, from which a killed job resumes.",
)
@click.argument("references", type=FILE, nargs=-1, required=True)
def evaluate(
    config: Path | None,
    model: str | None,
    seed: int,
    step: int | None,
    weights: Path | None,
    teacher: Path | None,
    data: tuple[Path, ...],
    samples: Path | None,
    output: Path,
    runs: Path,
    references: tuple[Path, ...],
) -> None:
    """Score a model, or images on disk, against REFERENCES.

    A model (--config, --model, --weights) is sampled in every cell that its experiment lists, and
    each cell is scored by the protocols that the experiment names. Images (--samples) are scored
    by the protocol of every reference. REFERENCES are files made by `ctm features reference`.
    """
    if samples is not None:
        if config or model or weights or teacher:
            raise UserError("--samples are images without a model: leave its options out")
        from ctm_core.evaluation.given import score_files

        for row in score_files(samples, list(references), output, list(data))["rows"]:
            echo(f"{row['protocol']}  {row['metric']}  {row['value']:.6g}")
        echo(output / "evaluation.json")
        return
    if config is None or model is None or weights is None:
        raise UserError(
            "give --config, --model and --weights of a model, or --samples FILE or FOLDER"
        )
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    devices.claim(experiment.resources.evaluation.gpus)
    from ctm_core.evaluation.evaluate import evaluate as run_evaluation

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
    echo(output / "evaluation.json")
