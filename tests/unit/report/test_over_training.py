"""Figures over training, of single jumps, and of one noise's way."""

from pathlib import Path

import pytest
from fixtures.results_factory import CTM, Results, jump_errors

from ctm_core.config import Cell
from ctm_core.report.figures import catalogue, curves, grids, write_figures
from ctm_core.report.figures.figure_inputs import Previews, read_trainings
from ctm_core.report.figures.style import style
from ctm_core.report.scores import aggregate, read_evaluations


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("results")).snapshots()


def test_the_paper_s_curves_are_drawn_from_snapshots(results: Results, tmp_path: Path) -> None:
    rows = aggregate(read_evaluations(results.evaluations))
    over = {p.name: p.models for p in catalogue(rows) if p.kind == "progress"}
    assert over == {
        "digits-fig11-dsm": ("ctm", "ctm_nodsm"),
        "digits-fig12-losses": ("ctm", "ctm_gan"),
    }
    written = {
        path.name for path in write_figures(results.evaluations, results.trainings, tmp_path)
    }
    assert {f"{name}.{kind}" for name in over for kind in ("pdf", "png")} <= written


def test_every_snapshot_is_a_point_and_a_fork_starts_where_it_left(results: Results) -> None:
    rows = aggregate(read_evaluations(results.evaluations))
    trained = read_trainings(results.trainings)["digits"]
    starts = {model: training.starts_at for (model, _), training in trained.items()}
    assert starts == {"ctm": 0, "ctm_nodsm": 0, "ctm_gan": 300}
    with style():
        figure = curves.fd_against_step(rows, results.metric, ("ctm", "ctm_gan"), "title", starts)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["NFE 1", "NFE 4"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    one = CTM[Cell("gamma", 1, None)]
    drawn = dict(zip(*lines["ctm, 1 training run ‡"].get_data(), strict=True))
    assert drawn == pytest.approx({100: one + 6, 200: one + 3, 300: one + 2})
    assert list(lines["ctm_gan, 1 training run ‡"].get_xdata()) == [400]


def test_curves_over_training_need_snapshots_of_two_models(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for step in (100, 200):
        results.evaluation("ctm", step=step)
    alone = aggregate(read_evaluations(results.evaluations))
    assert curves.comparable(alone, results.metric, ("ctm", "ctm_nodsm")) == []
    results = Results(tmp_path / "last").default()
    last = aggregate(read_evaluations(results.evaluations))
    assert curves.comparable(last, results.metric, ("ctm", "ctm_nodsm")) == []


def test_errors_of_jumps_are_averaged_over_training_seeds_of_the_last_step(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", step=100)
    results.evaluation("ctm", step=200)
    twice = [jump | {"error": 3 * jump["error"]} for jump in jump_errors("ctm", 200)]
    results.evaluation("ctm", step=200, train_seed=1, trajectory=twice)
    with style():
        figure = curves.jump_errors(read_evaluations(results.evaluations), "title")
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    expected = {j["t"]: 2 * j["error"] for j in jump_errors("ctm", 200) if j["s"] == 0.002}
    assert dict(zip(*line.get_data(), strict=True)) == pytest.approx(expected)
    assert curves.jump_errors([], "title") is None


def test_a_way_shows_each_state_with_its_level(results: Results) -> None:
    row = next(r for r in aggregate(read_evaluations(results.evaluations)) if r.model == "ctm")
    ways = Previews(read_evaluations(results.evaluations)).paths(row)
    assert [way.gamma for way in ways] == [0.0, 0.5, 1.0]
    with style():
        figure = grids.denoising_paths(ways, "title")
    assert figure is not None
    jumps_each = 8
    assert len(figure.axes) == len(ways) * 2 * jumps_each
    texts = {text.get_text() for text in figure.texts}
    assert {"γ = 0", "γ = 0.5", "γ = 1", "80", "40", "title"} <= texts
    assert grids.denoising_paths([], "title") is None
