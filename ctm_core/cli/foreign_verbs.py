"""Other implementations: their weights and their numbers; `ctm convert`, `ctm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["convert", "verify"]


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "document", type=FILE, help="Also write every check to this file.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--bf16", is_flag=True, help="Also under bf16 autocast, to tolerances of its own.")
def verify(folder: Path, document: Path | None, device: str, bf16: bool) -> None:
    """Compare our numbers with the golden set in FOLDER (see docs/verification.md)."""
    from ctm_core.verification.summary import verify as verify_folder

    echo(verify_folder(folder, document, show=echo, device=device, bf16=bf16))


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
    "role",
    type=click.Choice(["teacher", "ctm"]),
    help="What the file is  [default: recognised by its tensors and name]",
)
@click.option("--url", help="Where the file comes from  [default: of a known file, its own]")
@click.option("--licence", help="Its licence  [default: the known file's, or its publisher's]")
@click.option(
    "--entry", help="Which of several networks in FILE, as state_dict.ema  [default: the only one]"
)
@click.option(
    "--resolution",
    type=click.IntRange(min=1),
    help="Side of the images, for OpenAI's networks, whose tensors do not say  [default: by the "
    "levels and the file's name]",
)
@click.option(
    "--head-channels",
    "num_head_channels",
    type=click.IntRange(min=1),
    help="Channels per attention head, for OpenAI's networks  [default: 64]",
)
@click.option("--sigma-data", type=float, help="Of the preconditioning  [default: 0.5]")
@click.option("--sigma-min", type=float, help="Lowest noise level  [default: 0.002]")
@click.option("--sigma-max", type=float, help="Highest noise level  [default: 80]")
@click.option("--rho", type=float, help="Exponent of the noise levels  [default: 7]")
@click.option("--dropout", type=float, help="For further training  [default: as published]")
def convert(file: Path, output: Path, url: str | None, licence: str | None, **hints: Any) -> None:
    """Convert FILE, a network of another project, into a weight file of this one.

    FILE is a pickle of NVIDIA's EDM (.pkl), or a .pt file of OpenAI's consistency_models, sony/ctm
    or ctm-cifar10. Nothing in it is executed; what it holds is recognised by its tensors. What
    they do not tell is assumed, and said.
    """
    from ctm_core.models import foreign
    from ctm_core.models.foreign.assumptions import sentences

    made = foreign.convert(file, output, hints=foreign.Hints(**hints), url=url, licence=licence)
    weights = output / made["weights"]["file"]
    echo(f"{weights}: {made['kind']}, {made['parameters']:,} parameters")
    if made["left_out"]:
        others = ", ".join(made["left_out"][:8])
        echo(f"took the network at {made['entry']}, left out {others}")
    elif made["entry"] not in (".", "model"):
        echo(f"took the network at {made['entry']}")
    for sentence in sentences(made["assumed"]):
        echo(sentence)
