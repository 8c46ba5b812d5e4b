"""Files that changed after the job that made them: named whenever Snakemake starts."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.project import ROOT, Project

SNAKEFILE = """
rule last:
    input: "made/second"
    output: "made/last"
    shell: "cp {input} {output}"

rule second:
    input: "made/first"
    output: "made/second"
    shell: "cp {input} {output}"

rule first:
    output: "made/first"
    shell: "echo 1 > {output}"
"""
RUN = ("snakemake", "--cores", "1", "--quiet", "all")


def edit(path: Path, old: str, new: str) -> None:
    """Replace text and keep the date, as a failing disk does."""
    text, status = path.read_text(), path.stat()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "workflow/scripts"))
    monkeypatch.chdir(tmp_path)
    changed_files = importlib.import_module("preflight").changed_files
    Path("Snakefile").write_text(SNAKEFILE)
    project = Project(tmp_path)
    assert changed_files() == []
    project.run(*RUN)
    assert changed_files() == []
    first = Path("made/first")
    first.touch()
    assert changed_files() == []  # its content is the same
    edit(first, "1", "2")
    sentence = (
        "snakemake: made/first was changed after its job (first) had made it; to have it made "
        "again, add --forcerun made/first"
    )
    assert changed_files() == [sentence]
    monkeypatch.setattr("preflight.ALWAYS_HASHED", 1)
    assert changed_files() == [sentence]  # its date is another, too
    project.run(*RUN, "--forcerun", "made/first")
    assert changed_files() == [] and first.read_text() == "1\n"
    # Made again, it is not compared with what was read before.
    project.edit("Snakefile", "echo 1", "echo 2")
    project.run(*RUN, "--force", "--", "made/first")
    assert changed_files() == [] and first.read_text() == "2\n"
    # Large files of the same date are not hashed, and damaged records speak of nothing.
    edit(Path("made/second"), "1", "2")
    assert changed_files() == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(changed_files()) == 1
    for damage in ("[]", "{", '{"rule": "first", "starttime": null}'):
        for record in Path(".snakemake/metadata").iterdir():
            record.write_text(damage)
        assert changed_files() == []


def test_an_edited_value_is_named_and_never_reaches_the_table(
    branch: Callable[[], Project],
) -> None:
    project = branch()
    name = "results/smoke/ctm/seed-0/step-30/evaluation.json"
    path, table = project.path / name, "results/table.csv"
    before, value = project.results(table), json.loads(path.read_text())["rows"][0]["value"]
    edit(path, repr(value), "0.527")
    output = project.snakemake()
    assert f"snakemake: {name} was changed after its job (evaluate) had made it" in output
    path.touch()  # now the table is to be made again
    output = project.snakemake(code=1)
    assert f"ctm: {name} was changed after it was written" in output and "Traceback" not in output
    assert project.results(table) in ({}, before)
    project.snakemake("--forcerun", name)
    assert json.loads(path.read_text())["rows"][0]["value"] == value
    assert project.results(table) == before


@pytest.mark.parametrize("name", ["training.json", "training.jsonl"])
def test_other_text_is_named(branch: Callable[[], Project], name: str) -> None:
    project = branch()
    path = project.path / "results/smoke/ctm/seed-0" / name
    with path.open("a") as file:
        file.write("\n")
    output = project.snakemake("--dry-run")
    assert f"{name} was changed after its job (train_smoke_ctm) had made it" in output
