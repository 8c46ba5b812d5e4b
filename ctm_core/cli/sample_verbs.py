"""Samples and likelihood of a weight file: `ctm sample`, `ctm likelihood`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctm_core.cli._options import FILE, FOLDER, SEED, WEIGHTS, echo
from ctm_core.runtime.errors import UserError

__all__ = ["likelihood", "sample"]


@click.command()
@click.argument("weights", type=WEIGHTS)
@click.option(
    "--output",
    type=FILE,
    default=Path("samples.npy"),
    help="uint8 array (N, C, H, W); a picture (.png) and a record (.json) go next to it.",
)
@click.option("--sampler", help="Sampler's name  [default: gamma; heun for a teacher]")
@click.option(
    "--nfe", type=click.IntRange(min=1), help="Network evaluations  [default: 1; 35 for a teacher]"
)
@click.option(
    "--gamma",
    type=click.FloatRange(0, 1),
    help="0 deterministic … 1 consistency sampling  [default: 0]",
)
@click.option(
    "--times",
    default="",
    help="Noise levels between the jumps, separated by commas: 0.8 for two, 5,0.8 for three  "
    "[default: a grid]",
)
@click.option("--seed", type=SEED, default=0)
@click.option("-n", "count", type=click.IntRange(min=1), default=64)
@click.option("--class", "label", help="A class's name or number  [default: uniform over classes]")
@click.option("--batch-size", type=click.IntRange(min=1), default=256)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32")
def sample(
    weights: Path,
    output: Path,
    sampler: str | None,
    nfe: int | None,
    gamma: float | None,
    times: str,
    seed: int,
    count: int,
    label: str | None,
    batch_size: int,
    precision: str,
) -> None:
    """Draw samples from a weight file: an array and a picture."""
    from ctm_core.models.generation import Generator

    if output.suffix != ".npy":
        raise UserError(f"--output {output} must end in .npy; the picture is put beside it")
    try:
        levels = [float(time) for time in times.split(",")] if times else []
    except ValueError:
        raise UserError(f"--times {times}: expected numbers separated by commas") from None
    generator = Generator.from_file(weights, precision)
    cell = generator.cell(sampler, nfe, gamma, levels)
    images = generator.images(
        count,
        **cell._asdict(),
        seed=seed,
        label=None if label is None else generator.class_index(label),
        batch_size=batch_size,
        progress=True,
    )
    from ctm_core.data.pictures import save_grid
    from ctm_core.runtime.arrays import save_array
    from ctm_core.runtime.files import sha256_file, write_record

    picture = output.with_suffix(".png")
    save_array(output, images.numpy())
    save_grid(picture, images[:256])
    place = cell.record | {"sample_seed": seed}
    made = {"checkpoint_sha256": sha256_file(weights), "array_sha256": sha256_file(output)}
    write_record(output.with_suffix(".json"), generator.describe_samples() | place | made)
    echo(f"{output} and {picture}: times {generator.describe(*cell)}")


@click.command()
@click.argument("weights", type=WEIGHTS)
@click.option("--data", type=FOLDER, required=True, help="Folder that `ctm data` wrote.")
@click.option("--output", type=FILE, default=Path("likelihood.json"), help="JSON file.")
@click.option("-n", "count", type=click.IntRange(min=1), help="Images  [default: all]")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--probes",
    type=click.IntRange(min=0),
    default=1,
    help="Random probes of the trace per image; 0: exact trace, one derivative per pixel.",
)
@click.option(
    "--residual", default="none", help="none, or reconstruction (see docs/likelihood.md)."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-5,
    help="Tolerance of the ODE solver.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="[default: 64; published: 100]")
@click.option(
    "--published-protocol",
    "published",
    is_flag=True,
    help="Reproduce the script behind the paper's 2.43, defects included.",
)
@click.option(
    "--reading",
    default="own_noise",
    help="Reading of the published residual term: own_noise, shared_noise, shared_noise_sampled "
    "or consistent.",
)
def likelihood(
    weights: Path,
    data: Path,
    output: Path,
    count: int | None,
    batch_size: int | None,
    **protocol: Any,
) -> None:
    """Measure bits per dimension of images under a model, through its denoiser."""
    from ctm_core.evaluation.likelihood import LikelihoodProtocol, write_likelihood

    measured = write_likelihood(
        weights,
        data,
        output,
        count=count,
        protocol=LikelihoodProtocol(**protocol),
        batch_size=batch_size,
    )
    echo(f"{output}: {measured}")
