"""Write the results in docs/own-images.md and the README's photographs from their study.

    snakemake --cores 2 --configfile studies/photographs/config/photographs.yaml \\
        --directory studies/photographs
    python docs/own_images.py [--results studies/photographs/results]

The same results give the same files, except for the reported run time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))

from digits_full import claims, cost
from update_readme import excerpt, filled, main_metric, main_rows, value

from ctm_core.report.csv_files import read_csv
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "photographs"
PAGE, TABLE = "docs/own-images.md", "docs/images/photographs-table.md"
README = ("<!-- photographs:begin -->", "<!-- photographs:end -->")
#: What the README names of the table: model, NFE and γ.
NAMED = (
    ("teacher", "35", ""),
    ("ctm", "1", ""),
    ("ctm", "4", "0"),
    ("cd", "1", ""),
    ("cd", "4", "1"),
)
#: Figures and captions.
FIGURES = {
    "hero": "Samples from the same noise, and the Fréchet distance of each row",
    "samples-teacher": "The teacher's samples",
    "samples-ctm": "CTM's samples from the same noise",
    "samples-cd": "Those of consistency distillation",
    "nearest-teacher": "The teacher's samples, each above the nearest training image",
    "nearest-ctm": "CTM's samples in one step, each above the nearest training image",
    "nearest-cd": "The same for consistency distillation",
    "fd-nfe": "FD against NFE",
}


def values(table: pd.DataFrame) -> str:
    """A sentence with the distances of :data:`NAMED`."""
    metric = main_metric(rows := main_rows(table, EXPERIMENT))
    cells = {(row["model"], row["nfe"], row["gamma"]): row for row in rows.to_dict("records")}
    parts = []
    for model, nfe, gamma in NAMED:
        how = f"NFE {nfe}, γ {gamma}" if gamma else f"NFE {nfe}"
        parts.append(f"{value(cells[model, nfe, gamma], metric)} for `{model}` ({how})")
    return f"`{metric}`, lower is better: {', '.join(parts)}."


def update(results: Path, root: Path = ROOT) -> None:
    """Update the page's results and its figures, and the README."""
    sources = {name: results / f"figures/{EXPERIMENT}-{name}.png" for name in FIGURES}
    for source in (
        *(results / name for name in ("claims.md", "table.csv", "table.md")),
        *sources.values(),
    ):
        if not source.is_file():
            raise UserError(f"{source} is missing; run the study first (docs/own-images.md)")
    copies = {f"docs/images/{EXPERIMENT}-{name}.png": source for name, source in sources.items()}
    for target, source in (copies | {TABLE: results / "table.md"}).items():
        with atomic_write(root / target) as temporary:
            shutil.copyfile(source, temporary)
    pictures = [
        f"![{caption}](images/{EXPERIMENT}-{name}.png)\n\n{caption}."
        for name, caption in FIGURES.items()
    ]
    rows = read_csv(results / "table.csv")
    table = excerpt(rows, EXPERIMENT, TABLE.removeprefix("docs/"))
    # Claims about models that `ctm new` does not train would fill the page.
    tested, _, _ = claims(results).partition("\n### Not testable")
    content = "\n\n".join([cost(results), table, *pictures, tested.strip()])
    page = root / PAGE
    write_text(page, filled(page.read_text(encoding="utf-8"), content))
    hero = f"![{FIGURES['hero']}](docs/images/{EXPERIMENT}-hero.png)"
    readme = root / "README.md"
    shown = filled(readme.read_text(encoding="utf-8"), f"{hero}\n\n{values(rows)}", *README)
    write_text(readme, shown)


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "studies/photographs/results")
    try:
        update(parser.parse_args().results)
    except UserError as error:
        parser.exit(2, f"own_images: {error}\n")


if __name__ == "__main__":
    main()
