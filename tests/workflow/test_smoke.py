"""The whole DAG once, from nothing to the report, and what a user does with it afterwards."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.project import ROOT, SMOKE, Project, copy_project

from ctm_core.config import dag, load_experiment
from ctm_core.config.project import open_project

Branch = Callable[[], Project]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_has_its_row(finished: Project) -> None:
    experiment = load_experiment(ROOT / "config/experiments/smoke.yaml")
    expected = []
    for model, steps in (("teacher", [60]), ("ctm", [15, 30]), ("ctm_nodsm", [20])):
        for step in steps:
            for protocol, cells in experiment.protocols(model).items():
                expected += [(model, str(step), c.sampler, str(c.nfe), protocol) for c in cells]
    keys = ("model", "step", "sampler", "nfe", "protocol")
    found = [tuple(row[k] for k in keys) for row in rows(finished.path / "results/table.csv")]
    # How often the adaptive solver evaluates the network is a result and no part of the config.
    bits = [place for place in found if place[-1] == "likelihood"]
    assert experiment.evaluation.likelihood is not None
    assert [(model, sampler) for model, _, sampler, *_ in bits] == [
        (model, "ode") for model in experiment.evaluation.likelihood.models
    ]
    assert sorted(place for place in found if place not in bits) == sorted(expected)


def test_every_value_names_its_weights(finished: Project) -> None:
    path = finished.path / "results/smoke/ctm/seed-0/student.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mine = [
        row
        for row in rows(finished.path / "results/runs.csv")
        if (row["model"], row["step"]) == ("ctm", "30")
    ]
    assert mine and {row["checkpoint_sha256"] for row in mine} == {digest}
    metrics = json.loads((finished.path / "results/metrics.json").read_text())
    assert set(metrics["smoke"]) == {"teacher", "ctm", "ctm_nodsm"}


def test_logs_times_figures_and_report_are_there(finished: Project) -> None:
    assert "step 30/30" in (finished.path / "logs/train/smoke/ctm/seed-0.log").read_text()
    benchmark = finished.path / "results/benchmarks/train/smoke/ctm/seed-0.tsv"
    assert float(benchmark.read_text().splitlines()[1].split("\t")[0]) > 0
    assert len(list((finished.path / "results/figures").glob("*.png"))) >= 4
    report = (finished.path / "results/report.html").read_text()
    assert "smoke" in report and report.rstrip().endswith("</html>")
    for model in ("teacher", "ctm", "ctm_nodsm"):
        assert f"smoke: samples of {model} and the nearest training images" in report


def test_progress_is_shown_while_it_runs(finished: Project) -> None:
    log = (finished.path / "smoke.log").read_text()
    assert "smoke teacher seed 0: step 60/60" in log and "images/s" in log


def test_references_come_first_and_long_evaluations_before_short_ones(finished: Project) -> None:
    """On few cores, the end of the run is then as short as it can be."""
    log = (finished.path / "smoke.log").read_text()
    started = re.findall(r"rule (\w+):\n(?:    .*\n)*?    wildcards: (.*)", log)
    rules = [rule for rule, _ in started]
    assert rules.index("train_smoke_ctm") > max(i for i, r in enumerate(rules) if r == "reference")
    evaluated = [given for rule, given in started if rule == "evaluate"]
    assert "model=teacher" in evaluated[0] and len(evaluated) == 4


def test_training_state_is_outside_the_results(finished: Project) -> None:
    checkpoints = list((finished.path / "runs/smoke").glob("*/seed-0/*/checkpoints/step-*"))
    assert len(checkpoints) == 6  # two kept for each of three trainings
    assert not list((finished.path / "results").rglob("checkpoints"))


def test_the_same_command_elsewhere_gives_the_same_bytes(
    finished: Project, tmp_path: Path
) -> None:
    """Whatever the folder, hour, cores, order of jobs, hash seed, time zone, language and umask.

    Of all that is made, only what no job reads may tell one run from another.
    """
    project = copy_project(tmp_path / "a longer name" / "in another folder" / "project")
    (tmp_path / "tmp").mkdir()
    command = " ".join(("umask 027 && exec snakemake --cores 1", *SMOKE))
    surroundings = {"PYTHONHASHSEED": "77", "TZ": "ABC-5:30", "LC_ALL": "C"}
    project.run("sh", "-c", command, TMPDIR=str(tmp_path / "tmp"), **surroundings)

    assert_equal_inputs(finished, project)


def assert_equal_inputs(first: Project, second: Project) -> None:
    """Two runs differ in nothing that a job reads."""
    ours, theirs = first.results("results/**/*"), second.results("results/**/*")
    differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    # Benchmarks are times; the browser's tests put screenshots into report/.
    others = ("results/benchmarks/", "results/report/")
    assert {name for name in differing if not name.startswith(others)} == {"results/report.html"}
    plan = open_project(ROOT / "config/smoke.yaml", ROOT)
    read = [name for job in dag.graph(plan, "all") if job.rule != "all" for name in job.inputs]
    assert {"results/runs.csv", "results/table.csv", "results/figures"} < set(read)
    for name in read:
        files = {file for file in ours if file == name or file.startswith(f"{name}/")}
        assert files, f"{name} is read, but was never made or says how long something took"
        assert not files & differing


def test_snakemakes_own_report(branch: Branch) -> None:
    project = branch()
    project.snakemake("--report", "overview.html")
    text = (project.path / "overview.html").read_text()
    assert "Consistency Trajectory Models" in text and "table.csv" in text


def test_a_missing_file_of_a_finished_run_is_made_again(branch: Branch) -> None:
    project = branch()
    before = project.results()
    # The whole training folder: its state in runs/ is whole, so nothing is trained again.
    project.remove("results/smoke/ctm_nodsm")
    [last] = (project.path / "runs/smoke/ctm_nodsm/seed-0").glob("*/checkpoints/step-00000020")
    written = (last / "state.json").stat().st_mtime_ns
    project.snakemake("--", "results/smoke/ctm_nodsm/seed-0/step-20/evaluation.json")
    assert (last / "state.json").stat().st_mtime_ns == written
    assert project.results() == before


def test_flipped_weights_end_the_workflow(branch: Branch) -> None:
    """A row of them is never made; what the sentence says makes them as they were."""
    project = branch()
    before = project.results()
    weights = project.path / "results/smoke/ctm_nodsm/seed-0/student.safetensors"
    content, now = bytearray(weights.read_bytes()), weights.stat()
    content[-100] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(now.st_atime_ns, now.st_mtime_ns))  # a disk changes no time
    target = "results/smoke/ctm_nodsm/seed-0/step-20/evaluation.json"
    output = project.snakemake("--force", "--", target, code=1)
    assert "student.safetensors is corrupt: it does not match the SHA-256" in output
    weights.unlink()
    project.snakemake("--force", "--", target)
    assert project.results() == before


def test_a_read_only_results_folder_is_one_sentence(branch: Branch) -> None:
    project = branch()
    shutil.rmtree(project.path / "results/figures")
    (project.path / "results/figures").write_text("in the way")
    output = project.run(
        "ctm", "figures", "--output", "results/figures",
        "results/smoke/teacher/seed-0/step-60/evaluation.json", code=2,
    )  # fmt: skip
    assert len(output.splitlines()) == 1 and "results/figures" in output


# -- a Snakemake that was killed ----------------------------------------------------------------

CLEAR = (sys.executable, "workflow/scripts/clear_dead_lock.py")


@pytest.mark.parametrize("orphan", [False, True], ids=["whole group", "snakemake alone"])
def test_make_clears_the_lock_of_a_killed_snakemake(
    branch: Branch, kill_when: Callable[..., None], orphan: bool
) -> None:
    project = branch()
    expected = project.results("results/smoke/ctm/seed-0/*")
    project.remove("results/smoke/ctm", "runs/smoke/ctm")
    target = "results/smoke/ctm/seed-0/student.safetensors"
    process = project.start(
        "snakemake", "--cores", "2", "--configfile", "config/smoke.yaml", "--", target
    )
    checkpoint = "runs/smoke/ctm/seed-0/*/checkpoints/step-00000010"
    kill_when(process, project, checkpoint, group=not orphan)
    assert not (project.path / target).exists()

    refused = project.snakemake("--", target, code=1)
    assert "--unlock" in refused
    printed = project.run(*CLEAR)
    assert "Clearing the lock of a killed Snakemake" in printed
    assert ("left behind" in printed) == orphan
    assert "continues after step" in project.snakemake("--", target)
    assert project.results("results/smoke/ctm/seed-0/*") == expected


def test_the_lock_of_a_living_snakemake_stays(branch: Branch) -> None:
    project = branch()
    project.remove("results/smoke/ctm", "runs/smoke/ctm")
    target = "results/smoke/ctm/seed-0/student.safetensors"
    process = project.start(
        "snakemake", "--cores", "2", "--configfile", "config/smoke.yaml", "--", target
    )
    try:
        while not list(project.path.glob("runs/smoke/ctm/seed-0/*/lock")):
            assert process.poll() is None
            time.sleep(0.05)
        assert project.run(*CLEAR) == ""
        assert list((project.path / ".snakemake/locks").glob("*"))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=120)[0]
    assert "run the same command again" in output
