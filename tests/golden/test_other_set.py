"""``ctm verify`` on sets of other sizes than the committed ones have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.golden_methods import write_methods
from fixtures.golden_unets import write_set

from .conftest import DEFAULT, METHODS


@pytest.fixture(scope="module", params=[DEFAULT, METHODS], ids=["first", "methods"])
def source(request: pytest.FixtureRequest) -> Path:
    """A committed set."""
    given: Path = request.param
    return given


@pytest.fixture(scope="module")
def other_set(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the same kind, of our own making."""
    folder = tmp_path_factory.mktemp("set-b")
    (write_set if source == DEFAULT else write_methods)(folder, source)
    return folder


def test_same_files_as_set_a(source: Path, other_set: Path) -> None:
    assert {path.name for path in other_set.iterdir()} == {
        path.name for path in source.glob("*.*") if path.suffix in (".safetensors", ".json")
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
