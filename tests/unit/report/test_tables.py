"""The files of `ctm table`, and what stands in runs.csv, table.csv and table.md."""

import csv
import hashlib
import math
from pathlib import Path

import pytest
from fixtures.results_factory import CTM, MODELS, NODSM, TEACHER, Results, digest, protocol

from ctm_core.config import Cell
from ctm_core.report.statistics import MARKED
from ctm_core.report.tables import write_tables
from ctm_core.runtime.files import read_json, write_record

FIXED = (
    "experiment,dataset,model,objective,step,sampler,gamma,nfe,times,protocol,train_seeds,"
    "sample_seeds,n_samples,params_m,checkpoint_sha256,train_hash,code_version"
)
METRIC = [
    "mean",
    "std",
    "ci95_low",
    "ci95_high",
    "ci_method",
    "min3",
    "published",
    "published_source",
    "delta",
]
RUNS = (
    "experiment,model,step,train_seed,sample_seed,sampler,gamma,nfe,times,protocol,metric,n,value,"
    "checkpoint_sha256,train_hash"
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path).default()
    write_tables(made.evaluations, tmp_path)
    return made


def test_columns_are_those_of_the_contract(results: Results) -> None:
    metrics = [results.metric, "fd_efficientnet_lite0_3072"]
    expected = FIXED.split(",") + [f"{m}_{column}" for m in metrics for column in METRIC]
    assert (results.root / "table.csv").read_text().splitlines()[0].split(",") == expected
    assert (results.root / "runs.csv").read_text().splitlines()[0] == RUNS


def test_runs_hold_every_value(results: Results) -> None:
    rows = read(results.root / "runs.csv")
    assert len(rows) == 3 * sum(len(cells) for cells in MODELS.values()) + 3
    (row,) = [
        row
        for row in rows
        if row["model"] == "ctm"
        and row["nfe"] == "4"
        and row["gamma"] == "0.5"
        and row["sample_seed"] == "2"
    ]
    assert row["value"] == "7.5"
    assert row["checkpoint_sha256"] == digest("digits", "ctm", 0, 500)
    assert {row["n"] for row in rows} == {"1024", "3072"}


def test_a_row_states_mean_interval_and_minimum(results: Results) -> None:
    rows = {
        (row["model"], row["sampler"], row["nfe"], row["gamma"]): row
        for row in read(results.root / "table.csv")
        if row["protocol"] == "desk-digits"
    }
    assert len(rows) == len(TEACHER) + len(CTM) + len(NODSM)
    half = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)) * 0.1 / math.sqrt(3)
    for model, cells in MODELS.items():
        for cell, mean in cells.items():
            gamma = "" if cell.gamma is None else f"{cell.gamma:g}"
            row = rows[model, cell.sampler, str(cell.nfe), gamma]
            value = {key: row[f"{results.metric}_{key}"] for key in METRIC}
            assert float(value["mean"]) == pytest.approx(mean, rel=1e-9)
            assert float(value["std"]) == pytest.approx(0.1, rel=1e-6)
            assert float(value["ci95_low"]) == pytest.approx(mean - half, rel=1e-8)
            assert float(value["ci95_high"]) == pytest.approx(mean + half, rel=1e-8)
            assert float(value["min3"]) == pytest.approx(mean - 0.1, rel=1e-9)
            assert value["ci_method"] == "sampling_seeds"
            assert value["published"] == value["published_source"] == value["delta"] == ""
            assert row["train_seeds"] == "0"
            assert row["sample_seeds"] == "0;1;2"
            assert row["n_samples"] == "1024"
            assert row["fd_efficientnet_lite0_3072_mean"] == ""


def test_gamma_is_empty_for_heun_and_one_step(results: Results) -> None:
    for row in read(results.root / "table.csv"):
        assert (row["gamma"] == "") == (row["sampler"] == "heun" or row["nfe"] == "1")


def test_pooled_seeds_are_one_value_without_interval(results: Results) -> None:
    pooled = [row for row in read(results.root / "table.csv") if row["protocol"].endswith("lite0")]
    assert len(pooled) == 3
    for row in pooled:
        assert row["sample_seeds"] == "0+1+2"
        assert row["n_samples"] == "3072"
        value = {key: row[f"fd_efficientnet_lite0_3072_{key}"] for key in METRIC}
        assert value.pop("mean") != ""
        assert set(value.values()) == {""}


def test_every_training_seeds_weights_are_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed in range(3):
        results.evaluation("ctm", {Cell("gamma", 1, None): 9.0 + seed}, train_seed=seed)
    write_tables(results.evaluations, tmp_path)
    (row,) = read(tmp_path / "table.csv")
    hashes = sorted(digest("digits", "ctm", seed, 500) for seed in range(3))
    assert row["checkpoint_sha256"] == ";".join(hashes)
    assert row["train_seeds"] == "0;1;2"
    assert row["train_hash"] == digest("digits", "ctm")
    assert row[f"{results.metric}_ci_method"] == "training_seeds"
    assert float(row[f"{results.metric}_std"]) == pytest.approx(1.0)
    assert "| 0: 9, 1: 10, 2: 11 |" in (tmp_path / "table.md").read_text()


