"""What a long job shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
import time

import pytest

from ctm_core.runtime.progress import Progress


class Clock:
    """Time that passes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("digits ctm", total=110, start=100, interval=5.0)
    for _ in range(10):
        clock.now += 2.0
        progress.advance(64, {"loss": 1.23456, "ctm": 0.5})
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    # Every 5 s at the earliest, so each third step of 2 s, and the last one.
    assert [line.split()[3] for line in lines] == ["103/110", "106/110", "109/110", "110/110"]
    assert lines[0] == ("digits ctm: step 103/110  loss 1.235 ctm 0.5  32 images/s  14 s left")
    assert lines[-1].endswith("0 s left")
    assert progress.images_per_second == pytest.approx(32)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("digits ctm", total=4, start=1)
    for _ in range(3):
        progress.advance(64, {"loss": 0.25})
        progress._bar.refresh()
    progress.close()
    last = terminal.getvalue().rstrip().splitlines()[-1].split("\r")[-1]
    assert "digits ctm: 100%" in last
    assert "4/4" in last
    assert "loss 0.25" in last
    assert "images/s" in last
    assert "<" in last  # elapsed<left
