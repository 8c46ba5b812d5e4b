"""What a configuration costs, and one that costs what it may: `ctm plan`, `ctm new`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["new", "plan"]


@click.command()
@click.option(
    "--config",
    "--configfile",
    "config",
    type=FILE,
    default=Path("config/config.yaml"),
    help="A file that lists experiments, or one experiment.",
)
@click.option(
    "--target",
    type=click.Choice(["table", "all"]),
    default="table",
    help="results/table.csv, or the report and figures too.",
)
@click.option(
    "--device-speed",
    metavar="SPEED",
    help="Hours of another device: 40x the measured machine, or 60TFLOP/s sustained.",
)
@click.option("--speed", type=FILE, help="Measured speeds.  [default: benchmarks/speed.json]")
@click.option(
    "--results",
    type=FOLDER,
    default=Path("results"),
    help="Results of a finished run, to show next to the predictions.",
)
@click.option("--json", "output", type=FILE, help="Also write everything to this file.")
def plan(config: Path, speed: Path | None, output: Path | None, **options: Any) -> None:
    """Estimate what a configuration takes: jobs, forward passes, hours, disk, memory, files.

    Nothing is run, and no file is needed but the configuration.
    """
    from ctm_core.plan import SPEED
    from ctm_core.plan import plan as make
    from ctm_core.plan.printout import describe
    from ctm_core.runtime.files import write_json

    made = make(config, speed=speed or SPEED, **options)
    echo(describe(made))
    if output is not None:
        write_json(output, made.to_json())


@click.command()
@click.argument("name")
@click.option(
    "--images",
    "source",
    required=True,
    help="Folder, zip, tar, .npz or .npy, or asset:NAME (docs/data.md).",
)
@click.option(
    "--resolution",
    type=click.IntRange(8, 1024),
    help="Side of the learned images in pixels  [default: what the hours suffice for]",
)
@click.option("--hours", type=float, default=2.0, help="What the whole run may take.")
@click.option(
    "--device-speed", metavar="SPEED", help="Of a GPU: 40x, or 60TFLOP/s, as in `ctm plan`."
)
@click.option(
    "--cores", type=click.IntRange(1, 1024), help="CPU cores  [default: all of this process]"
)
def new(name: str, source: str, hours: float, device_speed: str | None, **sizes: Any) -> None:
    """Write an experiment on your own images, sized to the machine and the hours.

    It makes config/NAME.yaml, config/experiments/NAME.yaml and config/protocols/NAME.yaml,
    and prints what the run takes and the command that starts it.
    """
    from dataclasses import replace

    from ctm_core.plan import plan as make
    from ctm_core.plan.candidate import FILLED
    from ctm_core.plan.draft import draft
    from ctm_core.plan.printout import clock, describe

    drafted = draft(name, source, hours=hours, device_speed=device_speed, **sizes)
    drafted.write()
    *_, config = drafted.texts
    planned = make(
        Path(config),
        target="all",
        device_speed=device_speed,
        shapes={name: drafted.shape},
    )
    echo(describe(replace(planned, commands={"machine": drafted.command})))
    taken = clock(drafted.seconds)
    if drafted.seconds > 3600 * FILLED * hours:
        echo(f"Even the smallest run takes {taken} on {drafted.machine}; --hours is too short.")
    else:
        echo(
            f"On {drafted.machine} that is {taken} of {clock(3600 * hours)}; the rest is reserve."
        )
    echo("Written: " + ", ".join(drafted.texts))
