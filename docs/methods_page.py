"""Write the results in docs/methods.md and the README from those of config/digits-methods.yaml.

    snakemake --cores all --keep-going --configfile config/digits-methods.yaml --directory methods
    python docs/methods_page.py [--results methods/results]

Trainings that diverged are rows without values. The same results give the same files, except for
the reported run time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent))

from digits_full import cost
from methods_results import CONFIG, Results, ranked
from update_readme import filled

from ctm_core.config import load_experiment
from ctm_core.report.figures.style import (
    COLORS,
    TEACHER,
    encoded,
    log_if_positive,
    plain,
    style,
)
from ctm_core.report.statistics import Summary, paired
from ctm_core.report.typeset import Markdown, markdown_table
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, write_bytes, write_text

ROOT = Path(__file__).resolve().parents[1]
CHOICE = ROOT / "studies/methods/choice.json"
PAGE, IMAGES = "docs/methods.md", "docs/images"
#: What every other method is compared with.
BASE = "ctm"
NFES = (1, 2, 4, 8)
DRAWN = (1, 2, 4)
WORDS = {"lower": "better", "higher": "worse", "undecided": "undecided"}
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


# -- tables --------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """One line per method, best at NFE 1 first."""
    lines = []
    for model in ranked(results):
        seeds = results.seeds(model)
        lost = len(results.diverged.get(model, ()))
        line = {"method": f"`{model}`"}
        for nfe in NFES:
            line[f"NFE {nfe}"] = shown(results.jump(model, nfe))
        line["own NFE 2"] = shown(own_times(results, model))
        line |= {"diverged": f"{lost} of {len(seeds)}", "GB": f"{results.memory(model):.2f}"}
        lines.append({key: Markdown(value) for key, value in line.items()})
    return markdown_table(pd.DataFrame(lines))


def shown(summary: Summary | None) -> str:
    """A value with its interval; empty where nothing was measured."""
    return "" if summary is None else str(summary)


def own_times(results: Results, model: str) -> Summary | None:
    """The distance of the method's own two-step sampler."""
    cells = [each for each in results.experiment.cells(model) if each.times]
    return results.value(model, cells[0]) if cells else None


def comparisons(results: Results) -> str:
    """Every method's difference from CTM at equal cost, paired over training seeds."""
    lines = []
    for model in ranked(results):
        if model == BASE:
            continue
        line = {"method": f"`{model}`"}
        for nfe in DRAWN:
            mine, base = (results.jump(name, nfe) for name in (model, BASE))
            if mine is not None and base is not None:
                difference = paired(mine, base)
                line[f"NFE {nfe}"] = f"{difference}: {WORDS[difference.outcome]}"
        lines.append({key: Markdown(value) for key, value in line.items()})
    return markdown_table(pd.DataFrame(lines))


def verdict(results: Results) -> str:
    """What the comparisons come to, one line per NFE."""
    lines = []
    for nfe in DRAWN:
        groups: dict[str, list[str]] = {outcome: [] for outcome in WORDS}
        for model in ranked(results):
            mine, base = (results.jump(name, nfe) for name in (model, BASE))
            if model != BASE and mine is not None and base is not None:
                groups[paired(mine, base).outcome].append(f"`{model}`")
        parts = [
            f"{WORDS[outcome]}: {', '.join(names)}" for outcome, names in groups.items() if names
        ]
        lines.append(f"* NFE {nfe}, against `{BASE}`: {'; '.join(parts)}.")
    return "\n".join(lines)


def chosen() -> str:
    """The search: each method's candidates, the chosen one in bold."""
    lines = []
    for method, record in read_json(CHOICE).items():
        line = {"method": f"`{method}`"}
        for place, candidate in enumerate(record["candidates"].values(), start=1):
            score = candidate["score"]
            text = f"{candidate['rate']:g}, {candidate['clock']}: "
            text += "diverged" if score is None else f"{score:.3g}"
            same = all(candidate[key] == record["chosen"][key] for key in ("rate", "clock"))
            line[f"candidate {place}"] = f"**{text}**" if same else text
        lines.append({key: Markdown(value) for key, value in line.items()})
    return markdown_table(pd.DataFrame(lines))


# -- figures -------------------------------------------------------------------------------------


