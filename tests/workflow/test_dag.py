"""The shape of the DAG, and that a change causes the work it has to and no other."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.project import Project, jobs

Branch = Callable[[], Project]
#: What is read off the evaluations is made again whenever one of them is.
READING = {"table": 1, "figures": 1, "report": 1, "all": 1}


def test_the_default_is_digits_with_one_evaluation_a_training(project: Project) -> None:
    assert project.planned(configuration=()) == {
        "data": 1,
        "teacher_digits": 1,
        "train_digits_ctm": 3,
        "train_digits_ctm_nodsm": 1,
        "train_digits_ctm_gan": 1,
        "train_digits_cd": 3,
        "train_digits_ctm_scratch": 1,
        "reference": 2,
        "evaluate": 10,
        **READING,
    }


def test_a_snapshot_is_an_evaluation_of_its_own(project: Project) -> None:
    assert project.planned() == {
        "data": 1,
        "teacher_smoke": 1,
        "train_smoke_ctm": 1,
        "train_smoke_ctm_nodsm": 1,
        "reference": 2,
        "evaluate": 4,
        **READING,
    }


def test_the_table_alone_needs_no_figures(project: Project) -> None:
    planned = project.planned("--", "results/table.csv")
    assert "table" in planned and not {"figures", "report"} & set(planned)


def test_training_seeds_multiply_students_and_not_the_teacher(project: Project) -> None:
    project.edit("config/experiments/smoke.yaml", "evaluation:\n", "seeds: [0, 1]\nevaluation:\n")
    planned = project.planned()
    assert planned["teacher_smoke"] == 1
    assert planned["train_smoke_ctm"] == planned["train_smoke_ctm_nodsm"] == 2
    assert planned["evaluate"] == 1 + 2 * 2 + 2


def test_a_config_file_replaces_the_default_and_may_name_files(project: Project) -> None:
    smoke = project.path / "config/experiments/smoke.yaml"
    (project.path / "mine.yaml").write_text(smoke.read_text().replace(": smoke", ": mine"))
    (project.path / "two.yaml").write_text("experiments: [mine.yaml, smoke]\n")
    planned = project.planned(configuration=("--configfile", "two.yaml"))
    assert planned["teacher_mine"] == planned["teacher_smoke"] == 1
    assert "teacher_digits" not in planned


def test_another_directory_finds_the_projects_config(project: Project) -> None:
    planned = project.planned("--directory", "elsewhere")
    assert planned["teacher_smoke"] == 1
    assert not (project.path / ".snakemake").exists()


@pytest.mark.parametrize(
    "name, old, new, sentence",
    [
        (
            "config/experiments/smoke.yaml",
            "conditional: true",
            "conditionnal: true",
            "config/experiments/smoke.yaml: unknown key 'conditionnal'; allowed here: ",
        ),
        (
            "config/experiments/smoke.yaml",
            "steps: 60",
            "steps: sixty",
            "config/experiments/smoke.yaml: teacher.training.steps: ",
        ),
        (
            "config/smoke.yaml",
            "[smoke]",
            "[smok]",
            "the config file config/experiments/smok.yaml is missing",
        ),
        (
            "config/protocols/desk-smoke.yaml",
            "samples: 64",
            "sample: 64",
            "config/protocols/desk-smoke.yaml: unknown key 'sample'; allowed here: ",
        ),
    ],
)
def test_a_mistake_in_a_config_is_one_sentence(
    project: Project, name: str, old: str, new: str, sentence: str
) -> None:
    project.edit(name, old, new)
    output = project.snakemake("--dry-run", code=2)
    assert output.splitlines()[-1].startswith(f"snakemake: {sentence}")
    assert "Traceback" not in output


# -- after a finished run -----------------------------------------------------------------------


def test_nothing_to_do_after_a_run(finished: Project) -> None:
    assert finished.planned() == {}


def test_new_dates_cause_no_work(branch: Branch) -> None:
    project = branch()
    for path in [*project.path.glob("results/**/*"), *project.path.glob("config/**/*")]:
        if path.is_file():
            os.utime(path)
    assert project.planned() == {}


def test_where_results_and_project_are_causes_no_work(branch: Branch, tmp_path: Path) -> None:
    project, results = branch(), tmp_path / "archive/of/mine"
    results.mkdir(parents=True)
    for name in ("results", "runs", ".snakemake"):
        (project.path / name).rename(results / name)
    assert project.planned("--directory", str(results)) == {}
    moved = Project(project.path.rename(tmp_path / "another-name"))
    assert moved.planned("--directory", str(results)) == {}


def test_changed_claims_rerun_what_shows_them(branch: Branch) -> None:
    project = branch()
    project.edit("config/claims.yaml", "claims:\n", "# Another comment.\nclaims:\n")
    assert project.planned() == {"table": 1, "report": 1, "all": 1}


def test_a_changed_command_of_a_rule_causes_no_work(branch: Branch) -> None:
    project = branch()
    project.edit("workflow/rules/train.smk", " --runs {params.runs:q}", "  --runs {params.runs:q}")
    assert project.planned() == {}


@pytest.mark.parametrize(
    "name, old, new, expected",
    [
        pytest.param(
            "config/experiments/smoke.yaml",
            "sample_seeds: [0, 1]",
            "sample_seeds: [0, 1, 2]",
            {"evaluate": 4},
            id="sampling seeds: evaluations",
        ),
        pytest.param(
            "config/experiments/smoke.yaml",
            "nfe: [1, 2]",
            "nfe: [1, 2, 4]",
            {"evaluate": 2},
            id="cells of a model: its evaluations",
        ),
        pytest.param(
            "config/experiments/smoke.yaml",
            "dsm: {enabled: false}",
            "dsm: {enabled: true}",
            {"train_smoke_ctm_nodsm": 1, "evaluate": 1},
            id="a student: its training and evaluation",
        ),
        pytest.param(
            "config/experiments/smoke.yaml",
            "steps: 60",
            "steps: 61",
            {
                "teacher_smoke": 1,
                "train_smoke_ctm": 1,
                "train_smoke_ctm_nodsm": 1,
                "evaluate": 4,
            },
            id="the teacher: all trainings",
        ),
        pytest.param(
            "config/experiments/smoke.yaml",
            "snapshots: [15]",
            "snapshots: [12, 15]",
            {"train_smoke_ctm": 1, "evaluate": 3},
            id="a snapshot: its training and evaluation",
        ),
        pytest.param(
            "config/protocols/desk-smoke-lite0.yaml",
            "samples: 32",
            "samples: 33",
            {"reference": 1, "evaluate": 3},
            id="a protocol: its reference and evaluations",
        ),
    ],
)
def test_a_change_reruns_what_it_affects(
    branch: Branch, name: str, old: str, new: str, expected: dict[str, int]
) -> None:
    project = branch()
    project.edit(name, old, new)
    assert project.planned() == expected | READING


def test_a_key_that_cannot_change_results_causes_no_work(branch: Branch) -> None:
    project = branch()
    name = "config/experiments/smoke.yaml"
    project.edit(name, "preview_every: 30", "preview_every: 10\n    log_every: 5\n    keep: 7")
    project.edit(name, "# The default experiment", "# Another comment: the same")
    assert project.planned() == {}


def test_a_removed_evaluation_is_made_again_from_the_same_weights(branch: Branch) -> None:
    project = branch()
    project.remove("results/smoke/ctm/seed-0/step-30", "results/table.csv", "results/report.html")
    assert project.planned() == {"evaluate": 1} | READING


def test_job_counts_are_read_from_the_dry_run() -> None:
    text = "Job stats:\njob    count\n---  -------\nall        1\na_b       12\ntotal     13\n"
    assert jobs(text) == {"all": 1, "a_b": 12}
