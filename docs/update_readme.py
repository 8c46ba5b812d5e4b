"""Update the README from results/: the picture, the full table, and its excerpt.

    python docs/update_readme.py [--results results]

Run it after `make table`. The same results give the same files.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
from collections import Counter
from pathlib import Path

from ctm_core.report.statistics import Summary
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "digits"
TABLE = "docs/images/digits-table.md"
PICTURE = "docs/images/digits.png"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
GAMMAS = ("", "0", "1")  # the rows shown: without γ, γ = 0 and γ = 1


def excerpt(table: str) -> str:
    """Rows of ``table.csv`` (as text) for the README: main protocol, last step, γ of 0 or 1."""
    rows = [row for row in csv.DictReader(io.StringIO(table)) if row["experiment"] == EXPERIMENT]
    if not rows:
        raise UserError(f"results/table.csv has no rows of {EXPERIMENT}; run `make table`")
    protocol, _ = Counter(row["protocol"] for row in rows).most_common(1)[0]
    rows = [row for row in rows if row["protocol"] == protocol]
    metric = next(
        name.removesuffix("_mean")
        for name, value in rows[0].items()
        if name.startswith("fd_") and name.endswith("_mean") and value
    )
    last: dict[str, int] = {}
    for row in rows:
        last[row["model"]] = max(last.get(row["model"], 0), int(row["step"]))
    shown = [r for r in rows if int(r["step"]) == last[r["model"]] and r["gamma"] in GAMMAS]
    lines = ["| model | sampler | γ | NFE | FD [95% interval] |", "|---|---|---|---|---|"]
    for row in shown:
        cells = [row["model"], row["sampler"], row["gamma"], row["nfe"], value(row, metric)]
        lines.append("| " + " | ".join(cells) + " |")
    trainings, samplings = (
        len(rows[0][f"{kind}_seeds"].split(";")) for kind in ("train", "sample")
    )
    caption = (
        f"Experiment `{EXPERIMENT}`, protocol `{protocol}`, metric `{metric}`: lower is better. "
        f"Each row is measured with {samplings} sampling seeds on {trainings} training run"
        f"{'s' if trainings > 1 else ''}. [The full table]({TABLE}) has every γ and protocol."
    )
    return "\n".join([*lines, "", caption])


def value(row: dict[str, str], metric: str) -> str:
    """Mean and interval of a row, formatted as in ``table.md``."""
    mean, low, high = (row[f"{metric}_{end}"] for end in ("mean", "ci95_low", "ci95_high"))
    ends = {"low": float(low), "high": float(high)} if low and high else {}
    return str(Summary(float(mean), **ends))


def block(readme: str) -> str:
    """The text between the two markers."""
    return readme.split(BEGIN)[1].split(END)[0].strip("\n")


def filled(readme: str, content: str) -> str:
    """The README with ``content`` between the two markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def update(results: Path, root: Path = ROOT) -> None:
    """Update README and docs/images from ``results``."""
    sources = {TABLE: results / "table.md", PICTURE: results / f"figures/{EXPERIMENT}-hero.png"}
    for source in (results / "table.csv", *sources.values()):
        if not source.is_file():
            raise UserError(f"{source} is missing; run `make table`")
    content = excerpt((results / "table.csv").read_text(encoding="utf-8"))
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
