"""Every dvc.yaml against the project's: the same dependencies, and all that its rules declare."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fixtures.project import ROOT

STUDIES = sorted(file.parent for file in (ROOT / "studies").glob("*/config.yaml"))
PAGE = ROOT / "docs/versions.md"


def stage(folder: Path) -> dict:
    """The one stage of a folder's dvc.yaml."""
    [found] = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values()
    return found


def versioned(folder: Path) -> list[str]:
    """The outputs of the stage, each of which must persist for Snakemake to decide."""
    found = stage(folder)
    entries = [*found["outs"], *found["metrics"], *found["plots"]]
    assert all(options["persist"] for entry in entries for options in entry.values())
    return [path for entry in entries for path in entry]


def declared(config: str, folder: Path = ROOT) -> list[str]:
    """Outputs and benchmarks of all jobs of a configuration in a folder, as a dry run has them."""
    words = ["--forceall", "--dry-run", "--printshellcmds", "--configfile", config]
    done = subprocess.run(
        [Path(sys.executable).parent / "snakemake", *words, "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^    (?:output|benchmark): (.*)$", done.stdout + done.stderr, re.M)
    return [path for line in found for path in line.split(", ")]


def without(paths: list[str], outputs: list[str]) -> list[str]:
    return [p for p in paths if not any(Path(p).is_relative_to(out) for out in outputs)]


def test_there_are_studies() -> None:
    assert ROOT / "studies/gamma" in STUDIES


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_lists_what_the_project_lists(study: Path) -> None:
    ours, its = stage(ROOT), stage(study)
    assert {"config/claims.yaml", "config/published.yaml"} < set(ours["deps"])
    assert its["deps"] == [f"../../{path}" for path in ours["deps"]]
    config = yaml.safe_load((study / "config.yaml").read_text())
    files = ["config.yaml", *config["experiments"]]
    assert its["params"] == [{file: None} for file in files]
    assert f"--configfile studies/{study.name}/config.yaml" in its["cmd"]
    assert f"--directory studies/{study.name}" in its["cmd"]

    # A DVC project of its own: `dvc pull` in the root does not ask for it.
    assert (study / ".dvc/config").exists()


@pytest.mark.parametrize("folder", [ROOT, *STUDIES], ids=lambda folder: folder.name)
def test_every_declared_result_is_versioned(folder: Path) -> None:
    own = f"studies/{folder.name}/config.yaml"
    paths = declared(own if folder in STUDIES else "config/config.yaml", folder)
    assert len(paths) > 30
    outputs = versioned(folder)
    assert ".snakemake/metadata" in outputs and without(paths, outputs) == []


def test_no_stage_versions_training_state() -> None:
    for folder in (ROOT, *STUDIES):
        paths = {Path(path).parts[0] for path in versioned(folder)}
        assert paths == {".snakemake", "results"}


def test_the_page_lists_what_converted_weights_add() -> None:
    """Outputs that a configuration may have beside the default's are for the user to add."""
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    added = yaml.safe_load(block)
    assert all(options["persist"] for entry in added for options in entry.values())
    paths = declared("config/paper.yaml")
    assert [path for path in paths if path.startswith("results/teachers/")]
    names = yaml.safe_load((ROOT / "config/paper.yaml").read_text())["experiments"]
    own = [f"results/{Path(name).stem}" for name in names]
    listed = [path for entry in added for path in entry]
    assert without(without(paths, versioned(ROOT)), [*own, *listed]) == []
