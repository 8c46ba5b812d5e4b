"""The DVC stage around the DAG: run, no-op, change, experiment, another version, a kill."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fixtures.project import ROOT, Project, jobs

EXPERIMENT = "config/experiments/smoke.yaml"
RESULTS = "results/smoke/**/*"


@pytest.fixture
def versioned(branch: Callable[[], Project]) -> Project:
    """The finished smoke run as the default experiment of a repository with one commit."""
    project = branch()
    for name in ("dvc.yaml", "config/config.yaml"):
        file = project.path / name
        file.write_text(file.read_text().replace("digits", "smoke"))
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "config", "user.name", "tester")
    project.run("git", "config", "user.email", "tester@localhost")
    commit(project, "start")
    return project


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", message)


def hashes(project: Project) -> dict[str, str]:
    return project.results(RESULTS) | project.results("results/*.csv")


def test_versions_of_the_results(versioned: Project, tmp_path: Path) -> None:
    project = versioned
    # A repro with something to do: one student is missing, and its state too.
    expected = hashes(project)
    project.remove("results/smoke/ctm_nodsm", "runs/smoke/ctm_nodsm", "results/table.csv")
    ran = jobs(project.run("dvc", "repro"))
    assert (ran["train_smoke_ctm_nodsm"], ran["evaluate"]) == (1, 1)
    assert not {"teacher_smoke", "train_smoke_ctm"} & set(ran)
    assert hashes(project) == expected
    assert "didn't change, skipping" in project.run("dvc", "repro")
    commit(project, "first version")
    assert project.run("git", "status", "--porcelain") == "", "results must not be in git"

    # A parameter changed by hand.
    old = "dsm: {enabled: false}\n    target_ema: 0.9"
    project.edit(EXPERIMENT, old, old.replace("0.9", "0.8"))
    ran = jobs(project.run("dvc", "repro"))
    assert (ran["train_smoke_ctm_nodsm"], ran["evaluate"]) == (1, 1)
    assert not {"teacher_smoke", "train_smoke_ctm"} & set(ran)
    changed = hashes(project)
    differing = {path for path in expected if changed[path] != expected[path]}
    assert {"results/runs.csv", "results/table.csv"} < differing
    assert not [path for path in differing if "/ctm/" in path or "/teacher/" in path]
    commit(project, "second version")

    # The first version again: everything comes back, and nothing is left to do.
    project.run("git", "checkout", "--quiet", "HEAD~1")
    project.run("dvc", "checkout")
    assert hashes(project) == expected
    assert project.planned(configuration=()) == {}
    assert "didn't change, skipping" in project.run("dvc", "repro")

    # On another machine, from a remote, without any training state.
    project.run("git", "checkout", "--quiet", "main")
    project.run("dvc", "checkout")
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    project.run("dvc", "push")
    other = Project(tmp_path / "other")
    project.run("git", "clone", "--quiet", str(project.path), str(other.path))
    other.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    other.run("dvc", "pull")
    assert hashes(other) == changed
    assert other.planned(configuration=()) == {}
    assert "didn't change, skipping" in other.run("dvc", "repro")


def test_an_experiment_reruns_what_it_affects_and_is_shown(
    versioned: Project, tmp_path: Path
) -> None:
    project = versioned
    project.run("dvc", "repro")
    commit(project, "first version")
    before = project.results("results/smoke/**/*.safetensors")
    ran = jobs(
        project.run("dvc", "exp", "run", "-S", f"{EXPERIMENT}:evaluation.sample_seeds=[0,1,2]")
    )
    assert ran["evaluate"] == 4
    assert not [name for name in ran if name.startswith(("train", "teacher", "reference"))]
    assert project.results("results/smoke/**/*.safetensors") == before

    shown = json.loads(project.run("dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["results/metrics.json"]["data"]["smoke"]
    assert metrics["ctm"]["step-30"]["gamma/nfe-1/gamma-none"]["desk-smoke"]
    assert "sample_seeds" in project.run("dvc", "params", "diff")
    assert "fd_classifier_digits_64" in project.run("dvc", "metrics", "diff")

    project.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    names = {path.name for path in (tmp_path / "plots/static").glob("*.png")}
    assert any("smoke-hero" in name for name in names)
    assert any("smoke-fd-nfe" in name for name in names)


def test_after_a_kill_one_unlock_and_the_same_command(
    versioned: Project, kill_when: Callable[..., None]
) -> None:
    project = versioned
    expected = hashes(project)
    project.remove("results/smoke/ctm_nodsm", "runs/smoke/ctm_nodsm", "results/table.csv")
    process = project.start("dvc", "repro")
    kill_when(process, project, "runs/smoke/ctm_nodsm/seed-0/*/checkpoints/step-*", group=True)
    refused = project.run("dvc", "repro", code=255)
    assert "--unlock" in refused
    project.run("snakemake", "--unlock")
    assert "continues after step" in project.run("dvc", "repro")
    assert hashes(project) == expected


def test_the_stage_declares_whole_files_of_parameters() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["reproduce"]
    listed = yaml.safe_load((ROOT / "config/config.yaml").read_text())["experiments"]
    files = [f"config/experiments/{name}.yaml" for name in listed]
    assert stage["params"] == [{"config/config.yaml": None}, *({file: None} for file in files)]
