"""Figures: which are drawn, what is on them, and that equal inputs give equal bytes."""

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.results_factory import CTM, TEACHER, Results
from matplotlib.figure import Figure
from PIL import Image

from ctm_core.config import Cell
from ctm_core.data.dataset import Dataset
from ctm_core.report.figures import catalogue, curves, grids, write_figures
from ctm_core.report.figures.style import COLORS, by_model, nfe_axis, style
from ctm_core.report.scores import Row, aggregate, read_evaluations
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors

NAMES = {
    "digits-hero",
    "digits-fd-nfe",
    "digits-fd-gamma",
    "digits-fd-nfe-desk-digits-lite0",
    "digits-jumps",
    "digits-path-ctm",
    "digits-path-ctm_nodsm",
    "digits-training",
    "digits-samples-teacher",
    "digits-samples-ctm",
    "digits-samples-ctm_nodsm",
    "digits-nearest-teacher",
    "digits-nearest-ctm",
    "digits-nearest-ctm_nodsm",
}


def rows_of(results: Results) -> list[Row]:
    return aggregate(read_evaluations(results.evaluations))


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Results:
    folder = tmp_path_factory.mktemp("results")
    return Results(folder, fingerprint=digits.fingerprint).default()


@pytest.fixture(scope="module")
def drawn(default: Results, digits: Dataset) -> Path:
    folder = default.root / "figures"
    write_figures(default.evaluations, default.trainings, folder, data=[digits.path])
    return folder


def test_every_picture_of_the_catalogue_is_drawn_twice(default: Results, drawn: Path) -> None:
    assert {picture.name for picture in catalogue(rows_of(default))} == NAMES
    expected = {f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png")}
    assert {path.name for path in drawn.iterdir()} == expected
    for path in drawn.glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path  # something is on it


def test_another_process_writes_the_same_bytes(tmp_path: Path, digits: Dataset) -> None:
    results = Results(tmp_path, fingerprint=digits.fingerprint)
    results.evaluation("teacher", {cell: TEACHER[cell] for cell in list(TEACHER)[:2]})
    results.evaluation("ctm", {cell: CTM[cell] for cell in list(CTM)[:4]})
    results.training("ctm")
    results.training("teacher")
    data = [digits.path]
    write_figures(results.evaluations, results.trainings, tmp_path / "first", data=data)
    code = (
        "import sys; from pathlib import Path; from ctm_core.report.figures import write_figures\n"
        "split = sys.argv.index('--'); output, data, *files = map(Path, sys.argv[1:])\n"
        "write_figures(files[:split - 3], files[split - 2:], output, data=[data])"
    )
    evaluations = [str(path) for path in reversed(results.evaluations)]
    trainings = [str(path) for path in reversed(results.trainings)]
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "0",
        "TZ": "UTC-9",
    }
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "second"), str(digits.path)]
        + [*evaluations, "--", *trainings],
        check=True,
        env=environment,
    )

    def hashes(folder: Path) -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    first = hashes(tmp_path / "first")
    assert len(first) == 20
    assert hashes(tmp_path / "second") == first


def test_fd_against_nfe_holds_every_mean_and_interval(default: Results) -> None:
    rows = [row for row in rows_of(default) if row.protocol == "desk-digits"]
    with style():
        figure = curves.fd_against_nfe(rows, default.metric, "title")
    left, right = figure.axes
    assert [left.get_title(loc="left"), right.get_title(loc="left")] == [
        "ctm, 1 training run ‡",
        "ctm_nodsm, 1 training run ‡",
    ]
    lines = {line.get_label(): line for line in left.get_lines()}
    assert dict(
        zip(*lines["teacher, 1 training run ‡: Heun"].get_data(), strict=True)
    ) == pytest.approx({cell.nfe: value for cell, value in TEACHER.items()})
    for gamma in (0.0, 0.5, 1.0):
        expected = {c.nfe: v for c, v in CTM.items() if c.gamma in (None, gamma)}
        data = dict(zip(*lines[f"γ = {gamma:g}"].get_data(), strict=True))
        assert data == pytest.approx(expected)
    assert left.get_xscale() == left.get_yscale() == "log"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["teacher, 1 training run ‡: Heun", "γ = 0", "γ = 0.5", "γ = 1"]


