"""The paper's tables 1 to 3, for whatever experiments a table holds.

Rows are methods and their NFE, columns are metrics of experiments; data sets are tables of their
own. Every column of values has one protocol, which its heading names. A published value stands in
brackets beside ours where its protocol is the same; all other published values follow in tables of
their own, one a protocol.

Of our cells those are shown that the paper's tables have: solves of the teacher, jumps with γ = 0,
and γ = 1 for models that know no other. Only the last step of each model is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ctm_core.config.published import Literature, Published
from ctm_core.evaluation.metrics import names
from ctm_core.report.headline import cell_name
from ctm_core.report.literature import family
from ctm_core.report.scores import Row, last_steps, main_protocol, metrics_of, model_order
from ctm_core.report.tables.columns import Compared

__all__ = ["LAYOUTS", "Block", "Column", "Layout", "Listing", "PaperTable", "paper_table"]

#: Metrics of a whole model and not of a way of sampling from it.
OF_MODELS = ("bpd",)


@dataclass(frozen=True)
class Layout:
    """Which table of the paper, and its kinds of metrics; ``fd`` stands for FID, too."""

    name: str
    title: str
    families: tuple[str, ...]
    gan: bool = False


LAYOUTS = (
    Layout("table1", "Sample quality and likelihood", ("fd", "bpd")),
    Layout("table2", "Sample quality, inception score and recall", ("fd", "is", "recall")),
    Layout("table3", "CTM without and with the adversarial loss", ("fd",), gan=True),
)


class Column(NamedTuple):
    """Values of one metric of one experiment under one protocol."""

    experiment: str
    protocol: str
    metric: str

    @property
    def heading(self) -> str:
        return f"{self.experiment} {names.display(self.metric)} ({self.protocol})"


@dataclass(frozen=True)
class Block:
    """One table: methods and NFE against columns. ``cells`` maps (line, column) to our row."""

    title: str
    lines: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[int, int], Row]


@dataclass(frozen=True)
class Listing:
    """Published values of one data set under one protocol, or under protocols not known."""

    title: str
    kinds: tuple[str, ...]
    entries: tuple[Published, ...]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: ours beside published values, then what others published."""

    layout: Layout
    blocks: tuple[Block, ...]
    listings: tuple[Listing, ...]
    compared: Compared


def paper_table(
    layout: Layout, rows: Sequence[Row], compared: Compared, literature: Literature
) -> PaperTable:
    """Fill one of the paper's tables.

    Parameters
    ----------
    compared
        Published values that stand beside ours.
    literature
        All published values, for the lists below; those of the data sets in ``rows`` are shown.
    """
    late = last_steps(rows)
    blocks = []
    for dataset in dict.fromkeys(row.dataset for row in late):
        own = [row for row in late if row.dataset == dataset]
        if layout.gan:
            blocks += [
                _gan_block(layout, own, e) for e in dict.fromkeys(r.experiment for r in own)
            ]
        else:
            blocks.append(_block(layout, own, dataset))
    listings: list[Listing] = []
    if not layout.gan:
        for dataset in dict.fromkeys(row.dataset for row in late):
            listings += _listings(layout, dataset, literature)
    filled = tuple(block for block in blocks if block.cells)
    return PaperTable(layout, filled, tuple(listings), compared)


# -- ours ---------------------------------------------------------------------------------------


def _block(layout: Layout, rows: Sequence[Row], dataset: str) -> Block:
    columns = _columns(layout, rows)
    shown = [row for row in rows if _is_shown(row, rows)]
    keys = sorted({(row.model, row.cell.nfe, _method(row)) for row in shown}, key=_line_order)
    cells: dict[tuple[int, int], Row] = {}
    for i, (model, nfe, method) in enumerate(keys):
        for j, column in enumerate(columns):
            fitting = [
                row
                for row in (rows if family(column.metric) in OF_MODELS else shown)
                if (row.experiment, row.protocol, row.model)
                == (column.experiment, column.protocol, model)
                and column.metric in row.metrics
                and (
                    family(column.metric) in OF_MODELS
                    or (row.cell.nfe, _method(row)) == (nfe, method)
                )
            ]
            if fitting:
                cells[i, j] = fitting[0]
    used = [i for i in range(len(keys)) if any(line == i for line, _ in cells)]
    kept = {old: new for new, old in enumerate(used)}
    return Block(
        dataset,
        tuple((keys[i][2], str(keys[i][1])) for i in used),
        tuple(columns),
        {(kept[i], j): row for (i, j), row in cells.items()},
    )


