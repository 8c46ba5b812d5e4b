"""Reading evaluation files, refusing what may not stand in one table, and summarising."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.results_factory import CTM, POOLED_CELLS, Results, digest, protocol

from ctm_core.config import Cell
from ctm_core.report.scores import aggregate, read_evaluations, read_runs
from ctm_core.report.selection import best, last_steps, main_protocol, metrics_of
from ctm_core.report.statistics import Summary
from ctm_core.report.tables import write_tables
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import CONTENT, read_json, write_record

ONE = {Cell("gamma", 1, None): 9.0}


def test_rows_are_ordered_and_keep_protocols_apart(tmp_path: Path) -> None:
    results = Results(tmp_path).default()
    rows = aggregate(read_evaluations(reversed(results.evaluations)))
    assert [row.model for row in rows][:5] == ["teacher"] * 5
    assert {row.protocol for row in rows} == {"desk-digits", "desk-digits-lite0"}
    assert main_protocol(rows, "digits") == "desk-digits"
    for row in rows:
        assert len(row.metrics) == 1
    lite = [row for row in rows if row.protocol == "desk-digits-lite0"]
    assert {(row.model, row.cell) for row in lite} == set(POOLED_CELLS)
    assert {row.sample_seeds for row in lite} == {("0+1+2",)}
    assert [row.model for row in lite if row.rank_deficient] == ["teacher"]


def test_gamma_is_left_out_where_it_means_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path, sample_seeds=(0,))
    path = results.evaluation("ctm", ONE)
    record = read_json(path)
    record["rows"][0]["gamma"] = 0.5
    write_record(path, record)
    (row,) = aggregate(read_evaluations([path]))
    assert row.cell == Cell("gamma", 1, None)


def test_best_last_step_and_metric_order(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", step=100, shift=-5.0)
    results.evaluation("ctm", step=500)
    rows = aggregate(read_evaluations(results.evaluations))
    late = last_steps(rows)
    assert {row.step for row in late} == {500}
    winner = best(late, results.metric)
    assert winner is not None and winner.cell == min(CTM, key=lambda cell: CTM[cell])
    assert best(late, "precision") is None
    assert metrics_of(rows) == [results.metric]


@pytest.mark.parametrize(
    ("metric", "winner"),
    [("fd_x_64", 1.0), ("recall_x_64", 2.0), ("memorisation_64", None), ("unknown", None)],
)
def test_the_best_value_follows_the_direction(
    tmp_path: Path, metric: str, winner: float | None
) -> None:
    path = Results(tmp_path, sample_seeds=(0,)).evaluation("ctm", ONE)
    (row,) = aggregate(read_evaluations([path]))
    rows = [replace(row, metrics={metric: Summary(value)}) for value in (2.0, 1.0)]
    found = best(rows, metric)
    assert (found and found.metrics[metric].mean) == winner


def test_training_seeds_of_a_cell_become_one_row(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed in (2, 0, 1):
        results.evaluation("ctm", ONE, train_seed=seed, shift=float(seed))
    (row,) = aggregate(read_evaluations(results.evaluations))
    assert row.train_seeds == (0, 1, 2)
    assert row.metrics[results.metric].method == "training_seeds"
    assert row.metrics[results.metric].mean == pytest.approx(10.0)
    hashes = row.checkpoint_sha256.split(";")
    assert hashes == sorted(digest("digits", "ctm", seed, 500) for seed in range(3))


def test_an_adaptive_solvers_evaluations_do_not_part_trainings(tmp_path: Path) -> None:
    results = Results(tmp_path, sample_seeds=(0,), metric="bpd_32")
    paths = [
        results.evaluation("ctm", {Cell("ode", nfe, None): value}, train_seed=seed)
        for seed, (nfe, value) in enumerate([(92, 4.7), (94, 4.8), (92, 4.9)])
    ]
    (row,) = aggregate(read_evaluations(paths))
    assert row.train_seeds == (0, 1, 2)
    assert row.cell == Cell("ode", 93, None)
    summary = row.metrics["bpd_32"]
    assert summary.mean == pytest.approx(4.8) and summary.method == "training_seeds"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_fingerprint": digest("other")}, "different data"),
        ({"protocols": {"desk-digits": protocol("desk-digits", samples=9)}}, r"by .* \(samples\)"),
        ({"protocols": {}}, "does not describe"),
        ({"rows": [{"sampler": "gamma"}]}, "the key 'rows.0.sample_seed' is missing"),
        ({"params_m": "many"}, "params_m"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", ONE)
    results.evaluation("ctm_nodsm", ONE, **change)
    with pytest.raises(UserError, match=message) as error:
        read_evaluations(results.evaluations)
    assert "ctm_nodsm" in str(error.value)


def test_a_cell_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = Results(tmp_path).evaluation("ctm", ONE)
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="both evaluate digits ctm step 500 training seed 0"):
        read_evaluations([path, copy])
    record = read_json(path)
    record["rows"].append(record["rows"][0])
    write_record(path, record)
    with pytest.raises(UserError, match="two values"):
        read_evaluations([path])


def test_unequal_sampling_seeds_are_refused(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm", ONE, train_seed=0)
    results.sample_seeds = (0, 1)
    results.evaluation("ctm", ONE, train_seed=1)
    with pytest.raises(UserError, match="training seed 1 has no value of sampling seed 2"):
        aggregate(read_evaluations(results.evaluations))


def test_a_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = Results(tmp_path).evaluation("ctm", ONE)
    record = {key: value for key, value in read_json(path).items() if key != CONTENT}
    record["rows"][1]["value"] = float("nan")
    path.write_text(json.dumps(record).replace("NaN", "1e999"))
    with pytest.raises(UserError, match=r"rows\.1\.value"):
        read_evaluations([path])


def test_missing_and_empty_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation files"):
        read_evaluations([])
    with pytest.raises(UserError, match="is missing"):
        read_evaluations([tmp_path / "evaluation.json"])


def test_left_overs_of_older_runs_stay_out(tmp_path: Path) -> None:
    results = Results(tmp_path)
    kept = results.evaluation("ctm", ONE)
    write_tables([kept], tmp_path)
    results.evaluation("ctm", ONE, step=100)
    results.evaluation("ctm_old", ONE)
    assert read_runs(tmp_path) == [kept]
    kept.unlink()
    with pytest.raises(UserError, match="holds 0 evaluations"):
        read_runs(tmp_path)


def test_a_missing_or_strange_table_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.csv is missing"):
        read_runs(tmp_path)
    head = b"experiment,model,train_seed,step\n"
    for text in (b"a,b\n1,2\n", b"", head + b"a,b,\xff,1\n", head + b"a,b,c,1\n", b'"\0'):
        (tmp_path / "runs.csv").write_bytes(text)
        with pytest.raises(UserError, match=r"runs\.csv is not a table of runs"):
            read_runs(tmp_path)
    (tmp_path / "runs.csv").write_bytes(head + b"a,b,0," + b"9" * 200_000 + b"\n")
    with pytest.raises(UserError, match=r"runs\.csv (is not a table of runs|names a b seed 0)"):
        read_runs(tmp_path)
    (tmp_path / "runs.csv").unlink()
    os.mkfifo(tmp_path / "runs.csv")
    with pytest.raises(UserError, match=r"runs\.csv is a named pipe"):
        read_runs(tmp_path)


def test_a_single_value_may_bring_its_own_error(tmp_path: Path) -> None:
    results = Results(tmp_path, sample_seeds=(0,))
    path = results.evaluation("ctm", {Cell("gamma", 1, None): 9.0})
    record = read_json(path)
    record["rows"][0] |= {"standard_error": 0.5, "freedom": 15}
    write_record(path, record)
    (row,) = aggregate(read_evaluations([path]))
    summary = row.metrics[results.metric]
    assert summary.method == "subsampling" and summary.half == pytest.approx(0.5 * 2.131, rel=1e-3)
    record["rows"][0]["freedom"] = None
    write_record(path, record)
    with pytest.raises(UserError, match="standard_error and freedom go together"):
        read_evaluations([path])
