"""Samples beside the nearest training images: whether a model copies, for the eye."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from ctm_core.data.dataset import Dataset
from ctm_core.evaluation.metrics.nearest import find_nearest
from ctm_core.report.figures.figure_inputs import Previews
from ctm_core.report.figures.grids import Strip, by_class, headings, sample_grid
from ctm_core.report.headline import cell_name
from ctm_core.report.scores import Row, cell_order
from ctm_core.runtime.errors import UserError

#: Columns, and the side of an image in inches: half as many as a sample grid has, twice as large.
COLUMNS, TILE = 10, 0.68


def beside_nearest(
    rows: Sequence[Row], previews: Previews, learned: Dataset | None, title: str
) -> Figure | None:
    """Samples of a model above the nearest training images; None without either.

    The samples are those of the cell with the fewest network evaluations or, of the teacher, the
    most.

    Parameters
    ----------
    rows
        Those of the model.
    learned
        The training images.
    """
    model, by_cell = rows[0].model, {row.cell: row for row in rows}
    cells = {cell for cell in by_cell if cell.label in previews.cells(rows[0])}
    if learned is None or not cells:
        return None
    pick = max if model == "teacher" else min
    cell = pick(cells, key=lambda cell: (cell.nfe, cell_order(cell)))
    images, labels = previews.of(by_cell[cell])
    chosen = by_class(labels, min(COLUMNS, len(images)))
    samples = images[chosen]
    if samples.shape[1:] != learned.images.shape[1:]:
        ours, theirs = (list(shape[1:]) for shape in (samples.shape, learned.images.shape))
        raise UserError(
            f"{learned.path} holds images of shape {theirs}, but samples of {model} have {ours}; "
            "give the images that it has learned"
        )
    nearest = find_nearest(torch.from_numpy(samples), learned.images)
    strips = [
        Strip(model, cell_name(cell), samples, None),
        Strip("training", "nearest", learned.images[nearest.indices.numpy()], None),
    ]
    columns = headings([labels[i] for i in chosen] if labels else [], learned.class_names)
    distances = [f"{distance:.1f}" for distance in nearest.distances.tolist()]
    return sample_grid(strips, columns, title, tile=TILE, below=distances)
