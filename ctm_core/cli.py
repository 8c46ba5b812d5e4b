"""The ``ctm`` command: one verb a job, each a thin call into the library.

Exit codes: 0 success; 2 a user's mistake or a refused file (one sentence, no traceback);
3 training diverged; 75 interrupted and resumable.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from ctm_core.errors import CtmError, Interrupted, UserError, plain_sentence
from ctm_core.launch import follow_parent, launched

__all__ = ["main"]

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
SEED = click.IntRange(min=0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ctm_core", prog_name="ctm")
def cli() -> None:
    """Consistency Trajectory Models, from data set to table."""


@cli.command()
@click.option("--dataset", required=True, help="digits, fashion-mnist, cifar10 or imagenet64.")
@click.option("--split", default="train", show_default=True, help="train or test.")
@click.option(
    "--source", help="Folder, file or URL of the original files, where a data set needs one."
)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    envvar="CTM_WORKERS",
    show_envvar=True,
    help="Processes that compute images (imagenet64)  [default: one a CPU]",
)
def data(dataset: str, split: str, source: str | None, output: Path, workers: int | None) -> None:
    """Prepare a data set: one memory-mapped uint8 array, labels and a manifest."""
    from ctm_core.data import open_dataset, prepare

    prepare(dataset, split, source, output, workers=workers)
    made = open_dataset(output)
    click.echo(f"{output}: {len(made)} images of {made.images.shape[1:]}, {made.fingerprint[:12]}")


def _training_options(command: Any) -> Any:
    options = [
        click.option("--config", type=FILE, required=True, help="The experiment's YAML file."),
        click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote."),
        click.option("--output", type=FOLDER, required=True, help="Folder for the weights."),
        click.option(
            "--runs",
            type=FOLDER,
            default=Path("runs"),
            show_default=True,
            help="Where training state lives.",
        ),
        click.option("--run", type=FOLDER, help="An explicit run folder instead."),
        click.option(
            "--attempt",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="A workflow's attempt; from 2 on a recorded failure is not repeated.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Processes on this machine that share a batch, one a GPU (not under torchrun).",
        ),
        click.option(
            "--allow-world-size",
            is_flag=True,
            help="Go on with another number of processes than the run began with (not exact).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_training_options
@click.option("--seed", type=SEED, help="Training seed  [default: the config's]")
def teacher(config: Path, data: Path, seed: int | None, processes: int, **place: Any) -> None:
    """Train an EDM teacher from nothing; a killed run continues where it stopped."""
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    if launched(processes):
        return
    from ctm_core.data import open_dataset
    from ctm_core.jobs import train_teacher

    _say(train_teacher(experiment, open_dataset(data), seed=seed, **place))


@cli.command()
@_training_options
@click.option("--model", required=True, help="A student of the config, e.g. ctm.")
@click.option("--teacher", type=FILE, help="The teacher's weight file, if the objective has one.")
@click.option("--init", type=FILE, help="For a fork: live weights to start from.")
@click.option("--init-average", type=FILE, help="For a fork: the EMA of the same step.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Training seed.")
def train(
    config: Path,
    data: Path,
    model: str,
    teacher: Path | None,
    init: Path | None,
    init_average: Path | None,
    seed: int,
    processes: int,
    **place: Any,
) -> None:
    """Train a student; a killed run continues where it stopped."""
    from ctm_core.config import load_experiment

    experiment = load_experiment(config)
    experiment.student(model)
    if launched(processes):
        return
    from ctm_core.data import open_dataset
    from ctm_core.jobs import train_student

    path = train_student(
        experiment,
        model,
        open_dataset(data),
        teacher,
        seed=seed,
        init=init,
        init_average=init_average,
        **place,
    )
    _say(path)


def _say(path: Path) -> None:
    from ctm_core import distributed

    if distributed.main():
        click.echo(path)


@cli.group()
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
@click.option("--output", type=FILE, required=True, help="Statistics file to write.")
def reference(protocol: Path, data: Path | None, output: Path) -> None:
    """Make a protocol's reference statistics, from the prepared data set or its file."""
    from ctm_core.protocols import load_protocol

    loaded = load_protocol(protocol)
    from ctm_core.data import open_dataset
    from ctm_core.metrics.reference import write_reference

    write_reference(output, loaded, None if data is None else open_dataset(data))
    click.echo(output)


