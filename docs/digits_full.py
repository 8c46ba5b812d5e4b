"""Write docs/digits-full.md and its pictures from the results of config/digits-full.yaml.

    snakemake --cores all --configfile config/digits-full.yaml --directory full
    python docs/digits_full.py [--results full/results]

Equal results give equal files, but for the time that they took.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "digits-full"
PAGE = "docs/digits-full.md"
#: Name of a figure, and what it is in the paper.
FIGURES = {
    "fd-nfe": "FD against NFE for several γ (the paper's figure 7a)",
    "fd-gamma": "FD against γ for several NFE (figure 7b)",
    "fig10-matching": "Soft, local and global matching over training (figure 10)",
    "fig11-dsm": "With and without denoising score matching (figure 11)",
    "fig12-losses": "Consistency distillation, CTM, and CTM with GAN (figure 12)",
    "jumps": "How far a single jump lands from the teacher's ODE",
}
INTRODUCTION = """\
# The default experiment at length

`digits-full` trains every variant of the default experiment with three training seeds, and
measures snapshots and all metrics. With three trainings an interval speaks of the method, not of
one set of weights. It is still a toy: 8×8 digits, and FD by a small classifier, which is not FID.

```sh
snakemake --cores all --configfile config/digits-full.yaml --directory full
python docs/digits_full.py        # writes this page from full/results
```
"""


def page(results: Path) -> str:
    """The page's text: what it took, the claims, the figures."""
    claims = (results / "claims.md").read_text(encoding="utf-8").strip()
    # One title a page: the claims' own headings go down by one.
    claims = "\n".join(
        f"#{line}" if line.startswith("#") else line for line in claims.splitlines()
    )
    pictures = [
        f"![{caption}](images/{EXPERIMENT}-{name}.png)\n\n{caption}."
        for name, caption in FIGURES.items()
    ]
    parts = [INTRODUCTION.strip(), cost(results), claims, "## Figures", *pictures]
    return "\n\n".join(parts) + "\n"


def cost(results: Path) -> str:
    """Jobs and processor hours, from Snakemake's benchmarks."""
    files = sorted((results / "benchmarks").rglob("*.tsv"))
    rows = []
    for file in files:
        with file.open(newline="", encoding="utf-8") as lines:
            rows += list(csv.DictReader(lines, delimiter="\t"))[-1:]
    wall = sum(float(row["s"]) for row in rows)
    trainings = sum("train" in file.parts or "teacher" in file.parts for file in files)
    return (
        f"{len(rows)} jobs, {trainings} of them trainings, took {wall / 3600:.1f} hours together; "
        "on two cores two run side by side."
    )


def update(results: Path, root: Path = ROOT) -> None:
    """Bring the page and its pictures up to date with ``results``."""
    sources = {name: results / f"figures/{EXPERIMENT}-{name}.png" for name in FIGURES}
    for source in (results / "claims.md", *sources.values()):
        if not source.is_file():
            raise UserError(
                f"{source} is missing; run `snakemake --cores all --configfile "
                "config/digits-full.yaml --directory full`"
            )
    for name, source in sources.items():
        with atomic_write(root / f"docs/images/{EXPERIMENT}-{name}.png") as temporary:
            shutil.copyfile(source, temporary)
    write_text(root / PAGE, page(results))


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "full/results")
    try:
        update(parser.parse_args().results)
    except UserError as error:
        parser.exit(2, f"digits_full: {error}\n")


if __name__ == "__main__":
    main()
