"""What the keys of config/published.yaml change: what stands beside ours, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fixtures.results_factory import Results
from fixtures.sections import shows

from ctm_core.config import Cell, Literature
from ctm_core.report.literature import Beside, beside
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.report.tables.paper import LAYOUTS, paper_table
from ctm_core.runtime.errors import UserError

ONE, TWO = Cell("gamma", 1, None), Cell("gamma", 2, 0.0)
OURS: dict[str, Any] = {"experiment": "digits", "model": "ctm", "nfe": 1}
ROW: dict[str, Any] = {
    "key": "theirs", "method": "M", "values": {"fid": 2.0}, "cost_class": "distillation",
}  # fmt: skip
GROUP: dict[str, Any] = {
    "source": "Somebody", "dataset": "cifar10", "protocol": "edm-cifar10", "samples": 50_000,
    "confidence": "read",
}  # fmt: skip


def listed(group: dict[str, Any] | None = None, **row: Any) -> Literature:
    whole = GROUP | {"rows": [ROW | row]} | (group or {})
    return Literature.model_validate({"groups": [whole]})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path, metric="fid", protocol="edm-cifar10")
    made.evaluation("ctm", {ONE: 3.0, TWO: 4.0}, dataset="cifar10", step=100)
    made.evaluation("ctm", {ONE: 2.1, TWO: 1.9}, dataset="cifar10")
    made.evaluation("other", {ONE: 5.0}, dataset="cifar10")
    return made


def compared(results: Results, literature: Literature) -> dict[Any, Beside]:
    return beside(aggregate(read_evaluations(results.evaluations)), literature, "published.yaml")


def places(results: Results, **row: Any) -> list[tuple[str, int, int]]:
    """Model, step and NFE of ours that the value stands beside."""
    return [(key.model, key.step, key.cell.nfe) for key, _ in compared(results, listed(**row))]


def theirs(results: Results, literature: Literature) -> tuple[str, dict[str, str]]:
    """Heading and line of the only published value in the paper's first table."""
    rows = aggregate(read_evaluations(results.evaluations))
    (table,) = paper_table(LAYOUTS[0], rows, {}, literature).others
    (line,) = pd.DataFrame(table.frame).to_dict("records")
    return table.title, {str(key): str(value) for key, value in line.items()}


@shows("PublishedRow.ours", "Ours.model", "Ours.nfe", "Ours.step", "Ours.experiment")
@shows("Ours.gamma", "Ours.sampler", "Ours.times", "PublishedRow.values")
def test_ours(results: Results) -> None:
    assert places(results) == []
    assert places(results, ours=OURS) == [("ctm", 500, 1)]
    assert places(results, ours=OURS | {"model": "other"}) == [("other", 500, 1)]
    assert places(results, ours=OURS | {"nfe": 2, "gamma": 0}) == [("ctm", 500, 2)]
    assert places(results, ours=OURS | {"step": 100}) == [("ctm", 100, 1)]
    assert places(results, ours=OURS | {"experiment": "elsewhere"}) == []
    own_times = {"nfe": 2, "gamma": 0, "times": [0.8]}
    for other in ({"nfe": 2, "gamma": 1}, {"sampler": "euler"}, own_times):
        with pytest.raises(UserError, match="which the table does not have"):
            places(results, ours=OURS | other)
    (made,) = compared(results, listed(ours=OURS, values={"fid": 7.0})).values()
    assert made.value == 7.0


@shows("Group.protocol", "PublishedRow.protocol", "Group.samples", "PublishedRow.samples")
def test_like_with_like(results: Results) -> None:
    def stands(group: dict[str, Any] | None = None, **row: Any) -> bool:
        return bool(compared(results, listed(group, ours=OURS, **row)))

    assert stands()
    assert not stands({"protocol": "clean-cifar10"})
    assert stands({"protocol": "clean-cifar10"}, protocol="edm-cifar10")
    assert not stands(protocol="clean-cifar10")
    for few in ({"group": {"samples": 5_000}}, {"samples": 5_000}):
        with pytest.raises(ValueError, match="samples are too few for `fid`"):
            stands(**few)


@shows("Group.confidence", "PublishedRow.confidence")
def test_confidence(results: Results) -> None:
    def delta(group: dict[str, Any] | None = None, **row: Any) -> float | None:
        (made,) = compared(results, listed(group, ours=OURS, **row)).values()
        return made.delta

    assert delta() is not None
    assert delta({"confidence": "plot"}) is None
    assert delta({"confidence": "plot"}, confidence="read") is not None
    assert delta(confidence="plot") is None
    assert theirs(results, listed({"confidence": "secondary"}))[1]["confidence"] == "secondary"


@shows("PublishedRow.method", "PublishedRow.conditional", "PublishedRow.nfe", "Group.source")
@shows("PublishedRow.cost_class", "PublishedRow.extras", "PublishedRow.verified_by")
@shows("Group.table", "Group.measured_by", "Group.rows", "Literature.groups")
@pytest.mark.parametrize(
    ("group", "row", "column", "shown"),
    [
        ({}, {"method": "Q"}, "method", "Q"),
        ({}, {"conditional": True}, "setting", "with classes"),
        ({}, {"conditional": False}, "setting", "without classes"),
        ({}, {"nfe": 7}, "NFE", "7"),
        ({}, {}, "NFE", ""),
        ({}, {"values": {"fid": 3.25}}, "FID", "3.25"),
        ({}, {"cost_class": "gan"}, "cost class", "gan"),
        ({}, {"extras": ["lpips", "no_data"]}, "cost class", "distillation with lpips, no data"),
        ({"source": "Them"}, {}, "source", "Them"),
        ({"table": "table 2"}, {}, "source", "Somebody, table 2"),
        ({"measured_by": "third party"}, {}, "source", "Somebody, measured by a third party"),
        ({}, {"verified_by": "A: 1.9"}, "source", "Somebody, verified by A: 1.9"),
    ],
)
def test_what_is_printed(
    results: Results, group: dict[str, Any], row: dict[str, Any], column: str, shown: str
) -> None:
    assert theirs(results, listed(group, **row))[1][column] == shown


@shows("Group.dataset", "Literature.other_datasets")
def test_dataset(results: Results) -> None:
    assert theirs(results, listed())[0].startswith("Published for cifar10")
    rows = aggregate(read_evaluations(results.evaluations))
    far = {"groups": [GROUP | {"rows": [ROW], "dataset": "moon"}]}
    with pytest.raises(ValueError, match="unknown dataset 'moon'"):
        Literature.model_validate(far)
    made = Literature.model_validate(far | {"other_datasets": ["moon"]})
    assert not paper_table(LAYOUTS[0], rows, {}, made).others


@shows("PublishedRow.key", "PublishedRow.note")
def test_key_and_note() -> None:
    made = listed(key="mine")
    assert made.get("mine") is not None and made.get("theirs") is None
    with pytest.raises(ValueError, match="theirs has no values; say why in `note`"):
        listed(values={})
    assert listed(values={}, note="lost").entries()
