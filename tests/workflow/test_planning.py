"""`ctm plan` beside Snakemake's own plan."""

import json

import pytest
from fixtures.plan import SPEED
from fixtures.project import Project, jobs

from ctm_core.runtime.files import write_json

#: Nothing of the machine's own files.
NOWHERE = {"CTM_ASSETS": "nowhere"}


@pytest.mark.parametrize(
    ("config", "target", "goal"),
    [
        ("config/smoke.yaml", "all", "all"),
        ("config/paper.yaml", "table", "results/table.csv"),
    ],
)
def test_jobs_and_missing_files_are_snakemakes(
    project: Project, config: str, target: str, goal: str
) -> None:
    write_json(project.path / "speed.json", SPEED)
    dry = ("snakemake", "-n", "--quiet", "rules", "--configfile", config, "--", goal)
    output = project.run(*dry, **NOWHERE)
    options = ("--config", config, "--target", target, "--speed", "speed.json")
    project.run("ctm", "plan", *options, "--json", "plan.json", **NOWHERE)
    told = json.loads((project.path / "plan.json").read_text())
    assert told["jobs"] == jobs(output)
    note = output.strip().splitlines()[-1]
    missing = note.partition("files that are not here: ")[2].partition(" (`ctm")[0]
    assert sorted(told["missing"]) == (missing.split(", ") if missing else [])
    assert not (project.path / "results").exists(), "a plan makes nothing"
