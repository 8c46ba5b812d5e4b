"""Denoising paths by gamma-sampling: every state before and after each jump."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ctm_core.report.figures.figure_inputs import DenoisingPath
from ctm_core.report.figures.grids import GREY, Sheet

TILE = 0.55


def paths(kept: Sequence[DenoisingPath], title: str) -> Figure | None:
    """For each gamma, above what each jump starts from, below where it lands; None without any.

    Of the samples in a file the first is drawn.
    """
    if not kept:
        return None
    jumps = len(kept[0].levels) // 2
    left, top, pitch, line = 0.85, 0.6, TILE + 0.28, TILE + 0.16
    block = 2 * line + 0.12
    sheet = Sheet(max(left + jumps * pitch + 0.1, 4.2), top + len(kept) * block + 0.1, title)
    for index, path in enumerate(kept):
        y = top + index * block + 0.12
        sheet.text(0.1, y, f"γ = {path.gamma:g}", fontsize=7.5, weight="bold")
        for row, what in enumerate(("starts at", "lands at")):
            upper = y + row * line + 0.16
            sheet.text(0.1, upper + TILE / 2, what, fontsize=7.5, color=GREY)
            for k in range(jumps):
                x, state = left + k * pitch, 2 * k + row
                sheet.images(path.states[state, :1], x, upper, TILE)
                looks = {"ha": "center", "va": "baseline", "fontsize": 6.5, "color": GREY}
                sheet.text(x + TILE / 2, upper - 0.02, f"{path.levels[state]:.3g}", **looks)
    return sheet.figure
