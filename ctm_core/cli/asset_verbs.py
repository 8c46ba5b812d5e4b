"""External files: `ctm assets` and `ctm assets fetch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["assets"]


def _assets_options(command: Any) -> Any:
    options = [
        click.option(
            "--folder", type=FOLDER, help="Assets folder  [default: $CTM_ASSETS, or assets/]"
        ),
        click.option("--config", type=FILE, help="What this config needs, for which part of it."),
        click.option("--needed-by", metavar="EXPERIMENT", help="What this experiment needs."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@_assets_options
@click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
@click.pass_context
def assets(
    context: click.Context,
    folder: Path | None,
    config: Path | None,
    needed_by: str | None,
    as_json: bool,
) -> None:
    """Show every external file: is it there, is it the right one, who needs it."""
    if context.invoked_subcommand is not None:
        return
    from ctm_core.data.assets.overview import chosen, overview

    text, facts = overview(*chosen(config, needed_by), folder)
    echo(json.dumps(facts, indent=2) if as_json else text)


@assets.command("fetch")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_assets_options
@click.option("--sha256", help="The hash of the one file named, from somebody you trust.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60,
    show_default=True,
    help="Seconds without a byte after which a connection is dead.",
)
@click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Attempts in a row that bring nothing.",
)
def fetch_assets(
    names: tuple[str, ...],
    folder: Path | None,
    config: Path | None,
    needed_by: str | None,
    sha256: str | None,
    timeout: float,
    attempts: int,
) -> None:
    """Fetch external files: all, by name, or what a config or an experiment needs.

    An interrupted download goes on where it ended. A file is put into place when its hash is the
    known one; where none is known, it is pinned in config/assets.lock.
    """
    from ctm_core.data.assets.fetching import fetch_all, selected
    from ctm_core.data.assets.transfer import Patience

    fetch_all(
        selected(names, config, needed_by, sha256),
        folder,
        patience=Patience(timeout, attempts),
        say=echo,
        complain=lambda sentence: echo(f"ctm: {sentence}", err=True),
    )
