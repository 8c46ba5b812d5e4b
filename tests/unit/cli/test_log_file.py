"""``ctm --log FILE``: a complete copy of what is printed, however the command ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: The command with a verb that does as it is told in place of `ctm data`.
SCRIPT = """
import os, signal, subprocess, sys, time
import ctm_core.data.dataset as dataset
from ctm_core.cli import main

def act(*given, **named):
    {body}

dataset.prepare = act
sys.argv = ["ctm", "--log", sys.argv[1], "data", "--dataset", "digits", "--output", "made"]
main()
"""
SPEAK = (
    "print('own'); print('own error', file=sys.stderr); os.write(2, b'a C library\\n'); "
    "subprocess.run('echo child; echo child error >&2', shell=True); "
)
SPOKEN = ["own", "own error", "a C library", "child", "child error"]


def start(folder: Path, body: str, log: str = "logs/here/x.log") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body), log],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(folder: Path, body: str, log: str = "logs/here/x.log") -> tuple[int, str, list[str]]:
    """Exit code, what the terminal showed, and the lines of the log."""
    process = start(folder, body, log)
    out, err = process.communicate(timeout=60)
    assert out == ""
    file = folder / log
    lines = file.read_text().splitlines() if file.is_file() else []
    return process.returncode, err, lines


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_file_and_terminal_hold_everything_in_order(tmp_path: Path) -> None:
    code, terminal, log = ended(
        tmp_path, f"{SPEAK} from ctm_core.runtime.errors import Diverged; raise Diverged('NaN')"
    )
    assert code == 3
    assert log == terminal.splitlines() == [*SPOKEN, "ctm: NaN"]


def test_a_traceback_is_kept(tmp_path: Path) -> None:
    code, terminal, log = ended(tmp_path, "raise RuntimeError('a defect')")
    assert code == 1 and log == terminal.splitlines()
    assert log[0].startswith("Traceback") and log[-1] == "RuntimeError: a defect"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_what_was_printed_before_a_kill_or_a_crash_is_kept(tmp_path: Path, end: str) -> None:
    code, _, log = ended(tmp_path, SPEAK + end)
    assert code in (-signal.SIGKILL, -signal.SIGABRT) and log == SPOKEN


def test_the_terminal_sees_it_while_it_runs(tmp_path: Path) -> None:
    process = start(tmp_path, "print('begun', flush=True); time.sleep(60)")
    assert process.stderr is not None and process.stderr.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_group_is_the_commands_to_answer(tmp_path: Path, number: int) -> None:
    """Nothing else is in the group, and the last lines are not lost."""
    body = (
        "from ctm_core.runtime.interrupts import caught; from ctm_core.runtime.errors import "
        "Interrupted; heard = []\n"
        "    with caught(heard.append):\n"
        "        print('begun', flush=True)\n"
        "        while not heard: time.sleep(0.01)\n"
        "    print('last words'); raise Interrupted(f'signal {heard[0]}')"
    )
    process = start(tmp_path, body)
    wait_for(tmp_path / "logs/here/x.log", "begun")
    os.killpg(process.pid, number)
    _, terminal = process.communicate(timeout=30)
    assert process.returncode == 75
    assert terminal == f"begun\nlast words\nctm: signal {int(number)}\n"
    assert (tmp_path / "logs/here/x.log").read_text() == terminal


def test_a_process_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    began = time.monotonic()
    command = "sh -c 'sleep 30; echo late'"
    code, _, log = ended(
        tmp_path, f"subprocess.Popen({command!r}, shell=True); raise SystemExit(0)"
    )
    assert code == 0 and log == []
    assert time.monotonic() - began < 20


def test_a_reader_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    process = start(
        tmp_path, "print('begun', flush=True); time.sleep(1); print('end'); sys.exit()"
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(30) == 0
    assert (tmp_path / "logs/here/x.log").read_text() == "begun\nend\n"


def test_an_older_log_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("before\n" * 100)
    assert ended(tmp_path, "print('new'); sys.exit()", "x.log")[2] == ["new"]


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("file/x.log", "file: a file is where a folder is needed; correct the path"),
        ("pipe", "--log pipe: expected a regular file"),
        ("/dev/null", "--log /dev/null: expected a regular file"),
        (
            "folder",
            "Invalid value for '--log' (env var: 'CTM_LOG'): File 'folder' is a directory.",
        ),
    ],
)
def test_a_log_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, log: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    code, terminal, _ = ended(tmp_path, "print('never')", log)
    assert (code, terminal) == (2, f"ctm: {sentence}\n")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that has no room, where a mount is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    (disk / "fill").write_bytes(bytes(4096))
    yield tmp_path
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_the_terminal_still_hears_why(full_disk: Path) -> None:
    code, terminal, log = ended(full_disk, "print('some words')", "disk/x.log")
    assert code == 2 and log == []
    assert "ctm: the disk is full; free some space" in terminal
