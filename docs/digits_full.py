"""Write docs/digits-full.md and its figures from the results of config/digits-full.yaml.

    snakemake --cores all --configfile config/digits-full.yaml --directory full
    python docs/digits_full.py [--results full/results]

The same results give the same files, except for the reported run time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import atomic_write, read_json, write_text

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "digits-full"
PAGE = "docs/digits-full.md"
#: Figure names and captions, with the paper's figure.
FIGURES = {
    "fd-nfe": "FD against NFE for several γ (the paper's figure 7a)",
    "fd-gamma": "FD against γ for several NFE (figure 7b)",
    "fig10-matching": "Soft, local and global matching over training (figure 10)",
    "fig11-dsm": "With and without denoising score matching (figure 11)",
    "fig12-losses": "Consistency distillation, CTM, and CTM with GAN (figure 12)",
    "jumps": "Distance of a single jump from the teacher's ODE",
}
INTRODUCTION = """\
# The default experiment at length

`digits-full` trains every variant of the default experiment with three training seeds, and
evaluates snapshots and all metrics. With three training seeds, an interval covers the method and
not just one set of weights. It is still a toy: 8×8 digits, and FD in a small classifier's
features, which is not FID.

```sh
snakemake --cores all --configfile config/digits-full.yaml --directory full
python docs/digits_full.py        # writes this page from full/results
```
"""


def page(results: Path) -> str:
    """The page's text: cost, claims, figures."""
    pictures = [
        f"![{caption}](images/{EXPERIMENT}-{name}.png)\n\n{caption}."
        for name, caption in FIGURES.items()
    ]
    parts = [INTRODUCTION.strip(), cost(results), claims(results), "## Figures", *pictures]
    return "\n\n".join(parts) + "\n"


def claims(results: Path) -> str:
    """The verdicts, their headings one level lower: a page has one title."""
    lines = (results / "claims.md").read_text(encoding="utf-8").strip().splitlines()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)


def cost(results: Path) -> str:
    """Training runs, evaluations, and their hours, those before a stop included."""
    trainings = sorted(results.glob("*/*/seed-*/speed.json"))
    evaluations = sorted(results.glob("*/*/seed-*/step-*/speed.json"))
    seconds = sum(read_json(file)["seconds"] for file in (*trainings, *evaluations))
    return (
        f"{len(trainings)} training runs and {len(evaluations)} evaluations took "
        f"{seconds / 3600:.1f} hours in total."
    )


def update(results: Path, root: Path = ROOT) -> None:
    """Update the page and its figures from ``results``."""
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
