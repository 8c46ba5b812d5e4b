"""What comes from elsewhere: `ctm assets`, `ctm convert`, `ctm verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER
from ctm_core.errors import UserError

__all__ = ["assets", "convert", "verify"]


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "document", type=FILE, help="Also write every check to this file.")
def verify(folder: Path, document: Path | None) -> None:
    """Check our numbers against the golden set in FOLDER (see docs/verification.md)."""
    from ctm_core.verification.summary import verify as verify_folder

    click.echo(verify_folder(folder, document, show=click.echo))


@click.group(invoke_without_command=True)
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


@click.command()
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