def test_error_bars_have_the_interval_s_length(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", {Cell("gamma", 1, None): 9.0, Cell("gamma", 2, 0.0): 8.0})
    (row, _) = rows = rows_of(results)
    with style():
        figure = curves.fd_against_nfe(rows, results.metric, "title")
    (bars,) = figure.axes[0].containers
    segment = bars.lines[2][0].get_segments()[0]
    assert segment[:, 1] == pytest.approx(row.metrics[results.metric].interval)


def test_fd_against_gamma_has_a_line_for_each_nfe(default: Results) -> None:
    rows = [row for row in rows_of(default) if row.protocol == "desk-digits"]
    with style():
        figure = curves.fd_against_gamma(rows, default.metric, "title")
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for nfe in (2, 4, 8):
        expected = {c.gamma: v for c, v in CTM.items() if c.nfe == nfe}
        assert dict(zip(*lines[f"NFE {nfe}"].get_data(), strict=True)) == pytest.approx(expected)
    assert lines["NFE 1"].get_ydata()[0] == pytest.approx(9.4)
    assert lines["teacher, NFE 35"].get_ydata()[0] == pytest.approx(3.8)


def test_a_student_without_several_gammas_has_no_gamma_figure(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("cd", {Cell("gamma", 1, None): 9.0, Cell("gamma", 2, 1.0): 8.0})
    rows = rows_of(results)
    kinds = {"hero", "fd-nfe", "jumps", "path", "training", "samples", "nearest"}
    assert {p.kind for p in catalogue(rows)} == kinds
    assert curves.fd_against_gamma(rows, results.metric, "title") is None


def test_values_that_are_not_positive_get_a_linear_axis(tmp_path: Path) -> None:
    results = Results(tmp_path, metric="fd_classifier_digits_inf")  # extrapolated below 0
    cells = {Cell("gamma", 1, None): 0.05, Cell("gamma", 2, 1.0): 8.0}
    results.evaluation("ctm", cells, previews=False)
    with style():
        figure = curves.fd_against_nfe(rows_of(results), results.metric, "title")
    assert figure.axes[0].get_yscale() == "linear"


def test_several_experiments_steps_and_unconditional_models(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", step=100, shift=5.0)
    results.evaluation("ctm", step=500)
    other = Results(tmp_path, experiment="other", sample_seeds=(0,))
    other.evaluation("teacher")
    names = {p.stem for p in write_figures(results.evaluations + other.evaluations, [], tmp_path)}
    assert names == {
        *(f"digits-{kind}" for kind in ("hero", "fd-nfe", "fd-gamma", "samples-ctm")),
        "digits-jumps",
        "digits-path-ctm",
        *(f"other-{kind}" for kind in ("hero", "fd-nfe", "samples-teacher")),
    }
    assert catalogue(rows_of(results))[1].numbers.startswith("ctm at NFE 1: 9.40 [9.15, 9.65] ‡;")


def test_smoothing_is_unbiased_at_the_start_and_forgets() -> None:
    constant = pd.Series(np.full(100, 3.0))
    assert curves.smoothed(constant).to_numpy() == pytest.approx(np.full(100, 3.0))
    step = curves.smoothed(pd.Series(np.r_[np.zeros(100), np.ones(100)])).to_numpy()
    assert step[0] == 0.0
    assert step[-1] == pytest.approx(1 - 0.95**100, abs=1e-3)


def test_training_panels_name_terms_and_models(default: Results) -> None:
    one = pd.Series(np.linspace(2, 1, 5))
    logs = {("teacher", 0): {"loss": one}, ("ctm", 0): {"loss": one, "gan": one}, ("ctm", 1): {}}
    with style():
        figure = curves.training(logs, "title")
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == ["teacher: loss", "students: total loss", "gan"]
    assert figure.axes[1].get_lines()[1].get_color() == COLORS[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["teacher", "ctm"]


def test_tiles_enlarge_without_blur() -> None:
    images = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    row = grids.tiles(images, 48)
    assert row.shape == (48, 2 * 48 + 2, 3)
    assert (row[:, 48:50] == 255).all()
    assert (row[24:48, 50:74] == images[1, :, 1, 0]).all()
    grey = grids.tiles(images[:, :1], 4)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert grids.tiles(images, 1).shape == (2, 5, 3)  # never smaller than the samples


def test_columns_are_spread_over_classes() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0]
    assert grids.by_class(labels, 4) == [0, 3, 1, 2]
    assert grids.by_class(labels, 6) == [0, 3, 1, 4, 2, 5]
    assert grids.by_class([], 3) == [0, 1, 2]


def test_a_class_stands_over_its_columns_and_never_over_the_next() -> None:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    classes = grids.headings([0, 0, 1, 7], ["$automobile$", "golden\nretriever"])
    figure = grids.sample_grid([grids.Strip("ctm", "NFE 1", images, None)], classes, "title")
    figure.canvas.draw()
    shown = [text for text in figure.texts if text.get_va() == "bottom"]
    assert [text.get_text() for text in shown] == ["$automo…", "gol…", "7"]
    boxes = [text.get_window_extent() for text in shown]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_ticks_of_close_numbers_of_evaluations_do_not_overlap() -> None:
    axes = Figure().add_subplot()
    nfe_axis(axes, [35, 17, 9, 8, 5, 4, 3, 2, 1])
    assert list(axes.get_xticks()) == [1, 2, 3, 4, 5, 8, 17, 35]


def test_missing_or_strange_inputs_are_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    evaluation = results.evaluation("ctm", previews=False)
    with pytest.raises(UserError, match=r"previews\.safetensors is missing"):
        write_figures([evaluation], [], tmp_path / "figures")
    results.evaluation("ctm")
    fewer = results.evaluation("ctm", {Cell("gamma", 1, None): 1.0})
    record = results.evaluation("ctm", previews=False)
    assert fewer == record
    Results(tmp_path / "few").evaluation("ctm", {Cell("gamma", 1, None): 1.0})
    few = tmp_path / "few/digits/ctm/seed-0/step-500/previews.safetensors"
    record.with_name("previews.safetensors").write_bytes(few.read_bytes())
    with pytest.raises(UserError, match="has no samples of gamma/nfe-2/gamma-0"):
        write_figures([record], [], tmp_path / "figures")
    tensors, metadata = load_tensors(few)
    other = metadata | {"weights_sha256": "0" * 64}
    save_tensors(record.with_name("previews.safetensors"), tensors, other)
    with pytest.raises(UserError, match=r"previews\.safetensors holds samples of other weights"):
        write_figures([record], [], tmp_path / "figures")
    log = results.training("ctm")
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(UserError, match="is not a training log"):
        write_figures([evaluation], [log], tmp_path / "figures")


def test_no_two_models_look_alike() -> None:
    models = ["teacher", *(f"student_{i}" for i in range(15))]
    looks = [tuple(sorted(look.items())) for look in by_model(models).values()]
    assert len(set(looks)) == len(models)
    assert by_model(models[:7])["student_5"]["linestyle"] == "-", "colours first"


def test_times_of_their_own_have_lines_of_their_own(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", CTM | {Cell("gamma", 2, 1.0, (0.8,)): 7.0})
    rows = aggregate(read_evaluations(results.evaluations))
    (axes,) = curves.fd_against_nfe(rows, results.metric, "").axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["γ = 1 (its own times)"].get_ydata()) == pytest.approx([9.4, 7.0])
    assert list(lines["γ = 1"].get_ydata()) == pytest.approx([9.4, 9.3, 7.9, 8.8])
    figure = curves.fd_against_gamma(rows, results.metric, "")
    assert figure is not None
    drawn = [y for line in figure.axes[0].get_lines() for y in list(line.get_ydata())]
    assert 7.0 not in drawn
