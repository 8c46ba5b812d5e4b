"""`ctm plan` beside Snakemake's own plan."""

import json
import re

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
    snakemake = ("snakemake", "--quiet", "rules", "--configfile", config)
    output = project.run(*snakemake, "-n", "--", goal, **NOWHERE)
    options = ("--config", config, "--target", target, "--speed", "speed.json")
    project.run("ctm", "plan", *options, "--json", "plan.json", **NOWHERE)
    told = json.loads((project.path / "plan.json").read_text())
    assert told["jobs"] == jobs(output)
    assert not (project.path / "results").exists(), "a plan makes nothing"
    if told["missing"]:  # a run then refuses to begin, and names the same files
        refused = project.run(*snakemake, "--cores", "1", "--", goal, code=2, **NOWHERE)
        assert set(told["missing"]) == set(re.findall(r"\((\S+)\) is missing: ", refused))
    assert bool(told["missing"]) == (config == "config/paper.yaml")
