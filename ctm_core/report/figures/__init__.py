"""Figures from evaluations and trainings, each as PDF and PNG.

==================================  ============================================================
``<experiment>-hero``               the result at a glance: samples and distances
``<experiment>-fd-nfe``             FD against NFE, a line for each gamma (the paper's 7(a))
``<experiment>-fd-gamma``           FD against gamma, a line for each NFE (7(b))
``<experiment>-fig10-matching``     FD against training steps: local, soft, global matching (10)
``<experiment>-fig11-dsm``          the same with and without the denoising loss (11)
``<experiment>-fig12-losses``       the same with each loss added (12)
``<experiment>-jumps``              error of a single jump against the noise level it starts from
``<experiment>-path-<m>``           the denoising path of one sample by model m
``<experiment>-training``           loss terms against steps
``<experiment>-samples-<m>``        the same noises through every cell of model m
``<experiment>-nearest-<m>``        samples of model m, each above the nearest training image
==================================  ============================================================

Curves against training steps need snapshots (``training.snapshots``) of two or more of the models
that they compare. Distances are those of the protocol that scores most cells; any other protocol
has its own ``fd-nfe`` and ``fd-gamma``, with ``-<protocol>`` at the end, so that no axis carries
two protocols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ctm_core.data.dataset import Dataset
from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.report.figures import curves, grids
from ctm_core.report.figures.catalogue import COLUMNS, Picture, catalogue, finest, hero_cells
from ctm_core.report.figures.figure_inputs import (
    Previews,
    Training,
    read_training_images,
    read_trainings,
)
from ctm_core.report.figures.neighbours import beside_nearest
from ctm_core.report.figures.style import save, style
from ctm_core.report.headline import cell_name, headline_metric
from ctm_core.report.scores import Row, aggregate, cell_order, read_evaluations
from ctm_core.report.selection import last_steps

__all__ = ["Picture", "catalogue", "write_figures"]


def write_figures(
    evaluations: Sequence[Path],
    trainings: Sequence[Path],
    output: Path,
    *,
    data: Sequence[Path] = (),
) -> list[Path]:
    """Draw every picture of :func:`catalogue` whose data are given.

    Parameters
    ----------
    evaluations
        ``evaluation.json`` files; ``previews.safetensors`` is beside each.
    trainings
        ``training.jsonl`` files; ``training.json`` is beside each. An experiment without any
        gets no training curves.
    data
        Folders of prepared training images. Without those of its data set, an experiment gets no
        pictures of nearest training images.

    Returns
    -------
    The files written.

    """
    records = read_evaluations(evaluations)
    rows, previews, trained = aggregate(records), Previews(records), read_trainings(trainings)
    learned = read_training_images(data, records)
    written: list[Path] = []
    with style():
        for picture in catalogue(rows):
            figure = _draw(
                picture,
                [row for row in rows if row.experiment == picture.experiment],
                [record for record in records if record.experiment == picture.experiment],
                previews,
                trained.get(picture.experiment, {}),
                learned,
            )
            if figure is not None:
                written += save(figure, output, picture.file, picture.title)
    return written


def _draw(
    picture: Picture,
    every: Sequence[Row],
    evaluations: Sequence[Evaluation],
    previews: Previews,
    trained: Mapping[tuple[str, int], Training],
    learned: Mapping[str, Dataset],
) -> Figure | None:
    last = last_steps(every)
    scored = [row for row in last if row.protocol == picture.protocol]
    metric = headline_metric(scored)
    if picture.kind == "training":
        losses = {key: training.curve for key, training in trained.items()}
        return curves.training(losses, picture.title) if losses else None
    if picture.kind == "jumps":
        return curves.jump_errors(evaluations, picture.title)
    if picture.kind == "path":
        row = next(row for row in last if row.model == picture.model)
        return grids.denoising_paths(previews.paths(row), picture.title)
    if picture.kind == "nearest":
        own = [row for row in last if row.model == picture.model]
        return beside_nearest(own, previews, learned.get(own[0].dataset), picture.title)
    if picture.kind in ("hero", "samples"):
        return _tiled(picture, last, metric, previews, learned)
    if metric is None:
        return None
    if picture.kind == "progress":
        rows = [row for row in every if row.protocol == picture.protocol]
        starts = {model: trained[model, seed].starts_at for model, seed in trained}
        return curves.fd_against_step(rows, metric, picture.models, picture.title, starts)
    draw = curves.fd_against_nfe if picture.kind == "fd-nfe" else curves.fd_against_gamma
    return draw(scored, metric, picture.title)


def _tiled(
    picture: Picture,
    rows: Sequence[Row],
    metric: str | None,
    previews: Previews,
    learned: Mapping[str, Dataset],
) -> Figure:
    by_cell = {(row.model, row.cell): row for row in rows}
    scores = {(r.model, r.cell): r.metrics for r in rows if r.protocol == picture.protocol}
    if picture.kind == "hero":
        cells = hero_cells(rows)
    else:
        shown = previews.cells(next(row for row in rows if row.model == picture.model))
        own = {r.cell for r in rows if r.model == picture.model and r.cell.label in shown}
        cells = [(picture.model, cell) for cell in sorted(own, key=cell_order)]
        solve = finest(rows)
        if solve is not None and picture.model != "teacher":
            cells = [("teacher", solve), *cells]
    strips: list[grids.Strip] = []
    columns: list[str] = []
    known = learned.get(rows[0].dataset)
    classes = known.class_names if known is not None else []
    for model, cell in cells:
        images, labels = previews.of(by_cell[model, cell])
        chosen = grids.by_class(labels, min(COLUMNS, len(images)))
        columns = grids.headings([labels[i] for i in chosen] if labels else [], classes)
        score = scores.get((model, cell), {}).get(metric or "")
        strips.append(grids.Strip(model, cell_name(cell), images[chosen], score))
    if picture.kind == "samples":
        return grids.sample_grid(strips, columns, picture.title)
    return grids.hero(strips, columns, _hero_title(picture.experiment, rows), metric or "")


def _hero_title(experiment: str, rows: Sequence[Row]) -> str:
    students = [row.model for row in rows if row.model != "teacher"]
    name = "ctm" if "ctm" in students else (students or ["teacher"])[0]
    if name == "teacher":
        return f"{experiment}: samples of the teacher"
    return f"{experiment}: the same noises through the teacher's solver and through {name}"
