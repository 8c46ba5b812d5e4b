"""`ctm evaluate` names what is missing, and goes on where it was killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures import tiny
from fixtures.desk import Desk, refused
from fixtures.tiny import Ended, KillAt


def test_missing_weights_and_references(desk: Desk, references: list[Path]) -> None:
    absent = desk.folder / "absent.safetensors"
    assert refused(desk.run("sample", absent)).startswith(f"{absent} is missing")
    words = ["evaluate", "--config", desk.config, "--model", "ctm", "--output", desk.folder / "e"]
    ended = desk.run(*words, "--weights", absent, *references)
    assert refused(ended).startswith(f"{absent} is missing")
    ended = desk.run(*words, "--weights", desk.student.weights, absent)
    assert refused(ended).startswith(f"{absent} is missing")
    ended = desk.run("table", "--output", desk.folder, desk.folder / "absent.json")
    assert f"{desk.folder / 'absent.json'} is missing" in refused(ended)


def test_a_killed_evaluation_continues(desk: Desk, references: list[Path]) -> None:
    def command(output: str, *before: Callable[[], None]) -> Ended:
        words = ["evaluate", "--config", desk.config, "--model", "ctm", "--weights"]
        words += [desk.student.weights, "--output", output, "--runs", f"runs-{output}"]
        return tiny.ctm([*words, *references], desk.folder, before)

    def rows(output: str) -> Any:
        record = json.loads((desk.folder / output / "evaluation.json").read_text())
        return record["rows"], (desk.folder / output / "previews.safetensors").read_bytes()

    assert command("whole").code == 0
    for count in (2, 3):
        ended = command("killed", KillAt("ctm_core.evaluation.cells:save_tensors", count))
        assert ended.code == -signal.SIGKILL
    ended = command("killed")
    assert ended.code == 0
    assert "ctm: 3 of 6 cells are done already\n" in ended.stderr
    assert rows("killed") == rows("whole")
