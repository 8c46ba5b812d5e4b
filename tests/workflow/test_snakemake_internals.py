"""What the workflow uses of Snakemake without its documentation's promise."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fixtures.project import ROOT, Project
from fixtures.stand_ins import stand_in

SNAKEFILE = """
import json, sys
from dataclasses import asdict
sys.path.insert(0, {scripts!r})
import snakemake_internals as internals

localrules: all

rule all:
    input: "big", "big-too", "small", "there"

rule big:
    output: "{{name,big|big-too}}"
    threads: 2
    resources: gpu=1, mem_mb=64000
    params: needs=["two", "one"]
    shell: "touch {{output}}"

rule small:
    output: "small"
    params: needs=["one"]
    shell: "touch {{output}}"

rule there:
    output: "there"
    params: needs=["three"]
    shell: "touch {{output}}"

onstart:
    asked = [asdict(request) for request in internals.requests(workflow)]
    known = dict(
        config=internals.config_file(workflow),
        partition=internals.default_resource(workflow, "slurm_partition"),
        runtime=internals.default_resource(workflow, "runtime"),
        nothing=internals.default_resource(workflow, "gpu_type"),
        needed=internals.needed_assets(workflow),
        slurm=internals.submits_to_slurm(workflow),
        asked=asked,
    )
    with open("known.json", "w") as file:
        json.dump(known, file)
    sys.exit(0)
"""
SLURM = ("--executor", "slurm", "--jobs", "1")


def known(folder: Path, *options: str) -> dict[str, object]:
    text = SNAKEFILE.format(scripts=str(ROOT / "workflow/scripts"))
    (folder / "Snakefile").write_text(text)
    (folder / "there").touch()
    project = Project(folder)
    project.run("snakemake", *options, **stand_in(project))
    found: dict[str, object] = json.loads((folder / "known.json").read_text())
    return found


def test_each_answers_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("{}")
    defaults = ("--default-resources", "slurm_partition=cpu", "runtime=120", "mem_mb=8000")
    found = known(tmp_path, *SLURM, "--configfile", "some.yaml", *defaults)
    nothing = dict.fromkeys(("slurm_account", "qos", "constraint", "gpu", "gpu_model"))
    common = nothing | {"slurm_partition": "cpu", "runtime": 120}
    assert found == {
        "config": str(tmp_path / "some.yaml"),
        "partition": "cpu",
        "runtime": "120",
        "nothing": None,
        "needed": ["one", "two"],  # not of the job whose output is there
        "slurm": True,
        "asked": [
            {"rule": "big", "threads": 2, "resources": common | {"gpu": 1, "mem_mb": 64000}},
            {"rule": "small", "threads": 1, "resources": common | {"mem_mb": 8000}},
        ],
    }


def test_on_one_machine_nothing_is_submitted(tmp_path: Path) -> None:
    found = known(tmp_path, "--cores", "2")
    assert (found["config"], found["partition"], found["slurm"]) == (None, None, False)
    assert found["asked"] == [] and found["needed"] == ["one", "two"]


def test_nothing_else_uses_them() -> None:
    private = r"workflow\.(?!basedir\b|source_path\b)\w+"
    files = [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]
    files += (ROOT / "workflow/scripts").glob("*.py")
    for file in files:
        if file.name != "snakemake_internals.py":
            lines = [line for line in file.read_text().splitlines() if "#" not in line]
            code = "\n".join(line for line in lines if '"' not in line)
            assert not re.search(private, code), file.name


def test_the_versions_tried_are_those_installed() -> None:
    text = (ROOT / "workflow/scripts/snakemake_internals.py").read_text()
    lock = (ROOT / "requirements/lock.txt").read_text()
    for name, pattern in (
        ("snakemake", r"with Snakemake (\S+) "),
        ("snakemake-executor-plugin-slurm", r"snakemake-executor-plugin-slurm (\S+), "),
    ):
        tried = re.search(pattern, text)
        assert tried and f"{name}=={tried[1]}\n" in lock, name
