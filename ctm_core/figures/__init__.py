"""Figures from evaluations and trainings, each as PDF and PNG.

==============================  ================================================================
``<experiment>-hero``           the result at a glance: samples and distances, teacher and student
``<experiment>-fd-nfe``         FD against NFE, a line for each gamma, the teacher in black
``<experiment>-fd-gamma``       FD against gamma, a line for each NFE (where a student has several)
``<experiment>-training``       loss terms against steps
``<experiment>-samples-<m>``    the same noises through every cell of model m
==============================  ================================================================

These show the protocol that scores most cells; any other protocol has its own ``fd-nfe`` and
``fd-gamma``, with ``-<protocol>`` at the end, so that no axis carries two protocols.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from ctm_core.config import Cell
from ctm_core.errors import UserError
from ctm_core.figures import curves, grids
from ctm_core.figures.style import save, style
from ctm_core.files import load_tensors, read_json
from ctm_core.headline import cell_name, headline_metric
from ctm_core.scores import (
    Row,
    aggregate,
    cell_order,
    last_steps,
    main_protocol,
    model_order,
    read_evaluations,
)

__all__ = ["Picture", "catalogue", "write_figures"]

Kind = Literal["hero", "fd-nfe", "fd-gamma", "training", "samples"]

#: Columns of a sample grid and of the hero picture.
COLUMNS = 20
HERO_STEPS = (1, 2, 4)


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
                _told(own, main, _hero_cells(own)),
                main,
            )
        )
        others = {row.protocol for row in own} - {main}
        for protocol in [main, *sorted(others)]:
            pictures += _charts(own, experiment, protocol, main)
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
            beside = model != "teacher" and _finest(own) is not None
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
    suffix = "" if protocol == main else f"-{protocol}"
    cells = sorted(
        {(row.model, row.cell) for row in rows},
        key=lambda key: (model_order(key[0]), cell_order(key[1])),
    )
    yield Picture(
        f"{experiment}-fd-nfe{suffix}",
        "fd-nfe",
        experiment,
        f"{experiment}: FD against NFE, {protocol}",
        "Fréchet distance against network evaluations, both axes logarithmic, with 95% intervals; "
        "dotted, the teacher's finest solve.",
        _told(rows, protocol, [key for key in cells if key[1].gamma in (None, 0.0)]),
        protocol,
    )
    if any(curves.several_gammas(rows, model) for model in {row.model for row in rows}):
        yield Picture(
            f"{experiment}-fd-gamma{suffix}",
            "fd-gamma",
            experiment,
            f"{experiment}: FD against γ, {protocol}",
            "Fréchet distance against γ for each number of network evaluations, with 95% "
            "intervals.",
            _told(rows, protocol, [key for key in cells if key[1].gamma is not None]),
            protocol,
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


# -- drawing ------------------------------------------------------------------------------------


def write_figures(
    evaluations: Sequence[Path], trainings: Sequence[Path], output: Path
) -> list[Path]:
    """Draw every picture of :func:`catalogue` whose data are given.

    Parameters
    ----------
    evaluations
        ``evaluation.json`` files; ``previews.safetensors`` stands beside each.
    trainings
        ``training.jsonl`` files; ``training.json`` stands beside each. An experiment without any
        gets no training curves.

    Returns
    -------
    The files written.

    Raises
    ------
    UserError
        As :func:`ctm_core.scores.read_evaluations`, or if a file beside one is missing or damaged.
    """
    rows = aggregate(read_evaluations(evaluations))
    samples = _Samples(evaluations)
    losses = _losses(trainings)
    written: list[Path] = []
    with style():
        for picture in catalogue(rows):
            figure = _draw(picture, rows, samples, losses)
            if figure is not None:
                written += save(figure, output, picture.name, picture.title)
    return written


def _draw(
    picture: Picture,
    rows: Sequence[Row],
    samples: _Samples,
    losses: Mapping[str, Mapping[tuple[str, int], curves.Curve]],
) -> Figure | None:
    if picture.kind == "training":
        found = losses.get(picture.experiment)
        return curves.training(found, picture.title) if found else None
    own = last_steps(row for row in rows if row.experiment == picture.experiment)
    scored = [row for row in own if row.protocol == picture.protocol]
    metric = headline_metric(scored)
    if picture.kind in ("hero", "samples"):
        return _tiled(picture, own, metric, samples)
    if metric is None:
        return None
    draw = curves.fd_against_nfe if picture.kind == "fd-nfe" else curves.fd_against_gamma
    return draw(scored, metric, picture.title)


def _tiled(picture: Picture, rows: Sequence[Row], metric: str | None, samples: _Samples) -> Figure:
    by_cell = {(row.model, row.cell): row for row in rows}
    scores = {(r.model, r.cell): r.metrics for r in rows if r.protocol == picture.protocol}
    if picture.kind == "hero":
        cells = _hero_cells(rows)
    else:
        own = sorted({r.cell for r in rows if r.model == picture.model}, key=cell_order)
        cells = [(picture.model, cell) for cell in own]
        finest = _finest(rows)
        if finest is not None and picture.model != "teacher":
            cells = [("teacher", finest), *cells]
    strips: list[grids.Strip] = []
    columns: list[int] = []
    for model, cell in cells:
        row = by_cell[model, cell]
        images, labels = samples.of(row)
        chosen = grids.by_class(labels, min(COLUMNS, len(images)))
        columns = [labels[i] for i in chosen] if labels else []
        score = scores.get((model, cell), {}).get(metric or "")
        strips.append(grids.Strip(model, cell_name(cell), images[chosen], score))
    draw = grids.hero if picture.kind == "hero" else grids.sample_grid
    title = picture.title if picture.kind == "samples" else _hero_title(picture.experiment, rows)
    return draw(strips, columns, title, metric or "")


def _hero_title(experiment: str, rows: Sequence[Row]) -> str:
    students = [row.model for row in rows if row.model != "teacher"]
    name = "ctm" if "ctm" in students else (students or ["teacher"])[0]
    if name == "teacher":
        return f"{experiment}: samples of the teacher"
    return f"{experiment}: the same noises through the teacher's solver and through {name}"


def _hero_cells(rows: Sequence[Row]) -> list[tuple[str, Cell]]:
    """The teacher's finest and coarsest solve, then the student in 1, 2 and 4 exact steps."""
    solves = _solves(rows)
    cells = [("teacher", cell) for cell in dict.fromkeys([*solves[-1:], *solves[:1]])]
    students = list(dict.fromkeys(row.model for row in rows if row.model != "teacher"))
    if not students:
        return cells
    student = "ctm" if "ctm" in students else students[0]
    own = sorted({row.cell for row in rows if row.model == student}, key=cell_order)
    for nfe in HERO_STEPS:
        cells += [(student, cell) for cell in own if cell.nfe == nfe][:1]
    return cells