def forest(results: Results) -> Figure:
    """Every method's distance at each NFE, with the intervals over trainings."""
    order = ranked(results)
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    grid = figure.subplots(1, len(DRAWN))
    for axes, nfe in zip(grid, DRAWN, strict=True):
        for place, model in enumerate(order):
            summary = results.jump(model, nfe)
            if summary is None:
                axes.annotate("diverged", (0.05, place), xycoords=("axes fraction", "data"))
                continue
            color = TEACHER if model == BASE else COLORS[0]
            if summary.interval is not None:
                low, high = summary.interval
                axes.plot([max(low, summary.mean / 10), high], [place, place], color=color)
            axes.plot(summary.mean, place, "o", color=color)
        teacher = results.value("teacher", results.experiment.cells("teacher")[0])
        if teacher is not None:
            axes.axvline(teacher.mean, color="#999999", linestyle=":", label="teacher, NFE 35")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(plain())
        axes.xaxis.set_minor_formatter(plain((2, 5)))
        axes.set_yticks(range(len(order)), order if axes is grid[0] else [""] * len(order))
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_title(f"NFE {nfe}", fontsize=9)
        axes.set_xlabel("FD, lower is better")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower right")
    return figure


def against_cost(results: Results) -> Figure:
    """Distance against training cost, one panel per method, CTM's curves behind each."""
    order, budget = ranked(results), results.spent(BASE, results.experiment.last_step(BASE))
    figure = Figure(figsize=(10.4, 6.4), layout="constrained")
    panels = figure.subplots(-(-len(order) // 5), 5, sharex=True, sharey=True).flat
    drawn: list[float] = []
    for axes, model in zip(panels, order, strict=False):  # the last row may be shorter
        for name, color in ((BASE, "#BBBBBB"), (model, None)):
            for nfe, marker in ((1, "o"), (2, "s")):
                curve = [
                    (results.spent(name, step) / budget, summary.mean)
                    for step in results.experiment.exported_steps(name)
                    if (summary := results.jump(name, nfe, step)) is not None
                ]
                if curve:
                    label = f"NFE {nfe}" if color is None else f"{BASE}, NFE {nfe}"
                    looks: dict[str, Any] = {"marker": marker, "label": label}
                    axes.plot(*zip(*curve, strict=True), color=color or COLORS[nfe - 1], **looks)
                    drawn += [value for _, value in curve]
        axes.set_title(model, fontsize=9)
        axes.set_xticks([0, 0.5, 1])
        log_if_positive(axes, drawn)
    for axes in panels[len(order) :]:
        axes.set_visible(False)
    figure.supxlabel("share of the budget", fontsize=9)
    figure.supylabel("FD, lower is better", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    return figure


# -- pages ---------------------------------------------------------------------------------------

COMPARED = f"""\
Better and worse mean that the 95% interval of the difference from `{BASE}`, paired over training
seeds, lies on one side of 0; their number is not corrected for. Undecided does not mean equal."""
EXPLANATION = """\
FD of 1,024 samples in a small classifier's features (not FID), with 95% intervals over training
seeds. Methods that only jump to the end are sampled with γ = 1, others with γ = 0, all on common
levels; "own NFE 2" has the middle time that the method's authors use. GB is the largest resident
memory of a training process, most of which is PyTorch itself."""
SEARCHED = """\
Learning rate and clock of each candidate, and the geometric mean of its FD at NFE 1 and 2. The
clock is the number that `studies/methods/methods.py` names for the method: grid points, the share
of a first stage, or one of the method's own settings. The chosen candidate is in bold."""


def content(results: Results) -> str:
    """The page's part that is measured."""
    name = results.experiment.experiment
    parts = [
        cost(results.folder),
        f"![FD of every method at NFE 1, 2 and 4](images/{name}.png)",
        "On the logarithmic axis, an interval that comes near 0 is cut at a tenth of its mean.",
        "## What holds",
        f"{verdict(results)}\n\n{COMPARED}",
        "## Values",
        f"{table(results)}\n\n{EXPLANATION}",
        "## Differences from CTM",
        comparisons(results),
        "## Against training cost",
        f"![FD against the share of the budget, a panel per method](images/{name}-cost.png)",
        "After 25, 50 and 100% of each training; a first stage comes before.",
        "## The search",
        f"{SEARCHED}\n\n{chosen()}",
    ]
    return "\n\n".join(parts)


def update(results: Results, root: Path = ROOT) -> None:
    """Update the page, its figures, and the README's figure and sentences."""
    name = results.experiment.experiment
    with style():
        for suffix, draw in (("", forest), ("-cost", against_cost)):
            picture = encoded(draw(results), "png", name + suffix)
            write_bytes(root / f"{IMAGES}/{name}{suffix}.png", picture)
    picture = f"![FD of few-step methods at equal training cost]({IMAGES}/{name}.png)"
    blocks = {PAGE: content(results), "README.md": f"{picture}\n\n{verdict(results)}"}
    for file, block in blocks.items():
        text = (root / file).read_text(encoding="utf-8")
        write_text(root / file, filled(text, block, BEGIN, END))


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "methods/results")
    try:
        update(Results(parser.parse_args().results, load_experiment(CONFIG)))
    except UserError as error:
        parser.exit(2, f"methods_page: {error}\n")


if __name__ == "__main__":
    main()