@cli.command()
@click.argument("weights", type=FILE)
@click.option(
    "--output",
    type=FILE,
    default=Path("samples.npy"),
    show_default=True,
    help="uint8 array (N, C, H, W); a grid picture is written beside it as .png.",
)
@click.option(
    "--sampler", help="gamma, gamma_paper, heun or euler  [default: gamma; heun for a teacher]"
)
@click.option(
    "--nfe", type=click.IntRange(min=1), help="Network evaluations  [default: 1; 35 for a teacher]"
)
@click.option(
    "--gamma",
    type=click.FloatRange(0, 1),
    help="0 deterministic … 1 consistency sampling  [default: 0]",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("-n", "count", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--class", "label", help="A class's name or number  [default: uniform over classes]")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True)
def sample(
    weights: Path,
    output: Path,
    sampler: str | None,
    nfe: int | None,
    gamma: float | None,
    seed: int,
    count: int,
    label: str | None,
    batch_size: int,
) -> None:
    """Draw samples from a weight file: an array and a picture."""
    from ctm_core.generation import Generator

    if output.suffix != ".npy":
        raise UserError(f"--output {output} must end in .npy; the picture is put beside it")
    generator = Generator.from_file(weights)
    sampler = sampler or ("gamma" if generator.has_jumps else "heun")
    nfe = nfe or (1 if generator.has_jumps else 35)
    if gamma is None and sampler.startswith("gamma"):
        gamma = generator.default_gamma
    images = generator.images(
        count,
        sampler=sampler,
        nfe=nfe,
        gamma=gamma,
        seed=seed,
        label=None if label is None else generator.class_index(label),
        batch_size=batch_size,
        progress=True,
    )
    from ctm_core.pictures import save_array, save_grid

    picture = output.with_suffix(".png")
    save_array(output, images)
    save_grid(picture, images[:256])
    click.echo(f"{output} and {picture}: times {generator.describe(sampler, nfe, gamma)}")


@cli.command()
@click.argument("weights", type=FILE)
@click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote.")
@click.option(
    "--output", type=FILE, default=Path("likelihood.json"), show_default=True, help="JSON file."
)
@click.option("-n", "count", type=click.IntRange(min=1), help="Images  [default: all]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--probes",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Random probes of the trace an image; 0: the exact trace, a derivative for every pixel.",
)
@click.option(
    "--residual",
    default="none",
    show_default=True,
    help="none, or reconstruction (see docs/likelihood.md).",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-5,
    show_default=True,
    help="Of the ODE solver.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="[default: 64; published: 100]")
@click.option(
    "--published-protocol",
    is_flag=True,
    help="As the script behind the paper's 2.43 does it, its defects included.",
)
@click.option(
    "--reading",
    default="own_noise",
    show_default=True,
    help="Of the published residual term: own_noise, shared_noise, shared_noise_sampled or "
    "consistent.",
)
def likelihood(
    weights: Path,
    data: Path,
    output: Path,
    count: int | None,
    seed: int,
    probes: int,
    residual: str,
    tolerance: float,
    batch_size: int | None,
    published_protocol: bool,
    reading: str,
) -> None:
    """Measure bits per dimension of images under a model, through its denoiser."""
    from ctm_core.likelihood import Protocol, write_likelihood

    protocol = Protocol(
        probes=probes,
        residual=residual,
        tolerance=tolerance,
        seed=seed,
        published=published_protocol,
        reading=reading,
    )
    measured = write_likelihood(
        weights, data, output, count=count, protocol=protocol, batch_size=batch_size
    )
    click.echo(f"{output}: {measured}")


@cli.command()
@click.option("--config", type=FILE, required=True, help="The experiment's YAML file.")
@click.option("--model", required=True, help="teacher, or a student of the config.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Training seed.")
@click.option("--step", type=int, help="Training step of the weights  [default: the file's]")
@click.option("--weights", type=FILE, required=True, help="Weight file to evaluate.")
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
    )
    click.echo(output / "evaluation.json")


@cli.command()
@click.option("--output", type=FOLDER, default=Path("results"), show_default=True)
@click.argument("evaluations", type=FILE, nargs=-1, required=True)
def table(output: Path, evaluations: tuple[Path, ...]) -> None:
    """Write runs.csv, table.csv and table.md from EVALUATIONS (evaluation.json files)."""
    from ctm_core.tables import write_tables

    write_tables(list(evaluations), output)
    click.echo(output / "table.csv")


@cli.command()
@click.option("--output", type=FOLDER, default=Path("results/figures"), show_default=True)
@click.option("--training", "trainings", type=FILE, multiple=True, help="A training.jsonl file.")
@click.argument("evaluations", type=FILE, nargs=-1, required=True)
def figures(output: Path, trainings: tuple[Path, ...], evaluations: tuple[Path, ...]) -> None:
    """Draw the figures from EVALUATIONS and training curves."""
    from ctm_core.figures import write_figures

    write_figures(list(evaluations), list(trainings), output)
    click.echo(output)


@cli.command()
@click.option("--results", type=FOLDER, default=Path("results"), show_default=True)
@click.option("--output", type=FILE, help="[default: RESULTS/report.html]")
def report(results: Path, output: Path | None) -> None:
    """Write the report: one HTML file that needs no network."""
    from ctm_core.report import write_report

    output = output or results / "report.html"
    write_report(results, output)
    click.echo(output)


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "document", type=FILE, help="Also write every check to this file.")
def verify(folder: Path, document: Path | None) -> None:
    """Check our numbers against the golden set in FOLDER (see docs/verification.md)."""
    from ctm_core.verification.summary import verify as verify_folder

    click.echo(verify_folder(folder, document, show=click.echo))


@cli.group(invoke_without_command=True)
@click.option("--folder", type=FOLDER, help="Assets folder  [default: $CTM_ASSETS, or assets/]")
@click.option("--needed-by", metavar="EXPERIMENT", help="Only what this experiment needs.")
@click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
@click.pass_context
def assets(
    context: click.Context, folder: Path | None, needed_by: str | None, as_json: bool
) -> None:
    """Show every external file: is it there, is it the right one, who needs it."""
    if context.invoked_subcommand is not None:
        return
    from ctm_core.assets import assets_folder, describe, load, state

    chosen = {
        name: asset
        for name, asset in load().items()
        if needed_by is None or needed_by in asset.needed_by
    }
    if needed_by is not None and not chosen:
        raise UserError(f"no external file is listed as needed by an experiment {needed_by!r}")
    if as_json:
        click.echo(json.dumps([describe(a, folder) for a in chosen.values()], indent=2))
        return
    rows = [("name", "state", "size", "file", "needed by")]
    for asset in chosen.values():
        size = "" if asset.size is None else f"{asset.size / 1e6:,.1f} MB"
        needs = ", ".join(asset.needed_by) or "-"
        rows.append((asset.name, state(asset, folder).value, size, Path(asset.file).name, needs))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        click.echo("  ".join([*cells, row[4]]))
    click.echo(f"\nThey belong into {folder or assets_folder()}; docs/assets.md says where from.")


@cli.command()
@click.argument("file", type=FILE)
@click.option(
    "--output",
    type=FOLDER,
    required=True,
    help="Folder for weights.safetensors and provenance.json.",
)
@click.option(
    "--kind",
    type=click.Choice(["teacher", "ctm"]),
    help="What the file is taken for  [default: by its tensors and name]",
)
@click.option("--url", help="Where the file comes from  [default: of a known file, its own]")
@click.option("--licence", help="Its licence  [default: the known file's, or its publisher's]")
@click.option(
    "--resolution",
    type=click.IntRange(min=1),
    help="Side of the images, for OpenAI's networks, whose tensors do not tell  [default: 64]",
)
@click.option(
    "--head-channels",
    type=click.IntRange(min=1),
    help="Channels of an attention head, for OpenAI's networks  [default: 64]",
)
def convert(
    file: Path,
    output: Path,
    kind: Any,
    url: str | None,
    licence: str | None,
    resolution: int | None,
    head_channels: int | None,
) -> None:
    """Convert FILE, a network of another project, into a weight file of this one.

    FILE is a pickle of NVIDIA's EDM (.pkl), or a .pt file of OpenAI's consistency_models, sony/ctm
    or ctm-cifar10. Nothing in it is executed; what it holds is recognised by its tensors.
    """
    from ctm_core import teachers

    hints = teachers.Hints(role=kind, resolution=resolution, num_head_channels=head_channels)
    made = teachers.convert(file, output, hints=hints, url=url, licence=licence)
    weights = output / made["weights"]["file"]
    click.echo(f"{weights}: {made['kind']}, {made['parameters']:,} parameters")


def main() -> None:
    """Entry point of the console command."""
    logging.basicConfig(level=logging.INFO, format="ctm: %(message)s", stream=sys.stderr)
    for noisy in ("matplotlib", "fontTools", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Spinning threads of one job would starve another on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    follow_parent()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _end("interrupted; run the same command again to continue", Interrupted.exit_code)
    except click.ClickException as error:
        _end(error.format_message(), UserError.exit_code)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except CtmError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        sentence = plain_sentence(error)
        if sentence is None:
            raise
        _end(sentence, UserError.exit_code)


def _end(sentence: str, code: int) -> None:
    # The first process on each machine speaks for the others, who meet the same.
    if sentence and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"ctm: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
