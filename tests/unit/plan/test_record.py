"""Predictions beside the record of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures import tiny
from fixtures.results_factory import Results
from fixtures.tiny import Trained

from ctm_core.config import Cell, layout
from ctm_core.config.dag import training
from ctm_core.plan.costs import Estimate
from ctm_core.plan.passes import expected
from ctm_core.plan.record import Comparison, compare
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, write_record
from ctm_core.runtime.runs import environment


@pytest.fixture
def results(tmp_path: Path, student: Trained) -> Path:
    """A results folder with the record of the student's training, and Snakemake's table of it."""
    folder = tmp_path / "results" / "tiny/ctm/seed-0"
    folder.mkdir(parents=True)
    write_record(folder / "training.json", read_json(student.folder / "training.json"))
    write_record(folder / "speed.json", {"seconds": 30.0, "hardware": environment()})
    table = tmp_path / "results/benchmarks/train/tiny/ctm"
    table.mkdir(parents=True)
    (table / "seed-0.tsv").write_text("s\tmax_rss\n50.0\t100.0\n40.0\t200.0\n")
    return tmp_path / "results"


def estimate(kind: str = "train") -> Estimate:
    made = tiny.experiment()
    job = training(made, "ctm", 0)
    if kind == "evaluate":
        job = replace(job, kind=kind, makes=layout.evaluation("tiny", "ctm", 0, 12))
    return Estimate(job, expected(made, "ctm").by_network, seconds=20, memory=2e8, gpus=0)


def test_passes_seconds_and_memory_are_compared(results: Path, student: Trained) -> None:
    found, others, device = compare([estimate()], results)
    predicted = expected(tiny.experiment(), "ctm").by_network
    spent = read_json(student.folder / "training.json")["forward_passes"]
    by_name = {each.what: each for each in found}
    for name in ("teacher", "student", "target"):
        each = by_name[f"passes: {name}"]
        assert (each.predicted, each.measured) == (predicted[name], spent[name])
    assert by_name["seconds"].off == pytest.approx(0.5)
    assert by_name["memory"].measured == 200 * 2**20, "of the last time the job ran"
    assert others == [] and device is not None and device.endswith("threads")


def test_a_record_of_another_configuration_is_not_compared(results: Path) -> None:
    path = results / "tiny/ctm/seed-0/training.json"
    write_record(path, read_json(path) | {"train_hash": "0" * 64})
    assert compare([estimate()], results) == ([], ["tiny ctm seed 0"], None)


def test_precision_that_was_resolved_is_this_configuration(results: Path) -> None:
    auto = tiny.experiment({"models.ctm.training.precision": "auto"})
    path = results / "tiny/ctm/seed-0/training.json"
    resolved = auto.resolved("bf16").train_hash("ctm")
    assert resolved != auto.train_hash("ctm")
    write_record(path, read_json(path) | {"train_hash": resolved})
    job = training(auto, "ctm", 0)
    found, others, _ = compare([Estimate(job, {}, seconds=20)], results)
    assert others == [] and [each.what for each in found] == ["seconds"]


def test_likelihood_of_an_evaluation_is_compared(results: Path, tmp_path: Path) -> None:
    made = estimate("evaluate")
    folder = results / "tiny/ctm/seed-0/step-12"
    folder.mkdir()
    made_by = Results(tmp_path, experiment="tiny", sample_seeds=(0,), metric="bpd_4")
    row = made_by.score(Cell("ode", 50, None), 4.0, protocol="likelihood", n=4)
    path = made_by.evaluation("ctm", {Cell("gamma", 1, None): 9.0}, step=12, previews=False)
    record = read_json(path) | {"train_hash": tiny.experiment().train_hash("ctm")}
    write_record(folder / "speed.json", {"seconds": 10.0})
    write_record(folder / "evaluation.json", record | {"rows": [row, *record["rows"]]})
    job = Estimate(made.job, {"likelihood": 160.0}, seconds=20)
    (passes, seconds) = compare([job], results)[0][:2]
    assert (passes.what, passes.predicted, passes.measured) == ("passes: likelihood", 160, 200)
    assert seconds.measured == 10


def test_no_record_is_no_comparison(tmp_path: Path) -> None:
    assert compare([estimate()], tmp_path / "results") == ([], [], None)


def test_damaged_records_are_one_sentence(results: Path) -> None:
    table = results / "benchmarks/train/tiny/ctm/seed-0.tsv"
    for text in (b"1.0\tmuch\n", b"1.0\t\xff\n", b"1.0\t" + b"9" * 200_000 + b"\n", b"1.0\n"):
        table.write_bytes(b"s\tmax_rss\n" + text)
        with pytest.raises(
            UserError, match=r"seed-0\.tsv is not a benchmark table of Snakemake; remove it"
        ):
            compare([estimate()], results)
    (results / "tiny/ctm/seed-0/training.json").write_text("[]")
    with pytest.raises(UserError, match=r"training\.json is not a record of this project"):
        compare([estimate()], results)


def test_differences_are_relative() -> None:
    assert Comparison("a", "passes", predicted=100, measured=120).off == pytest.approx(0.2)
    assert Comparison("a", "passes", 0, 0).off == 0
    assert Comparison("a", "passes", 0, 5).off == float("inf")
