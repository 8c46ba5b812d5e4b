"""Which figures a table calls for: their names, captions, and what they tell in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ctm_core.config import Cell
from ctm_core.config.sampler_traits import ODE_SAMPLER, samplers
from ctm_core.evaluation.metrics.names import display
from ctm_core.evaluation.previews import path_cells
from ctm_core.report.figures import curves, over_training
from ctm_core.report.headline import cell_name, headline_metric
from ctm_core.report.scores import Row, cell_order, last_steps, main_protocol, model_order

__all__ = ["COLUMNS", "Picture", "catalogue", "finest", "hero_cells"]

Kind = Literal["hero", "fd-nfe", "fd-gamma", "progress", "jumps", "path", "training", "samples"]

#: Columns of a sample grid and of the hero picture.
COLUMNS = 20
HERO_STEPS = (1, 2, 4)


class _Comparison(NamedTuple):
    """Models that differ in one thing, whose curves over training the paper draws together."""

    name: str
    title: str
    models: tuple[str, ...]
    paper: str


COMPARISONS = (
    _Comparison(
        "fig10-matching",
        "local, soft and global matching",
        ("ctm_local", "ctm", "ctm_global"),
        "the paper's figure 10",
    ),
    _Comparison(
        "fig11-dsm",
        "with and without the denoising loss",
        ("ctm", "ctm_nodsm"),
        "the paper's figure 11",
    ),
    _Comparison(
        "fig12-losses",
        "consistency model, denoising and adversarial loss",
        ("cd", "cd_gan", "ctm", "ctm_gan"),
        "the paper's figure 12",
    ),
)


@dataclass(frozen=True)
class Picture:
    """A figure that a table calls for: its file's name, and what to say about it.

    ``numbers`` tells those who cannot see the picture what it shows.
    """

    name: str
    kind: Kind
    experiment: str
    title: str
    caption: str
    numbers: str = ""
    protocol: str = ""
    model: str = ""
    models: tuple[str, ...] = ()


def catalogue(rows: Sequence[Row]) -> list[Picture]:
    """Every picture of a table, experiment by experiment."""
    pictures = []
    for experiment in dict.fromkeys(row.experiment for row in rows):
        own = last_steps(row for row in rows if row.experiment == experiment)
        main = main_protocol(own, experiment)
        pictures.append(
            Picture(
                f"{experiment}-hero",
                "hero",
                experiment,
                f"{experiment}: teacher and student",
                "Each column starts from one noise and class; beside each row stands its Fréchet "
                "distance with its 95% interval.",
                _told(own, main, hero_cells(own)),
                main,
            )
        )
        others = {row.protocol for row in own} - {main}
        for protocol in [main, *sorted(others)]:
            pictures += _charts(own, experiment, protocol, main)
        every = [r for r in rows if r.experiment == experiment and r.protocol == main]
        pictures += _progress(every, experiment, main)
        pictures += _jumps(own, experiment)
        pictures.append(
            Picture(
                f"{experiment}-training",
                "training",
                experiment,
                f"{experiment}: training curves",
                "Loss terms against optimiser steps; every logged value faint, their running mean "
                "strong.",
            )
        )
        for model in sorted({row.model for row in own}, key=model_order):
            beside = model != "teacher" and finest(own) is not None
            pictures += _path(own, experiment, model)
            pictures.append(
                Picture(
                    f"{experiment}-samples-{model}",
                    "samples",
                    experiment,
                    f"{experiment}: samples of {model}",
                    "Each column starts from one noise and class; rows are the cells of "
                    + ("the teacher" if model == "teacher" else model)
                    + (" below the teacher's finest solve." if beside else "."),
                    _told(own, main, [(row.model, row.cell) for row in own if row.model == model]),
                    main,
                    model,
                )
            )
    return pictures


def _charts(own: Sequence[Row], experiment: str, protocol: str, main: str) -> Iterable[Picture]:
    rows = [row for row in own if row.protocol == protocol]
    metric = headline_metric(rows)
    if metric is None:
        return
    shown = display(metric)
    suffix = "" if protocol == main else f"-{protocol}"
    cells = sorted(
        {(row.model, row.cell) for row in rows},
        key=lambda key: (model_order(key[0]), cell_order(key[1])),
    )
    yield Picture(
        f"{experiment}-fd-nfe{suffix}",
        "fd-nfe",
        experiment,
        f"{experiment}: {shown} against NFE, {protocol}",
        f"{shown} against network evaluations, both axes logarithmic, with 95% intervals; "
        "dotted, the teacher's finest solve.",
        _told(rows, protocol, [key for key in cells if key[1].gamma in (None, 0.0)]),
        protocol,
    )
    if any(curves.several_gammas(rows, model) for model in {row.model for row in rows}):
        yield Picture(
            f"{experiment}-fd-gamma{suffix}",
            "fd-gamma",
            experiment,
            f"{experiment}: {shown} against γ, {protocol}",
            f"{shown} against γ for each number of network evaluations, with 95% intervals.",
            _told(rows, protocol, [key for key in cells if key[1].gamma is not None]),
            protocol,
        )


def _progress(every: Sequence[Row], experiment: str, main: str) -> Iterator[Picture]:
    """Comparisons over training, where two of their models or more have snapshots."""
    metric = headline_metric(every)
    for comparison in COMPARISONS:
        models = over_training.comparable(every, metric or "", comparison.models)
        if models:
            yield Picture(
                f"{experiment}-{comparison.name}",
                "progress",
                experiment,
                f"{experiment}: {comparison.title}",
                f"Fréchet distance of {', '.join(models)} against their own optimiser steps, with "
                f"95% intervals, as in {comparison.paper}; a forked run starts where it left the "
                "other.",
                protocol=main,
                models=tuple(models),
            )


def _jumps(own: Sequence[Row], experiment: str) -> Iterator[Picture]:
    if any(row.model != "teacher" for row in own):
        yield Picture(
            f"{experiment}-jumps",
            "jumps",
            experiment,
            f"{experiment}: error of single jumps",
            "Root mean square distance per pixel between a jump to the smallest noise level and "
            "the teacher's fine solution from the same noises, against the level it starts from. "
            "It needs no feature network; images span -1 to 1.",
        )


def _path(own: Sequence[Row], experiment: str, model: str) -> Iterator[Picture]:
    if model != "teacher" and path_cells([row.cell for row in own if row.model == model]):
        yield Picture(
            f"{experiment}-path-{model}",
            "path",
            experiment,
            f"{experiment}: one noise's way through {model}",
            "For each γ, above what each jump starts from, below where it lands, with their noise "
            "levels; a state of level t is drawn divided by √(1 + t²).",
            model=model,
        )


def _told(rows: Iterable[Row], protocol: str, cells: Sequence[tuple[str, Cell]]) -> str:
    """The numbers of some cells in words."""
    scored = {(row.model, row.cell): row for row in rows if row.protocol == protocol}
    metric = headline_metric(scored.values()) or ""
    parts = [
        f"{model} at {cell_name(cell)}: {scored[model, cell].metrics[metric]}"
        for model, cell in dict.fromkeys(cells)
        if (model, cell) in scored and metric in scored[model, cell].metrics
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
