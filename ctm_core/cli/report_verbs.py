"""Results for readers: `ctm table`, `ctm figures`, `ctm report`, `ctm compare`."""

from __future__ import annotations

from pathlib import Path

import click

from ctm_core.cli._options import FILE, FOLDER, echo

__all__ = ["compare", "figures", "report", "table"]


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
@click.option("--data", type=FOLDER, multiple=True, help="Training images prepared by `ctm data`.")
@click.argument("evaluations", type=FILE, nargs=-1, required=True)
def figures(
    output: Path,
    trainings: tuple[Path, ...],
    data: tuple[Path, ...],
    evaluations: tuple[Path, ...],
) -> None:
    """Draw the figures from EVALUATIONS, training curves and training images."""
    from ctm_core.report.figures import write_figures

    write_figures(evaluations, trainings, output, data=data)
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


@click.command()
@click.option(
    "--reference", type=FILE, help="[default: config/reference/EXPERIMENT.json of each experiment]"
)
@click.argument("results", type=FOLDER)
@click.argument("other", type=FOLDER, required=False)
def compare(results: Path, other: Path | None, reference: Path | None) -> None:
    """Compare RESULTS with the reference, cell by cell; given OTHER results, with those.

    Exit code 0 if every cell agrees, else 1.
    """
    from ctm_core.report.agreement import compared_in
    from ctm_core.report.agreement.printed import agreement_text, pairs_text
    from ctm_core.report.agreement.side_by_side import pairs_of

    if other is not None:
        if reference is not None:
            raise click.UsageError("give a second folder of results or --reference, not both")
        pairs = pairs_of(results, other)
        echo(pairs_text(pairs, results, other))
        agrees = all(pair.verdict == "agrees" for pair in pairs)
    else:
        made = compared_in(results, reference)
        echo("\n\n".join(map(agreement_text, made)))
        agrees = all(one.agrees for one in made)
    click.get_current_context().exit(0 if agrees else 1)
