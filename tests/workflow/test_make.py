"""What `make` notices about the place it runs in; nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures.project import ROOT

#: How pip begins a script whose path is long or has spaces.
LONG = '#!/bin/sh\n\'\'\'exec\' "{scripts}/python3" "$0" "$@"\n'


def planned(folder: Path, target: str, **variables: str) -> str:
    """What `make` would run for a target."""
    command = ["make", "--dry-run", target]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an environment that was installed there."""
    place = tmp_path / "a folder" / "ctm"
    shutil.copytree(ROOT / "requirements", place / "requirements")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, place)
    scripts = place / ".venv/bin"
    scripts.mkdir(parents=True)
    (scripts / "pip").write_text(LONG.format(scripts=scripts))
    (scripts / "pip").chmod(0o755)
    (place / ".venv/.installed-cuda").touch()
    return place


def test_an_environment_is_made_once(checkout: Path) -> None:
    assert "pip install" not in planned(checkout, "setup")
    (checkout / ".venv/bin/pip").write_text(f"#!{checkout}/.venv/bin/python\nimport pip\n")
    assert "pip install" not in planned(checkout, "setup")
    checkout.parent.joinpath("link").symlink_to(checkout)
    assert "pip install" not in planned(checkout.parent / "link", "setup")


@pytest.mark.parametrize(
    ("torch", "installs"),
    [
        ("cuda", "--requirement requirements/lock.txt"),
        ("volta", "--requirement requirements/lock-volta.txt"),
        ("cpu", "--requirement requirements/lock-cpu.txt"),
        ("own", "requirements/own_torch.py .venv requirements/lock.txt"),
    ],
)
def test_each_machine_has_a_lock(checkout: Path, torch: str, installs: str) -> None:
    (checkout / ".venv/.installed-cuda").unlink()
    plan = planned(checkout, "setup", TORCH=torch)
    assert installs in plan and plan.count("--requirement") == (torch != "own")
    # What the card cannot run ends it before it counts as installed.
    checked = plan.index("python -m ctm_core.runtime.cuda")
    assert plan.index(installs) < checked < plan.index(f"touch .venv/.installed-{torch}")
    plan = planned(checkout, "setup", TORCH=torch, WHEELHOUSE="wheels")
    assert plan.index("requirements/wheelhouse.py check wheels") < plan.index(installs)
    assert ("--without-torch" in plan) == (torch == "own")


@pytest.mark.parametrize("copied", [True, False])
def test_a_moved_or_copied_checkout_gets_an_environment_of_its_own(
    checkout: Path, copied: bool
) -> None:
    there = checkout.parent / "there"
    if copied:
        shutil.copytree(checkout, there)
    else:
        checkout.rename(there)
    plan = planned(there, "setup")
    assert plan.index("was made at another place") < plan.index("pip install")


@pytest.mark.parametrize("home", ["/dev/null", "own"])
def test_snakemake_has_a_cache_where_home_cannot_be_written(checkout: Path, home: str) -> None:
    with (checkout / "Makefile").open("a") as file:
        file.write("show:\n\t@echo cache=$(XDG_CACHE_HOME)\n")
    place = str(checkout.parent / home) if home == "own" else home
    shown = planned(checkout, "show", HOME=place, XDG_CACHE_HOME="")
    inside = f"cache={checkout}/.snakemake/cache" in shown
    assert inside == (home == "/dev/null"), shown
