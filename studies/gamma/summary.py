"""Write the study's results to docs/gamma-table.md and docs/images/gamma.png.

Run it after the study, from the project's root: ``python studies/gamma/summary.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from ctm_core.runtime.files import atomic_write, write_text

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"
METRIC = "fd_classifier_digits_1024"
TITLES = {
    "ctm": "ctm: pseudo-Huber, with DSM",
    "ctm_l2": "ctm_l2: l2, with DSM",
    "ctm_nodsm": "ctm_nodsm: pseudo-Huber, no DSM",
}
COLOURS = {0.0: "#0072b2", 0.5: "#e69f00", 1.0: "#009e73"}
MARKERS = {0.0: "o", 0.5: "s", 1.0: "^"}


def verdict(zero: pd.Series, one: pd.Series) -> str:
    """Which gamma is ahead, if their intervals do not overlap."""
    if zero[f"{METRIC}_ci95_high"] < one[f"{METRIC}_ci95_low"]:
        return "γ = 0"
    if one[f"{METRIC}_ci95_high"] < zero[f"{METRIC}_ci95_low"]:
        return "γ = 1"
    return "undecided"


def markdown(table: pd.DataFrame) -> str:
    """One row per student, step and NFE: FD at each gamma, and which gamma is ahead."""
    lines = [
        "| student | step | NFE | γ = 0 | γ = 0.5 | γ = 1 | ahead |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, step, nfe), cells in table.groupby(["model", "step", "nfe"]):
        by_gamma = {row.gamma: row for _, row in cells.iterrows()}
        shown = [
            f"{by_gamma[g][f'{METRIC}_mean']:.2f} "
            f"[{by_gamma[g][f'{METRIC}_ci95_low']:.2f}, {by_gamma[g][f'{METRIC}_ci95_high']:.2f}]"
            for g in (0.0, 0.5, 1.0)
        ]
        ahead = verdict(by_gamma[0.0], by_gamma[1.0])
        lines.append(f"| {model} | {step} | {nfe} | {' | '.join(shown)} | {ahead} |")
    return "\n".join(lines) + "\n"


def draw(table: pd.DataFrame, path: Path) -> None:
    """FD against training step, one column per NFE and one row per student."""
    sizes = sorted(table.nfe.unique())
    figure, axes = plt.subplots(
        len(TITLES), len(sizes), figsize=(9, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    for row, (model, title) in enumerate(TITLES.items()):
        for column, nfe in enumerate(sizes):
            axis = axes[row, column]
            for gamma, colour in COLOURS.items():
                chosen = (table.model == model) & (table.nfe == nfe) & (table.gamma == gamma)
                cells = table[chosen].sort_values("step")
                mean = cells[f"{METRIC}_mean"]
                low = (mean - cells[f"{METRIC}_ci95_low"]).clip(upper=mean * 0.9)
                high = cells[f"{METRIC}_ci95_high"] - mean
                axis.errorbar(
                    cells.step,
                    mean,
                    [low, high],
                    color=colour,
                    marker=MARKERS[gamma],
                    capsize=2,
                    label=f"γ = {gamma:g}",
                )
            axis.set(
                xscale="log",
                yscale="log",
                title=f"{title}\nNFE {nfe}" if column == 0 else f"\nNFE {nfe}",
            )
            axis.title.set_fontsize(9)
            axis.grid(color="#dddddd", which="major")
            steps = sorted(table.step.unique())
            axis.set_xticks(steps, [str(s) for s in steps])
            axis.minorticks_off()
    figure.supxlabel("training step")
    figure.supylabel("FD (classifier digits, 1,024 samples): lower is better")
    axes[0, -1].legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def main() -> None:
    """Read the study's table and write both files."""
    table = pd.read_csv(HERE / "results" / "table.csv")
    table = table[(table.sampler == "gamma") & (table.protocol == "desk-digits")]
    write_text(DOCS / "gamma-table.md", markdown(table))
    draw(table, DOCS / "images" / "gamma.png")


if __name__ == "__main__":
    main()
