"""One look for all figures, and how they reach the disk: PDF and PNG of equal bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from ctm_core.runtime.files import write_bytes

#: Okabe and Ito's palette without its yellow (too pale on white) and with black for the teacher.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TEACHER = "#000000"
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":")
PIXELS_PER_INCH = 200

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 0.8,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "pdf.fonttype": 42,
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults with the project's settings, whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def save(figure: Figure, folder: Path, name: str, title: str) -> list[Path]:
    """Write ``name.pdf`` and ``name.png``."""
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]
    for path in paths:
        write_bytes(path, encoded(figure, path.suffix[1:], title))
    return paths


def encoded(figure: Figure, kind: str, title: str) -> bytes:
    """A figure as PDF or PNG, neither with a date or a version in it."""
    metadata: dict[str, dict[str, str | None]] = {
        "pdf": {"Title": title, "CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Title": title, "Software": None},
    }
    content = BytesIO()
    dpi = PIXELS_PER_INCH if kind == "png" else "figure"
    figure.savefig(content, format=kind, dpi=dpi, metadata=metadata[kind])
    return content.getvalue()


def by_model(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dash of each model: black for the teacher, the palette for students in order.

    Students of the second round are dashed, of the third dotted.
    """
    students = (model for model in models if model != "teacher")
    rounds = itertools.cycle(itertools.product(DASHES, COLORS))  # without an end
    return {"teacher": {"color": TEACHER, "linestyle": DASHES[0]}} | {
        model: {"color": color, "linestyle": dash}
        for model, (dash, color) in zip(students, rounds, strict=False)
    }


def color_and_marker(index: int) -> tuple[str, str]:
    """Looks of a line by its place among those of a panel."""
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend right of all panels, naming each label once."""
    named: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(list(named.values()), list(named), loc="outside right center")


def nfe_axis(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic axis whose ticks are the NFE that occur, of two close ones the lower."""
    ticks: list[int] = []
    for count in sorted(counts):
        if not ticks or count > 1.2 * ticks[-1]:
            ticks.append(count)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations (NFE)")


def log_if_positive(axes: Axes, values: Collection[float]) -> None:
    """A logarithmic vertical axis with plain numbers, if every value allows one."""
    if not len(values) or min(values) <= 0:
        return
    axes.set_yscale("log")
    if max(values) < 1e4 and min(values) > 1e-3:
        axes.yaxis.set_major_formatter(plain())
        # Within three decades the labels of powers of ten alone would leave the axis bare.
        spread = max(values) / min(values)
        digits = (1, 2, 3, 5, 7) if spread < 10 else (1, 2, 5) if spread < 1000 else ()
        axes.yaxis.set_minor_formatter(plain(digits))


def plain(digits: Collection[int] = range(10)) -> FuncFormatter:
    """Plain numbers at ticks of the given leading digits."""
    return FuncFormatter(lambda x, _: f"{x:g}" if int(f"{abs(x):.0e}"[0]) in digits else "")