def test_markdown_has_one_section_and_one_winner_a_protocol(results: Results) -> None:
    text = (results.root / "table.md").read_text()
    sections = text.split("\n## ")[1:]
    assert [s.splitlines()[0] for s in sections] == [
        "digits · desk-digits",
        "digits · desk-digits-lite0",
    ]
    for section in sections:
        assert section.count("**") == 2
        bold = next(line for line in section.splitlines() if "**" in line)
        assert bold.startswith("| teacher | heun |  | 35 |")
    assert "fd_efficientnet" not in sections[0]
    assert "classifier_digits" not in sections[1]
    alone = "sampling alone: 3 sampling seeds, 1 training run"
    assert f"| ctm | gamma | 0.5 | 4 | 7.40 [7.15, 7.65] ‡ | {alone} | 1024 |" in sections[0]
    assert MARKED in sections[0] and "‡" not in sections[1], "a single value has no interval"
    assert "†" not in sections[0]
    assert sections[1].count("†") == 2  # the mark and its explanation


def test_metrics_hold_the_mean_of_every_cell(results: Results) -> None:
    found = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for value in node.values():
                walk(value)
        else:
            found.append(node)

    walk(read_json(results.root / "metrics.json"))
    rows = read(results.root / "table.csv")
    names = (results.metric, "fd_efficientnet_lite0_3072")
    means = [float(row[f"{name}_mean"]) for row in rows for name in names if row[f"{name}_mean"]]
    assert sorted(found) == pytest.approx(sorted(means), rel=1e-9)


def test_order_and_time_of_inputs_change_no_byte(results: Results) -> None:
    def hashes() -> dict[str, str]:
        files = [*results.root.glob("*.*"), *results.root.glob("paper/*")]
        assert len(files) == 7 + 9
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    before = hashes()
    write_tables(list(reversed(results.evaluations)), results.root)
    assert hashes() == before


def test_many_metrics_are_dealt_to_tables_that_fit(tmp_path: Path) -> None:
    results = Results(tmp_path)
    path = results.evaluation("ctm", {Cell("gamma", 1, None): 9.0})
    record = read_json(path)
    others = (
        "fd_x_512", "kid_x_1024", "is_x_1024", "precision_x_1024", "recall_x_1024",
        "density_x_1024", "coverage_x_1024", "trajectory_error_64", "memorisation_1024",
    )  # fmt: skip
    rows = record["rows"]
    record["rows"] = rows + [
        row | {"metric": metric, "value": 0.5} for row in rows for metric in others
    ]
    write_record(path, record)
    write_tables([path], tmp_path)
    text = (tmp_path / "table.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("| model")]
    assert [head.count("[low, high]") for head in heads] == [1, 1, 2, 4, 2]
    assert heads[0].endswith("| interval over | n | training seeds | sampling seeds |")
    assert heads[3].count("x_1024") == 4 and "precision" in heads[3]
    assert all(metric in text for metric in others)
    assert text.count("Further metrics of the same samples:") == 1


def test_foreign_text_is_neither_markup_nor_a_formula(tmp_path: Path) -> None:
    results = Results(tmp_path)
    facts = protocol("desk-digits", precision="a|b\n\n<script>`x`", features="[x](javascript:y)")
    path = results.evaluation(
        "ctm", {Cell("gamma", 1, None): 9.0}, objective="=1+1", code_version="@SUM(A1)",
        train_hash="-1+cmd", protocols={"desk-digits": facts},
    )  # fmt: skip
    write_tables([path], tmp_path)
    markdown = (tmp_path / "table.md").read_text()
    (line,) = (line for line in markdown.splitlines() if line.startswith("Features "))
    assert "a\\|b" in line and "&lt;script&gt;\\`x\\`" in line and "[x\\](javascript" in line
    assert "<script" not in markdown and "<script" in (tmp_path / "table.tex").read_text()
    (row,) = csv.DictReader((tmp_path / "table.csv").open(newline=""))
    assert (row["objective"], row["code_version"]) == ("'=1+1", "'@SUM(A1)")
    assert row["train_hash"] == "'-1+cmd" and row["gamma"] == ""
    assert {run["train_hash"] for run in csv.DictReader((tmp_path / "runs.csv").open())} == {
        "'-1+cmd"
    }


def test_two_cells_of_one_nfe_are_two_rows(tmp_path: Path) -> None:
    results = Results(tmp_path)
    grid = Cell("gamma", 2, 1.0)
    results.evaluation("cd", {grid: 9.0, grid._replace(times=(0.8,)): 8.0})
    write_tables(results.evaluations, tmp_path)
    for name in ("runs.csv", "table.csv"):
        made = read(tmp_path / name)
        assert [row["times"] for row in made] == sorted(row["times"] for row in made)
        assert {(row["nfe"], row["times"]) for row in made} == {("2", ""), ("2", "0.8")}
        columns = list(made[0])
        assert columns[columns.index("nfe") : columns.index("nfe") + 3] == [
            "nfe", "times", "protocol",
        ]  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert "| model | sampler | γ | NFE | σ |" in text
    assert "| cd | gamma | 1 | 2 | 0.8 | **8.00" in text
    paper = (tmp_path / "paper" / "table1.md").read_text()
    assert "| cd | 2 |" in paper and "| cd (σ = 0.8) | 2 |" in paper
    assert {"gamma/nfe-2/gamma-1", "gamma/nfe-2/gamma-1/times-0.8"} == set(
        read_json(tmp_path / "metrics.json")["digits"]["cd"]["step-500"]
    )
