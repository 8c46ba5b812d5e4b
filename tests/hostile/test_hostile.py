"""No hostile file runs code, hangs, exhausts memory or leaves anything behind."""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from hostile.corpus import HOSTILE
from hostile.corpus.make import valid_archive, valid_pickle

from ctm_core import teachers
from ctm_core.errors import UserError

SECONDS = 20
#: Kilobytes that the process may grow by, over all files.
GROWTH = 1_000_000

#: What happens in an interpreter when a file has got the better of it (PEP 578).
FORBIDDEN = (
    "os.",
    "subprocess.",
    "shutil.",
    "socket.",
    "ctypes.",
    "webbrowser.",
    "pickle.find_class",
    "marshal.",
    "exec",
    "compile",
    "code.__new__",
    "function.__new__",
)
ALLOWED = {"os.listdir", "os.scandir", "os.fspath", "os.putenv"}


class Watch:
    """Notes the audit events of everything that runs while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, Any]] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: Any) -> None:
        if not self.on or event in ALLOWED:
            return
        if event.startswith(FORBIDDEN) and not _importing():
            self.events.append((event, arguments))
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.events.append((event, arguments))


def _importing() -> bool:
    """Whether Python is loading a module of its own, such as a codec, for the first time."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@pytest.fixture(scope="session")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """Installed once, after everything that an import needs has been loaded."""
    folder = tmp_path_factory.mktemp("warm")
    for name, data in (("a.pkl", valid_pickle()), ("a.pt", valid_archive())):
        (folder / name).write_bytes(data)
        teachers.convert(folder / name, folder / "out")
    return Watch()


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str, tmp_path: Path, watch: Watch) -> None:
    """One sentence; no event of running code; canary and output folder untouched."""
    hostile = HOSTILE[name]
    canary, path, output = tmp_path / "canary", tmp_path / "file.pkl", tmp_path / "out"
    path.write_bytes(hostile.make(canary))
    output.mkdir()
    (output / "weights.safetensors").write_bytes(b"earlier")
    before = tiny.tree(tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.events.clear()
    watch.on = True
    try:
        with within(SECONDS), pytest.raises(UserError) as refused:
            teachers.convert(path, output)
    finally:
        watch.on = False
    sentence = str(refused.value)
    assert watch.events == []
    assert not canary.exists()
    assert tiny.tree(tmp_path) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GROWTH
    assert sentence.startswith(f"{path} was refused: it ")
    assert re.search(hostile.reason, sentence), sentence
    assert "\n" not in sentence and sentence.isprintable() and len(sentence) < len(str(path)) + 300
