"""Resolve pyproject.toml and the inputs beside this file into lock files and the conda file.

Usage: ``python requirements/lock.py`` (``make lock``). Versions already locked are kept; delete a
line of a lock, or the whole file, to let that package move.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
CONDA = ROOT / "workflow" / "envs" / "ctm.yaml"
#: Extras that the rules need.
RUN = ("data", "distances", "evaluation", "report", "tensorboard", "workflow")
LINUX_ONLY = re.compile(r"(nvidia|cuda|triton)")


def normal(name: str) -> str:
    """The canonical spelling of a package name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(source: Path, lock: Path) -> dict[str, str]:
    """Versions by package name, as pip would install them into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        keep = Path(folder) / "keep.txt"
        keep.write_text(lock.read_text() if lock.exists() else "")
        command = ["-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--no-build-isolation", "--report", str(report)]
        command += ["--constraint", str(keep), "--requirement", str(source)]
        subprocess.run([sys.executable, *command, f"{ROOT}[all]"], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    # A local version (2.13.0+cpu) names one build of a release; the release is what is pinned.
    versions = {normal(item["name"]): item["version"].split("+")[0] for item in found}
    del versions[normal(project()["name"])]
    return versions


def project() -> dict[str, Any]:
    """The `[project]` section of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock_text(source: str, versions: dict[str, str]) -> str:
    """The lock file: one exact pin a line."""
    lines = [f"# Made from pyproject.toml and {source} by `make lock`; edit those instead."]
    for name, version in sorted(versions.items()):
        marker = '  ; platform_system == "Linux"' if LINUX_ONLY.match(name) else ""
        lines.append(f"{name}=={version}{marker}")
    return "\n".join(lines) + "\n"


def conda_text(versions: dict[str, str]) -> str:
    """The `conda:` file of every rule: the direct requirements at their locked versions."""
    lines = [
        "# Made from pyproject.toml by `make lock`. The rules name it to state their software; it",
        "# is read only under `--sdm conda`. `make setup` installs the same versions.",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
    ]
    extras = project()["optional-dependencies"]
    wanted = set(project()["dependencies"]).union(*(extras[extra] for extra in RUN))
    names = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    lines += [f"      - {name}=={versions[name]}" for name in sorted(names)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in ("lock", "lock-cpu", "lock-volta"):
        lock = HERE / f"{name}.txt"
        versions = resolve(HERE / f"{name}.in", lock)
        lock.write_text(lock_text(f"{name}.in", versions))
        if name == "lock":
            CONDA.parent.mkdir(parents=True, exist_ok=True)
            CONDA.write_text(conda_text(versions))
