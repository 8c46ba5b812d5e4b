"""How far each cell of a table is from its reference, in standard errors."""

from __future__ import annotations

from matplotlib.figure import Figure

from ctm_core.report.agreement import Agreement
from ctm_core.report.figures.style import COLORS

#: Distances beyond this are drawn at the edge.
FARTHEST = 12.0
LOOKS = {"agrees": (COLORS[2], "o"), "differs": (COLORS[3], "D")}


def z_scores(made: Agreement, title: str) -> Figure | None:
    """A row per cell of the table, then the points on the way that differ; None without any."""
    lines = [line for line in made.lines if not line.way or line.verdict == "differs"]
    scored = [(line, line.score) for line in lines if line.score is not None]
    if not scored:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.19 * len(scored)), layout="constrained")
    axes = figure.subplots()
    for row, (line, score) in enumerate(scored):
        color, marker = LOOKS[line.verdict]
        z = max(-FARTHEST, min(FARTHEST, score.z))
        axes.plot([0, z], [row, row], color=color, linewidth=1.0)
        axes.plot([z], [row], marker, color=color, markersize=4)
    axes.axvline(0, color="#777777", linewidth=0.8)
    names = [f"{line.quantity.model} {line.quantity.step}: {line.quantity.name}" for line in lines]
    kept = [name for name, line in zip(names, lines, strict=True) if line.score is not None]
    axes.set_yticks(range(len(kept)), kept, fontsize=6.5)
    axes.set_ylim(len(kept) - 0.5, -0.5)
    axes.set_xlim(-FARTHEST - 0.5, FARTHEST + 0.5)
    axes.set_xlabel("this run less the reference, in standard errors (edge: beyond)")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
    return figure
