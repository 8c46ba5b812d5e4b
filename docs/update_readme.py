"""Update the README from results/: the picture, the full table, and its excerpt.

    python docs/update_readme.py [--results results]

Run it after `make table`. The same results give the same files.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from ctm_core.report.csv_files import read_csv
from ctm_core.report.statistics import MARK, MARKED, Summary, over
from ctm_core.report.typeset import markdown_table
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "digits"
TABLE = "docs/images/digits-table.md"
PICTURE = "docs/images/digits.png"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
GAMMAS = ("", "0", "1")  # the rows shown: without γ, γ = 0 and γ = 1


def main_rows(table: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Rows of an experiment after its last step, by the protocol that has most."""
    rows = table[table["experiment"] == experiment]
    if rows.empty:
        raise UserError(f"results/table.csv has no rows of {experiment}; run `make table`")
    rows = rows[rows["protocol"] == rows["protocol"].value_counts().index[0]]
    steps = rows["step"].astype(int)
    return rows[steps == steps.groupby(rows["model"]).transform("max")]


def main_metric(rows: pd.DataFrame) -> str:
    """The first Fréchet distance that rows of one protocol have."""
    first = rows.iloc[0]
    return next(
        name.removesuffix("_mean")
        for name in rows
        if name.startswith("fd_") and name.endswith("_mean") and first[name]
    )


def excerpt(table: pd.DataFrame, experiment: str = EXPERIMENT, full: str = TABLE) -> str:
    """Rows of ``table.csv`` for a page: main protocol, last step, γ of 0 or 1."""
    rows = main_rows(table, experiment)
    metric, protocol = main_metric(rows), rows.iloc[0]["protocol"]
    rows = rows[rows["gamma"].isin(GAMMAS)]
    shown = rows[["model", "sampler", "gamma", "nfe"]]
    shown = shown.rename(columns={"gamma": "γ", "nfe": "NFE"})
    shown["FD [95% interval]"] = [value(row, metric) for row in rows.to_dict("records")]
    shown["interval over"] = [
        over(row[f"{metric}_ci_method"], *seeds(row)) for row in rows.to_dict("records")
    ]
    marked = any(MARK in cell for cell in shown["FD [95% interval]"])
    caption = (
        f"Experiment `{experiment}`, protocol `{protocol}`, metric `{metric}`: lower is better. "
        f"{f'{MARKED} ' if marked else ''}[The full table]({full}) has every γ and protocol."
    )
    return f"{markdown_table(shown)}\n\n{caption}"


def value(row: dict[str, str], metric: str) -> str:
    """Mean and interval of a row, formatted as in ``table.md``."""
    mean, low, high = (row[f"{metric}_{end}"] for end in ("mean", "ci95_low", "ci95_high"))
    if not (low and high):
        return str(Summary(float(mean)))
    method: Any = row[f"{metric}_ci_method"]
    return str(Summary(float(mean), float(low), float(high), method))


def seeds(row: dict[str, str]) -> tuple[int, list[str]]:
    """Number of training seeds, and the sampling seeds of a row."""
    return len(row["train_seeds"].split(";")), row["sample_seeds"].split(";")


def block(readme: str) -> str:
    """The text between the two markers."""
    return readme.split(BEGIN)[1].split(END)[0].strip("\n")


def filled(readme: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The README with ``content`` between the two markers."""
    before, rest = readme.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{content}\n{end}{after}"


def update(results: Path, root: Path = ROOT) -> None:
    """Update README and docs/images from ``results``."""
    sources = {TABLE: results / "table.md", PICTURE: results / f"figures/{EXPERIMENT}-hero.png"}
    for source in (results / "table.csv", *sources.values()):
        if not source.is_file():
            raise UserError(f"{source} is missing; run `make table`")
    content = excerpt(read_csv(results / "table.csv"))
    for target, source in sources.items():
        with atomic_write(root / target) as temporary:
            shutil.copyfile(source, temporary)
    readme = root / "README.md"
    write_text(readme, filled(readme.read_text(encoding="utf-8"), content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    try:
        update(parser.parse_args().results)
    except UserError as error:
        parser.exit(2, f"update_readme: {error}\n")


if __name__ == "__main__":
    main()
