"""Jobs of a configuration: their files, their order, their number by rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny

from ctm_core.config import dag, layout
from ctm_core.config.dag import Job, by_rule, graph
from ctm_core.config.project import Project, read_project
from ctm_core.config.protocols import Protocol


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    """The tiny experiment with some values changed, scored by protocols of the project."""

    def make(**changes: Any) -> Project:
        scored = {"evaluation.protocols": {"desk-smoke": "all"}}
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        file = tiny.write_experiment(tmp_path / "tiny.yaml", scored | dotted)
        return read_project({"experiments": [str(file)]}, "some.yaml")

    return make


def test_jobs_come_after_those_they_read(project: Callable[..., Project]) -> None:
    jobs = graph(project(seeds=[0, 1]), "all")
    assert by_rule(jobs) == {
        "all": 1,
        "data": 1,
        "evaluate": 5,  # the teacher, and two seeds at two steps
        "figures": 1,
        "reference": 1,
        "report": 1,
        "table": 1,
        "teacher_tiny": 1,
        "train_tiny_ctm": 2,
    }
    made: set[str] = set()
    everything = {output for job in jobs for output in job.outputs}
    for job in jobs:
        assert set(job.inputs) & everything <= made, job.label
        made |= set(job.outputs)


def test_only_what_the_target_takes_is_counted(project: Callable[..., Project]) -> None:
    """A model that no protocol scores is trained for the figures, not for the table."""
    scored = [{"model": "teacher", "sampler": "heun", "nfe": 3}]
    made = project(evaluation__protocols={"desk-smoke-lite0": scored})
    assert by_rule(graph(made, "table")) == {
        "data": 1,
        "evaluate": 1,
        "reference": 1,
        "table": 1,
        "teacher_tiny": 1,
    }
    assert by_rule(graph(made, "all"))["train_tiny_ctm"] == 1


def test_a_converted_teacher_is_no_training(project: Callable[..., Project]) -> None:
    made = project(teacher={"asset": "edm-cifar10-uncond"})
    jobs = graph(made)
    (convert,) = [job for job in jobs if job.rule == "convert"]
    assert convert.assets == ("edm-cifar10-uncond",)
    assert not [job for job in jobs if job.rule.startswith("teacher_")]


def test_what_is_there_is_finished(project: Callable[..., Project], tmp_path: Path) -> None:
    job = next(job for job in graph(project()) if job.kind == "evaluate")
    assert not job.finished(tmp_path)
    for output in job.outputs:
        (tmp_path / output).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / output).touch()
    assert job.finished(tmp_path)
    (tmp_path / job.outputs[-1]).unlink()
    assert not job.finished(tmp_path)
    assert Job("all", {"all": "all"}).finished(tmp_path), "it makes no file of its own"


def test_labels_name_what_a_job_is_about(project: Callable[..., Project]) -> None:
    labels = {job.label for job in graph(project())}
    assert {"digits train", "desk-smoke", "tiny ctm seed 0", "tiny ctm seed 0 step 6"} <= labels


def test_a_fork_starts_from_two_files_that_its_parent_exports() -> None:
    made = tiny.experiment(
        {
            "models.fork": tiny.describe()["models"]["ctm"]
            | {"init_from": {"model": "ctm", "step": 6}}
        }
        | {"evaluation.samplers.fork": [{"sampler": "gamma", "nfe": [1], "gamma": [0]}]}
    )
    reads = dag.training(made, "fork", 1).reads
    exported = dag.training(made, "ctm", 1).makes["further"]
    assert set(reads) - set(layout.prepared("digits", "train")) == {
        "teacher",
        "init",
        "init_average",
    }
    assert {reads["init"], reads["init_average"]} == set(exported)
    assert reads["teacher"] == "results/tiny/teacher/seed-0/teacher.safetensors"


def test_every_exported_step_is_evaluated(project: Callable[..., Project]) -> None:
    reads = dag.figures(project(seeds=[0, 1])).reads
    assert reads["evaluations"] == tuple(
        f"results/tiny/{folder}/evaluation.json"
        for folder in (
            "teacher/seed-0/step-12",
            "ctm/seed-0/step-6",
            "ctm/seed-0/step-12",
            "ctm/seed-1/step-6",
            "ctm/seed-1/step-12",
        )
    )
    assert reads["records"] == tuple(
        f"results/tiny/{folder}/training.json"
        for folder in ("teacher/seed-0", "ctm/seed-0", "ctm/seed-1")
    )


def test_figures_show_images_that_a_job_trains_on(project: Callable[..., Project]) -> None:
    """Not those that converted weights learned, which need not be there."""
    made = project(seeds=[0, 1])
    for job in (dag.figures(made), dag.report(made)):
        assert {job.reads[f"train_{name}"] for name in ("images", "labels", "manifest")} == {
            (path,) for path in layout.prepared("digits", "train").values()
        }
    released = read_project({"experiments": ["cifar10-uncond-released"]}, "some.yaml")
    assert dag.figures(released).reads["train_manifest"] == ()


def test_a_reference_that_is_a_file_needs_no_images(project: Callable[..., Project]) -> None:
    made = project()
    assert dag.reference(made, "desk-smoke").reads == layout.prepared("digits", "train")
    somebodys = {"asset": "somebodys", "images": 100, "resolution": 8}
    theirs = Protocol.model_validate(tiny.PROTOCOL | {"reference": somebodys})
    made = replace(made, protocols={"theirs": theirs})
    job = dag.reference(made, "theirs")
    assert job.reads == {} and job.assets == ("somebodys",)


def test_a_data_set_that_no_experiment_learns_needs_its_files_too(
    project: Callable[..., Project],
) -> None:
    assert dag.data(project(), "cifar10", "train").assets == ("cifar10",)
    assert dag.data(project(), "digits", "train").assets == ()


def test_wildcards_give_the_same_names_as_values(project: Callable[..., Project]) -> None:
    """A rule declares what it makes with wildcards, and a plan counts files without them."""
    made = project()
    for job in graph(made):
        wildcards = {"model": job.model, "seed": job.seed, "step": job.step}
        if job.kind == "evaluate":
            pattern = layout.evaluation("{experiment}", "{model}", "{seed}", "{step}")
            assert {
                name: path.format(experiment="tiny", **wildcards) for name, path in pattern.items()
            } == job.makes
        if job.kind == "train" and job.experiment is not None:
            pattern = dag.training(job.experiment, job.model).outputs
            assert tuple(path.format(**wildcards) for path in pattern) == job.outputs
