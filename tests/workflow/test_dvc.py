"""The DVC stage around the DAG: no-op, change, another version, and what a version holds."""

from pathlib import Path

import yaml
from fixtures.project import ROOT
from fixtures.versions import AFFECTED, Versions

#: One file of each kind that a version consists of.
KINDS = {
    "results/data/digits/train/images.npy",
    "results/tiny/teacher/seed-0/teacher.safetensors",
    "results/tiny/ctm/seed-0/student.safetensors",
    "results/tiny/ctm/seed-0/step-4/evaluation.json",
    "results/features/desk-tiny.safetensors",
    "results/metrics.json",
    "results/table.csv",
    "results/paper/table1.tex",
    "results/figures/tiny-hero.png",
    "results/report.html",
}


def test_nothing_to_do(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    assert "didn't change, skipping" in project.run("dvc", "repro")
    assert project.left() == {}
    assert project.run("git", "status", "--porcelain") == "", "results must not be in git"
    assert project.made() == versions.second


def test_a_changed_parameter_reruns_what_it_affects(versions: Versions) -> None:
    assert versions.planned == AFFECTED
    assert versions.ran == {name: n for name, n in AFFECTED.items() if name != "all"}
    first, second = versions.first, versions.second
    assert first.keys() == second.keys()
    changed = {name for name in first if first[name] != second[name]}
    assert {"results/table.csv", "results/tiny/ctm/seed-0/student.safetensors"} < changed
    assert not [name for name in changed if "/teacher/" in name or "/data/" in name]


def test_an_older_version_and_back(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    project.go("first")
    assert project.made() == versions.first
    assert project.left() == {}
    assert "didn't change, skipping" in project.run("dvc", "repro")
    # Without DVC's half the files are another version's, and Snakemake says which must be made.
    project.run("git", "checkout", "--quiet", "main")
    assert project.left() == AFFECTED
    project.run("dvc", "checkout", "--quiet")
    assert project.made() == versions.second
    assert project.left() == {}


def test_training_state_is_not_versioned(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    listed = project.run("dvc", "list", ".", "--recursive", "--dvc-only").split()
    assert set(listed) >= KINDS
    assert {Path(name).parts[0] for name in listed} == {"results", ".snakemake"}
    assert list(project.path.glob("runs/tiny/ctm/seed-0/*/checkpoints/step-*"))
    assert not [name for name in project.run("git", "ls-files").split() if "runs/" in name]


def test_the_stage_declares_whole_files_of_parameters() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["reproduce"]
    listed = yaml.safe_load((ROOT / "config/config.yaml").read_text())["experiments"]
    files = [f"config/experiments/{name}.yaml" for name in listed]
    assert stage["params"] == [{"config/config.yaml": None}, *({file: None} for file in files)]
