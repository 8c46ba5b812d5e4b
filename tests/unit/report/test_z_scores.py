"""The picture of a comparison: a row per cell, far ones at the edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctm_core.config import Cell
from ctm_core.report.agreement import Agreement, Line
from ctm_core.report.agreement.observations import NO_CELL, Quantity
from ctm_core.report.agreement.spread import Score
from ctm_core.report.agreement.z_scores import FARTHEST, z_scores
from ctm_core.report.figures.style import COLORS


def test_a_row_for_each_cell_and_each_difference_on_the_way() -> None:
    cell = Quantity("ctm", 160, Cell("gamma", 1, None), "desk-digits", "fd_x_10")
    term = Quantity("ctm", 40, NO_CELL, "", "dsm")
    lines = (
        Line(cell, score=Score(0.2, 0.1, 5, True)),
        Line(cell._replace(step=161), "missing"),
        Line(term, "differs", score=Score(-9.0, 0.1, 5, True), way=True),
        Line(term._replace(step=80), score=Score(0.1, 0.1, 5, True), way=True),
    )
    made = Agreement("digits", Path("digits.json"), ("one",), lines)
    figure = z_scores(made, "title")
    assert figure is not None
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["ctm 160: NFE 1", "ctm 40: loss term dsm"]
    ends = [line.get_xdata()[-1] for line in axes.get_lines()[1:4:2]]
    assert ends == [pytest.approx(2.0), -FARTHEST]
    assert axes.get_lines()[2].get_color() == COLORS[3]
    assert z_scores(Agreement("digits", Path("x"), (), lines[1:2]), "title") is None
