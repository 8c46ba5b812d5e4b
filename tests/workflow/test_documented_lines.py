"""Lines of the documentation that run for hours, up to the point where work would begin."""

import shlex
import shutil

import pytest
from fixtures.documented import OTHERS, PLANNED
from fixtures.project import ROOT, Project


@pytest.mark.parametrize("line", [line for line, test in OTHERS.items() if test == PLANNED])
def test_a_line_is_planned(project: Project, line: str) -> None:
    for study in (ROOT / "studies").glob("*/**/*.yaml"):
        copy = project.path / study.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(study, copy)
    words = shlex.split(line)
    if "--unlock" in words:
        project.run(*words)
        return
    output = project.run(words[0], "--dry-run", *words[1:])
    assert ("Job stats:" if words[0] == "snakemake" else "pip install") in output
    assert not (project.path / "results").exists() and not (project.path / ".venv").exists()


def test_an_experiment_of_ones_own(project: Project) -> None:
    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    [block] = [part for part in text.split("```") if "mkdir mine" in part]
    commands = [line for line in block.splitlines() if line.startswith(("mkdir", "sed", "echo"))]
    [last] = [line for line in block.splitlines() if line.startswith("snakemake")]
    output = project.run("sh", "-ec", "\n".join([*commands, f"{last} --dry-run"]))
    assert "teacher_mine" in output and "digits_" not in output
