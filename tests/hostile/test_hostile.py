"""No hostile file runs code, hangs, exhausts memory or leaves anything behind."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import tiny
from hostile.corpus import HOSTILE
from hostile.watch import Watch

from ctm_core.models import foreign
from ctm_core.runtime.errors import UserError

SECONDS = 20
#: Kilobytes that one file may make the process grow by.
GROWTH = 600_000

#: Files that go through the real command, in a process of its own.
THROUGH_THE_COMMAND = [
    "reduce-os-system-protocol-2",
    "live-source-in-a-reduce",
    "inner-reduce-after-the-magic",
    "flood-of-sets",
    "deep-tuples",
    "zip-slip-parent",
    "zip-bomb",
    "archive-reduce",
    "global-with-control-characters",
    "safetensors-lying-length",
]


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 200
    assert set(THROUGH_THE_COMMAND) <= HOSTILE.keys()


def folder_with(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """The file, the canary that it would touch, an output folder that holds something already."""
    canary, path, output = folder / "canary", folder / "file.pkl", folder / "out"
    path.write_bytes(HOSTILE[name].make(canary))
    output.mkdir()
    (output / "weights.safetensors").write_bytes(b"earlier")
    return path, canary, output


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str, tmp_path: Path, watch: Watch) -> None:
    """One sentence; no event of running code; canary and output folder untouched."""
    path, canary, output = folder_with(name, tmp_path)
    before = tiny.tree(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watch(SECONDS), pytest.raises(UserError) as refused:
        foreign.convert(path, output)
    sentence = str(refused.value)
    assert watch.events == []
    assert not canary.exists()
    assert tiny.tree(tmp_path) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GROWTH
    assert sentence.startswith(f"{path} was refused: it ")
    assert re.search(HOSTILE[name].reason, sentence), sentence
    assert sentence.isprintable() and len(sentence) < len(str(path)) + 300


@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_refused_by_the_command(name: str, tmp_path: Path) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    path, canary, output = folder_with(name, tmp_path)
    before = tiny.tree(tmp_path)
    done = tiny.ctm(["convert", path, "--output", output], tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert re.fullmatch(rf"ctm: {path} was refused: it [^\n]+\n", done.stderr), done.stderr
    assert re.search(HOSTILE[name].reason, done.stderr), done.stderr
    assert not canary.exists()
    assert tiny.tree(tmp_path) == before


def test_the_payloads_are_alive(tmp_path: Path) -> None:
    """What is refused here would run elsewhere: the standard unpickler touches the canary."""
    canary = tmp_path / "canary"
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE["reduce-os-system-protocol-2"].make(canary))
    script = f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert canary.exists()
