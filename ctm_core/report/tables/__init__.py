"""The table as files, for programs, for readers and for papers.

``runs.csv`` has every single value, ``table.csv`` every cell; docs/results.md lists the others.
Equal inputs give equal bytes, in whatever order the files are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctm_core.config.project import locate
from ctm_core.report.literature import beside, load_literature
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.report.tables import paper, sections
from ctm_core.report.tables.columns import means, runs_csv, table_csv
from ctm_core.report.verdicts import findings, load_claims, record
from ctm_core.report.verdicts.sentences import markdown as claims_markdown
from ctm_core.runtime.files import write_json, write_record, write_text

__all__ = ["write_tables"]


def write_tables(
    evaluations: Sequence[Path],
    output: Path,
    *,
    claims: Path | None = None,
    published: Path | None = None,
) -> None:
    """Write all tables into ``output``.

    Parameters
    ----------
    claims, published
        The lists of claims and of published values; None takes ``config/claims.yaml`` and
        ``config/published.yaml`` of the working directory or, if there are none, of the project.
    """
    published = published or Path(locate("config/published.yaml"))
    literature = load_literature(published)
    asked = load_claims(claims or Path(locate("config/claims.yaml")), literature)
    records = read_evaluations(evaluations)
    rows = aggregate(records)
    compared = beside(rows, literature, published)
    verdicts = findings(rows, asked, literature)
    write_text(output / "runs.csv", runs_csv(records))
    write_text(output / "table.csv", table_csv(rows, compared))
    dealt = sections.sections(rows, records, compared)
    write_text(output / "table.md", sections.markdown(dealt))
    write_text(output / "table.tex", sections.latex(dealt))
    write_json(output / "metrics.json", means(rows))
    write_record(output / "claims.json", record(verdicts))
    write_text(output / "claims.md", claims_markdown(verdicts))
    for layout in paper.LAYOUTS:
        made = paper.paper_table(layout, rows, compared, literature)
        for suffix, text in (("csv", paper.csv), ("md", paper.markdown), ("tex", paper.latex)):
            write_text(output / "paper" / f"{layout.name}.{suffix}", text(made))
