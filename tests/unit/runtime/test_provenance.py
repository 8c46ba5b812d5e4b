"""Results say which code made them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ctm_core.runtime import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout whose package is the one asked."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path.resolve() / "checkout"
    (root / "ctm_core" / "runtime").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "ctm_core" / "runtime" / "provenance.py").touch()
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def version_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = root / "ctm_core" / "runtime" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    provenance.code_version.cache_clear()
    try:
        return provenance.code_version()
    finally:
        provenance.code_version.cache_clear()


def test_commit_and_dirt(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    clean = version_in(checkout, monkeypatch)
    assert re.fullmatch(rf"\d+\.\d+\.\d+\+g{commit}", clean)
    (checkout / "docs" / "note.md").write_text("changes nothing that is computed")
    assert version_in(checkout, monkeypatch) == clean
    (checkout / "ctm_core" / "new.py").touch()
    assert version_in(checkout, monkeypatch) == f"{clean}-dirty"


def test_an_installed_package_is_not_its_surroundings(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = checkout / ".venv" / "site-packages"
    (site / "ctm_core").mkdir(parents=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version_in(site, monkeypatch))


def test_without_git(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version_in(checkout, monkeypatch))
