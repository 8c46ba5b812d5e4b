"""The cost of a configuration: `ctm plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["plan"]


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
