"""One noise's way through gamma-sampling: every state before and after each jump."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ctm_core.report.figures.figure_inputs import Way
from ctm_core.report.figures.grids import tiles

__all__ = ["paths"]

INK = "#222222"
GREY = "#666666"
TILE = 0.55
#: Noises of which the way is drawn; more are kept in the file.
SHOWN = 1


def paths(ways: Sequence[Way], title: str) -> Figure | None:
    """For each gamma and noise, above what each jump starts from, below where it lands.

    None without any way.
    """
    if not ways:
        return None
    jumps = len(ways[0].levels) // 2
    noises = min(SHOWN, ways[0].states.shape[1])
    left, top, pitch, block = 0.85, 0.6, TILE + 0.28, 2 * (TILE + 0.16)
    width = max(left + jumps * pitch + 0.1, 4.2)
    height = top + len(ways) * noises * (block + 0.12) + 0.1
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.12 / height, title, fontsize=11, va="top", weight="bold")
    y = height - top
    for way in ways:
        for noise in range(noises):
            y -= block + 0.12
            if noise == 0:
                _text(figure, 0.1 / width, (y + block) / height, f"γ = {way.gamma:g}", bold=True)
            for line, what in enumerate(("lands at", "starts at")):
                middle = (y + line * (TILE + 0.16) + TILE / 2) / height
                _text(figure, 0.1 / width, middle, what)
            for k in range(jumps):
                for line, state in enumerate((2 * k + 1, 2 * k)):
                    x, low = left + k * pitch, y + line * (TILE + 0.16)
                    box = (x / width, low / height, TILE / width, TILE / height)
                    axes = figure.add_axes(box)
                    image = tiles(way.states[state, noise][None], round(TILE * 200))
                    axes.imshow(image, interpolation="nearest", aspect="auto")
                    axes.set_axis_off()
                    level = f"{way.levels[state]:.3g}"
                    center = (x + TILE / 2) / width
                    figure.text(
                        center, (low + TILE + 0.02) / height, level, ha="center", fontsize=6.5,
                        color=GREY,
                    )  # fmt: skip
    return figure


def _text(figure: Figure, x: float, y: float, text: str, *, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    figure.text(x, y, text, color=INK if bold else GREY, weight=weight, va="center", fontsize=7.5)
