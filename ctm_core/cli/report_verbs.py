"""Results for readers: `ctm table`, `ctm figures`, `ctm report`."""

from __future__ import annotations

from pathlib import Path

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["figures", "report", "table"]


@click.command()
@click.option("--output", type=FOLDER, default=Path("results"))
@click.option("--claims", type=FILE, help="The paper's claims.  [default: config/claims.yaml]")
@click.option("--published", type=FILE, help="Published values.  [default: config/published.yaml]")
@click.argument("evaluations", type=FILE, nargs=-1, required=True)
def table(
    output: Path, claims: Path | None, published: Path | None, evaluations: tuple[Path, ...]
) -> None:
    """Write the tables and the claims' verdicts from EVALUATIONS (evaluation.json files).

    \b
    runs.csv      every single value
    table.csv     every cell; table.md and table.tex for readers
    claims.json   what the table says of the paper's claims; claims.md for readers
    paper/        the paper's tables 1 to 3
    """
    from ctm_core.report.tables import write_tables

    write_tables(list(evaluations), output, claims=claims, published=published)
    echo(output / "table.csv")


@click.command()
@click.option("--output", type=FOLDER, default=Path("results/figures"))
@click.option("--training", "trainings", type=FILE, multiple=True, help="A training.jsonl file.")
@click.argument("evaluations", type=FILE, nargs=-1, required=True)
def figures(output: Path, trainings: tuple[Path, ...], evaluations: tuple[Path, ...]) -> None:
    """Draw the figures from EVALUATIONS and training curves."""
    from ctm_core.report.figures import write_figures

    write_figures(list(evaluations), list(trainings), output)
    echo(output)


@click.command()
@click.option("--results", type=FOLDER, default=Path("results"))
@click.option("--output", type=FILE, help="[default: RESULTS/report.html]")
@click.option("--published", type=FILE, help="Published values.  [default: config/published.yaml]")
def report(results: Path, output: Path | None, published: Path | None) -> None:
    """Write the report: one HTML file that needs no network."""
    from ctm_core.report.page import write_report

    output = output or results / "report.html"
    write_report(results, output, published=published)
    echo(output)
