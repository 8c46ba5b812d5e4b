"""From data set to weights: `ctm data`, `ctm teacher`, `ctm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, SEED, WEIGHTS, echo
from ctm_core.runtime import devices
from ctm_core.runtime.launch import launched

__all__ = ["data", "teacher", "train"]


class _Data(click.Command):
    """Its help ends with the names of the data sets."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from ctm_core.config import datasets

        formatter.write(f"\nData sets: {', '.join(datasets.names())}\n")


@click.command(cls=_Data)
@click.option("--dataset", required=True, help="Name of a data set, see below.")
@click.option("--split", default="train", help="train or test.")
@click.option(
    "--source", help="Folder, file or URL of the original files, for data sets that take one."
)
@click.option(
    "--config", type=FILE, help="Experiment whose section `dataset` describes your own images."
)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    envvar="CTM_WORKERS",
    show_envvar=True,
    help="Processes, where images are computed  [default: one per CPU]",
)
def data(
    dataset: str,
    split: str,
    source: str | None,
    config: Path | None,
    output: Path,
    workers: int | None,
) -> None:
    """Prepare a data set: one memory-mapped uint8 array, labels and a manifest."""
    from ctm_core.config import load_experiment
    from ctm_core.data.dataset import prepare

    section = None if config is None else load_experiment(config).dataset
    made = prepare(dataset, split, source, output, workers=workers, section=section)
    echo(f"{output}: {len(made)} images of {made.images.shape[1:]}, {made.fingerprint[:12]}")


def _training_options(command: Any) -> Any:
    options = [
        click.option("--config", type=FILE, required=True, help="The experiment's YAML file."),
        click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote."),
        click.option("--output", type=FOLDER, required=True, help="Folder for the weights."),
        click.option(
            "--runs",
            type=FOLDER,
            default=Path("runs"),
            help="Folder for training state.",
        ),
        click.option(
            "--run", type=FOLDER, help="Use this run folder instead of one under --runs."
        ),
        click.option(
            "--attempt",
            type=click.IntRange(min=1),
            default=1,
            help="The workflow's attempt; from 2 on, a recorded failure is not repeated.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(min=1),
            default=1,
            help="Processes on this machine that share a batch, one per GPU (not under torchrun).",
        ),
        click.option(
            "--allow-world-size",
            is_flag=True,
            help="Resume with another number of processes than before (not exact).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_training_options
@click.option("--seed", type=SEED, help="Training seed  [default: the config's]")
def teacher(config: Path, data: Path, seed: int | None, processes: int, **place: Any) -> None:
    """Train an EDM teacher from scratch; a killed run resumes where it stopped."""
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    devices.claim(experiment.resources.training.gpus)
    if launched(processes):
        return
    from ctm_core.data.dataset import open_dataset
    from ctm_core.training.jobs import train_teacher

    _say(train_teacher(experiment, open_dataset(data), seed=seed, **place))


@click.command()
@_training_options
@click.option("--model", required=True, help="A student of the config, e.g. ctm.")
@click.option(
    "--teacher", type=WEIGHTS, help="The teacher's weight file, if the objective has one."
)
@click.option("--weak-teacher", type=FILE, help="For a model with weak_teacher: that snapshot.")
@click.option("--init", type=FILE, help="For a fork: live weights to start from.")
@click.option("--init-average", type=FILE, help="For a fork: the EMA weights of the same step.")
@click.option("--seed", type=SEED, default=0, help="Training seed.")
def train(
    config: Path,
    data: Path,
    model: str,
    teacher: Path | None,
    weak_teacher: Path | None,
    init: Path | None,
    init_average: Path | None,
    seed: int,
    processes: int,
    **place: Any,
) -> None:
    """Train a student; a killed run resumes where it stopped."""
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    experiment.student(model)
    devices.claim(experiment.resources.training.gpus)
    if launched(processes):
        return
    from ctm_core.data.dataset import open_dataset
    from ctm_core.training.jobs import train_student

    path = train_student(
        experiment,
        model,
        open_dataset(data),
        teacher,
        seed=seed,
        weak_teacher=weak_teacher,
        init=init,
        init_average=init_average,
        **place,
    )
    _say(path)


def _say(path: Path) -> None:
    from ctm_core.runtime import distributed

    if distributed.main():
        echo(path)
