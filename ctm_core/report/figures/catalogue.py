"""Which figures a table calls for: their names, captions, and their numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import ODE_SAMPLER, samplers
from ctm_core.evaluation.metrics.names import display
from ctm_core.evaluation.previews import path_cells
from ctm_core.report.figures import curves
from ctm_core.report.headline import cell_name, headline_metric
from ctm_core.report.scores import Row, cell_order, model_order
from ctm_core.report.selection import last_steps, main_protocol
from ctm_core.report.statistics import MARKED
from ctm_core.runtime.untrusted import file_name

Kind = Literal[
    "hero", "fd-nfe", "fd-gamma", "progress", "jumps", "path", "training", "samples", "nearest"
]

#: Columns of a sample grid and of the hero picture.
COLUMNS = 20
HERO_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Picture:
    """A figure that a table calls for: its name, and what to say about it."""

    name: str
    kind: Kind
    title: str
    caption: str
    numbers: str = ""
    protocol: str = ""
    model: str = ""
    models: tuple[str, ...] = ()
    experiment: str = ""

    @property
    def file(self) -> str:
        """The name of its files, without a suffix."""
        return file_name(self.name)

    @property
    def alternative(self) -> str:
        """The picture in words, for those who cannot see it."""
        return f"{self.title}. {self.caption} {self.numbers}".strip()


class Comparison(NamedTuple):
    """Models that differ in one thing, whose curves over training the paper draws together."""

    figure: int  #: in the paper
    name: str
    title: str
    models: tuple[str, ...]


COMPARISONS = (
    Comparison(
        10, "matching", "local, soft and global matching", ("ctm_local", "ctm", "ctm_global")
    ),
    Comparison(11, "dsm", "with and without the denoising loss", ("ctm", "ctm_nodsm")),
    Comparison(
        12,
        "losses",
        "consistency model, denoising and adversarial loss",
        ("cd", "cd_gan", "ctm", "ctm_gan"),
    ),
)


def catalogue(rows: Sequence[Row]) -> list[Picture]:
    """Every picture of a table, experiment by experiment."""
    return [
        replace(one, name=f"{name}-{one.name}", title=f"{name}: {one.title}", experiment=name)
        for name in dict.fromkeys(row.experiment for row in rows)
        for one in _pictures([row for row in rows if row.experiment == name])
    ]


def _pictures(rows: Sequence[Row]) -> Iterator[Picture]:
    own = last_steps(rows)
    main = main_protocol(own, rows[0].experiment)
    yield Picture(
        "hero",
        "hero",
        "teacher and student",
        "Each column starts from one noise and class; beside each row is its Fréchet distance "
        "with its 95% interval." + _note(own),
        _numbers(own, main, hero_cells(own)),
        main,
    )
    for protocol in [main, *sorted({row.protocol for row in own} - {main})]:
        suffix = "" if protocol == main else f"-{protocol}"
        yield from _charts([r for r in own if r.protocol == protocol], protocol, suffix)
    yield from _progress([row for row in rows if row.protocol == main], main)
    models = sorted({row.model for row in own}, key=model_order)
    if models != ["teacher"]:
        yield Picture(
            "jumps",
            "jumps",
            "error of single jumps",
            "Root mean square distance per pixel between a jump to the smallest noise level and "
            "the teacher's fine solution from the same noises, against the level it starts from. "
            "It needs no feature network; images span -1 to 1.",
        )
    yield Picture(
        "training",
        "training",
        "training curves",
        "Loss terms against optimiser steps; every logged value faint, their running mean strong.",
    )
    for model in models:
        cells = [row.cell for row in own if row.model == model]
        if model != "teacher" and path_cells(cells):
            yield Picture(
                f"path-{model}",
                "path",
                f"denoising path of one sample through {model}",
                "For each γ, above what each jump starts from, below where it lands, with their "
                "noise levels; a state of level t is drawn divided by √(1 + t²).",
                model=model,
            )
        beside = model != "teacher" and finest(own) is not None
        yield Picture(
            f"samples-{model}",
            "samples",
            f"samples of {model}",
            "Each column starts from one noise and class; rows are the cells of "
            + ("the teacher" if model == "teacher" else model)
            + (" below the teacher's finest solve." if beside else "."),
            _numbers(own, main, [(model, cell) for cell in cells]),
            main,
            model,
        )
        yield Picture(
            f"nearest-{model}",
            "nearest",
            f"samples of {model} and the nearest training images",
            f"Samples with the {'most' if model == 'teacher' else 'fewest'} network evaluations; "
            "below each, the training image nearest to it by root mean square distance over "
            "pixels, and that distance in levels of 0 to 255. Shifted or mirrored copies are not "
            "found.",
            model=model,
        )


def _charts(rows: Sequence[Row], protocol: str, suffix: str) -> Iterator[Picture]:
    """FD against NFE and γ under one protocol."""
    metric = headline_metric(rows)
    if metric is None:
        return
    cells = sorted(
        {(row.model, row.cell) for row in rows},
        key=lambda key: (model_order(key[0]), cell_order(key[1])),
    )
    shown = display(metric)
    yield Picture(
        f"fd-nfe{suffix}",
        "fd-nfe",
        f"{shown} against NFE, {protocol}",
        f"{shown} against network evaluations, both axes logarithmic, with 95% intervals; "
        "dotted, the teacher's finest solve." + _note(rows),
        _numbers(rows, protocol, [key for key in cells if key[1].gamma in (None, 0.0)]),
        protocol,
    )
    if not curves.with_several_gammas(curves.points(rows, metric)).empty:
        yield Picture(
            f"fd-gamma{suffix}",
            "fd-gamma",
            f"{shown} against γ, {protocol}",
            f"{shown} against γ for each number of network evaluations, with 95% intervals."
            + _note(rows),
            _numbers(
                rows,
                protocol,
                [key for key in cells if key[1].gamma is not None and not key[1].times],
            ),
            protocol,
        )


def _progress(rows: Sequence[Row], protocol: str) -> Iterator[Picture]:
    """Comparisons over training, where two of their models or more have snapshots."""
    metric = headline_metric(rows) or ""
    for comparison in COMPARISONS:
        models = curves.comparable(rows, metric, comparison.models)
        if models:
            yield Picture(
                f"fig{comparison.figure}-{comparison.name}",
                "progress",
                comparison.title,
                f"Fréchet distance of {', '.join(models)} against their own optimiser steps, with "
                f"95% intervals, as in the paper's figure {comparison.figure}; a forked run "
                "starts where it left the other." + _note(rows),
                protocol=protocol,
                models=tuple(models),
            )


def _note(rows: Iterable[Row]) -> str:
    """What the mark at intervals over sampling alone means, where there is one."""
    marked = any(summary.mark for row in rows for summary in row.metrics.values())
    return f" {MARKED}" if marked else ""


def _numbers(rows: Iterable[Row], protocol: str, cells: Sequence[tuple[str, Cell]]) -> str:
    scored = {(row.model, row.cell): row.metrics for row in rows if row.protocol == protocol}
    metric = headline_metric(row for row in rows if row.protocol == protocol) or ""
    parts = [
        f"{model} at {cell_name(cell)}: {scored[model, cell][metric]}"
        for model, cell in dict.fromkeys(cells)
        if metric in scored.get((model, cell), ())
    ]
    return "; ".join(parts) + "." if parts else ""


def hero_cells(rows: Sequence[Row]) -> list[tuple[str, Cell]]:
    """The teacher's finest and coarsest solve, then the student in 1, 2 and 4 exact steps."""
    solves = _solves(rows)
    cells = [("teacher", cell) for cell in dict.fromkeys([*solves[-1:], *solves[:1]])]
    students = list(dict.fromkeys(row.model for row in rows if row.model != "teacher"))
    if not students:
        return cells
    student = "ctm" if "ctm" in students else students[0]
    own = sorted({row.cell for row in rows if row.model == student}, key=cell_order)
    jumping = samplers(jumps=True)
    for nfe in HERO_STEPS:
        jumps = [cell for cell in own if cell.nfe == nfe and cell.sampler in jumping]
        cells += [(student, cell) for cell in jumps[:1]]
    return cells


def _solves(rows: Iterable[Row]) -> list[Cell]:
    """The teacher's cells by Heun's method, the coarsest first."""
    cells = {row.cell for row in rows if row.model == "teacher"}
    return sorted((cell for cell in cells if cell.sampler == ODE_SAMPLER), key=cell_order)


def finest(rows: Iterable[Row]) -> Cell | None:
    """The teacher's cell of most evaluations by Heun's method, if there is one."""
    return next(iter(_solves(rows)[::-1]), None)
