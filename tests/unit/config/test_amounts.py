"""What a configuration comes to, against its list of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import tiny

from ctm_core.config import amounts, dag
from ctm_core.config.project import open_project
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["paper", "config", "digits-full"])
def test_jobs_are_those_of_the_workflow(name: str) -> None:
    project = open_project(ROOT / f"config/{name}.yaml")
    kinds = {"train", "convert", "evaluate"}
    listed = {
        job.outputs[0]: job for job in dag.graph(project, "all") if job.kind in kinds
    }  # a converted file may serve two experiments
    counted = sum(map(amounts.jobs, project.experiments.values()))
    assert len(listed) <= counted <= len(listed) + 20


def test_samplings_and_batches() -> None:
    made = tiny.experiment(
        {"seeds": [0, 1], "models.ctm.training.micro_batch": 4, "teacher.training.batch_size": 6}
        | {"resources": {"training": {"processes": 2}}}
    )
    # One cell of the teacher; four of the student at two steps, with two seeds. Two sample seeds.
    assert amounts.samplings(made) == 2 * (1 + 4 * 2 * 2)
    assert amounts.batches(made) == {
        "evaluation.batch_size": 16,
        "models.ctm.training.micro_batch": 4,
        "teacher.training.batch_size": 3,
    }
    assert list(amounts.problems(made)) == []


def test_a_project_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "MOST_JOBS", 10)
    path = tmp_path / "config.yaml"
    path.write_text(f"experiments: [{ROOT}/config/experiments/smoke.yaml]\n")
    assert amounts.jobs(open_project(path).experiments["smoke"]) == 7
    (tmp_path / "other.yaml").write_text(
        (ROOT / "config/experiments/smoke.yaml").read_text().replace(": smoke", ": other")
    )
    path.write_text(f"experiments: [{ROOT}/config/experiments/smoke.yaml, {tmp_path}/other.yaml]")
    with pytest.raises(
        UserError, match=r"config\.yaml: experiments: 14 trainings and evaluations;"
    ):
        open_project(path)


def test_a_batch_that_a_protocol_enlarges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "MOST_BYTES", 2**19)
    with pytest.raises(
        UserError, match=r"evaluation\.batch_size: 64 images of desk-smoke-lite0's"
    ):
        open_project(ROOT / "config/experiments/smoke.yaml")