def _solves(rows: Iterable[Row]) -> list[Cell]:
    """The teacher's cells by Heun's method, the coarsest first."""
    solves = {row.cell for row in rows if row.model == "teacher" and row.cell.sampler == "heun"}
    return sorted(solves, key=cell_order)


def _finest(rows: Iterable[Row]) -> Cell | None:
    return next(iter(_solves(rows)[::-1]), None)


# -- inputs -------------------------------------------------------------------------------------


class _Samples:
    """Preview images of the evaluated weights, read when asked for."""

    def __init__(self, evaluations: Iterable[Path]) -> None:
        self._files: dict[tuple[str, str, int], Path] = {}
        self._read: dict[Path, tuple[dict[str, grids.Images], list[int]]] = {}
        found = [(read_json(path), path) for path in evaluations]
        for record, path in sorted(found, key=lambda pair: -int(pair[0]["train_seed"])):
            # The lowest training seed comes last and stays: one network is shown, not a mixture.
            key = (record["experiment"], record["model"], int(record["step"]))
            self._files[key] = path.with_name("previews.safetensors")

    def of(self, row: Row) -> tuple[grids.Images, list[int]]:
        """Images (N, C, H, W) and classes of a row's cell."""
        path = self._files[row.experiment, row.model, row.step]
        if path not in self._read:
            tensors, metadata = load_tensors(path)
            images = {name: np.asarray(tensor.numpy()) for name, tensor in tensors.items()}
            self._read[path] = images, json.loads(metadata.get("labels", "[]"))
        tensors_by_cell, labels = self._read[path]
        if row.cell.label not in tensors_by_cell:
            raise UserError(f"{path} has no samples of {row.cell.label}; evaluate again")
        return tensors_by_cell[row.cell.label], labels


def _losses(trainings: Iterable[Path]) -> dict[str, dict[tuple[str, int], curves.Curve]]:
    """Loss terms by experiment and (model, training seed), the teacher first."""
    found: dict[str, dict[tuple[str, int], curves.Curve]] = {}
    for path in trainings:
        summary = read_json(path.with_name("training.json"))
        key = (summary["model"], int(summary["seed"]))
        found.setdefault(summary["experiment"], {})[key] = _curve(path)
    return {
        experiment: dict(sorted(own.items(), key=lambda item: (model_order(item[0][0]), item[0])))
        for experiment, own in found.items()
    }


def _curve(path: Path) -> curves.Curve:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        terms = {name for line in lines for name in line if name not in curves.NOT_DRAWN}
        ordered = sorted(terms, key=lambda name: ([*curves.TERMS, name].index(name), name))
        curve = {}
        for name in ordered:
            pairs = [(line["step"], float(line[name])) for line in lines if name in line]
            steps, values = zip(*pairs, strict=True)
            curve[name] = np.asarray(steps, np.int64), np.asarray(values, np.float64)
        return curve
    except FileNotFoundError:
        raise UserError(f"{path} is missing; train the model first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no training log ({error}); train again") from None
