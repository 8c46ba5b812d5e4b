"""``ctm verify`` on a set of other sizes than set A has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.golden_methods import write_methods
from fixtures.golden_unets import write_set

from ctm_core import verification
from ctm_core.verification.golden import Folder

from .conftest import DEFAULT, METHODS


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set B of our own making."""
    folder = tmp_path_factory.mktemp("set-b")
    write_set(folder, DEFAULT)
    return folder


def test_same_files_as_set_a(other_set: Path) -> None:
    assert {path.name for path in other_set.iterdir()} == {
        path.name for path in DEFAULT.glob("*.*") if path.suffix in (".safetensors", ".json")
    }


def test_verify_other_set(other_set: Path, tmp_path: Path) -> None:
    document = tmp_path / "verify.json"
    done = subprocess.run(
        [sys.executable, "-m", "ctm_core.cli", "verify", other_set, "--json", document],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tensors that no case reads: there are none." in done.stdout
    found = json.loads(document.read_text())
    assert found["passed"]
    assert {result["file"] for result in found["results"]} == {
        path.stem for path in other_set.iterdir()
    }


def test_verify_other_methods(tmp_path: Path) -> None:
    write_methods(tmp_path, METHODS)
    folder = Folder(tmp_path)
    for case in verification.cases(folder):
        for precision in case.precisions:
            result = verification.check(case, folder, precision)
            assert result.passed, (case.name, precision, result.reason)