def _gan_block(layout: Layout, rows: Sequence[Row], experiment: str) -> Block:
    """Rows: without and with GAN. Columns: the NFE that both have, as in the paper's table 3."""
    own = [row for row in rows if row.experiment == experiment]
    column = next(iter(_columns(layout, own)), None)
    pair = ("ctm", "ctm_gan")
    if column is None:
        return Block(experiment, (), (), {})
    found = {
        (row.model, row.cell.nfe): row
        for row in own
        if row.model in pair
        and row.protocol == column.protocol
        and column.metric in row.metrics
        and row.cell.sampler == "gamma"
        and not row.cell.gamma
    }
    shared = sorted({nfe for _, nfe in found if all((m, nfe) in found for m in pair)})
    lines = tuple((f"{label} GAN", str(nfe)) for nfe in shared for label in ("without", "with"))
    cells = {
        (2 * i + k, 0): found[model, nfe]
        for i, nfe in enumerate(shared)
        for k, model in enumerate(pair)
    }
    return Block(experiment, lines, (column,), cells)


def _columns(layout: Layout, rows: Sequence[Row]) -> list[Column]:
    """For each experiment and kind of metric the one of most samples, under its main protocol."""
    columns = []
    for experiment in dict.fromkeys(row.experiment for row in rows):
        own = [row for row in rows if row.experiment == experiment]
        main = main_protocol(own, experiment)
        for kind in layout.families:
            places = [main] if kind not in OF_MODELS else sorted({row.protocol for row in own})
            for protocol in places:
                scored = [row for row in own if row.protocol == protocol]
                wanted = ("fid", "fd") if kind == "fd" else (kind,)
                metric = next((m for m in metrics_of(scored) if family(m) in wanted), None)
                if metric is not None:
                    columns.append(Column(experiment, protocol, metric))
                    break
    return columns


def _is_shown(row: Row, rows: Sequence[Row]) -> bool:
    cell = row.cell
    if cell.sampler in ("heun", "euler"):
        return row.model == "teacher"
    if cell.sampler != "gamma":
        return False
    if not cell.gamma:
        return True
    own = (r for r in rows if (r.experiment, r.model) == (row.experiment, row.model))
    return cell.gamma == 1 and all(r.cell.gamma in (None, 1) for r in own)


def _method(row: Row) -> str:
    """A model; with the teacher's solver where it is not Heun's."""
    named = cell_name(row.cell).partition(" (")[2]
    return f"{row.model} ({named}" if named else row.model


def _line_order(key: tuple[str, int, str]) -> tuple[tuple[bool, str], str, int]:
    model, nfe, method = key
    return model_order(model), method, nfe


# -- others -------------------------------------------------------------------------------------


def _listings(layout: Layout, dataset: str, literature: Literature) -> list[Listing]:
    kinds = tuple("fid" if kind == "fd" else kind for kind in layout.families)
    own = [
        entry
        for entry in literature.entries()
        if entry.group.dataset == dataset and any(kind in entry.row.values for kind in kinds)
    ]
    protocols = sorted({entry.protocol for entry in own}, key=lambda name: (name is None, name))
    found = []
    for protocol in protocols:
        entries = tuple(entry for entry in own if entry.protocol == protocol)
        title = f"Published for {dataset}: "
        title += f"protocol {protocol}" if protocol else "protocols not known or not ours"
        held = tuple(kind for kind in kinds if any(kind in e.row.values for e in entries))
        found.append(Listing(title, held, entries))
    return found
