"""The command in shells and folders that others have prepared: variables, locales, terminals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctm_core.runtime.errors import plain_sentence

#: The command with a verb that does as it is told in place of `ctm data`.
SCRIPT = """
import logging, os, signal, sys, time
import ctm_core.data.dataset as dataset
from ctm_core.cli import main
from ctm_core.cli._options import echo
from ctm_core.runtime.errors import UserError

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it

def act(*given, **named):
    {body}

dataset.prepare = act
sys.argv = ["ctm", "data", "--dataset", "digits", "--output", "made"]
main()
"""


def start(body: str, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(body: str, **variables: str) -> tuple[int, bytes, bytes]:
    process = start(body, **variables)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_locale_can_print(encoding: str) -> None:
    body = "echo('γ × 2'); raise UserError('the γ is wrong')"
    code, out, err = ended(body, PYTHONIOENCODING=encoding)
    assert code == 2 and out and b"Traceback" not in err
    assert err.decode(encoding) in ("ctm: the γ is wrong\n", "ctm: the \\u03b3 is wrong\n")


def test_foreign_text_does_nothing_to_a_terminal() -> None:
    body = (
        "text = 'a\\x1b[2Jb\\nc\\udcffd'; echo(text); logging.getLogger('x').warning(text);"
        "raise UserError(text)"
    )
    code, out, err = ended(body)
    said = b"a\\x1b[2Jb\nc\\udcffd\n"
    sentence = b"a\\x1b[2Jb\\nc\\udcffd\n"  # one line, whatever a name holds
    assert (code, out, err) == (2, said, b"ctm: " + said + b"ctm: " + sentence)


def test_a_left_local_rank_silences_nothing() -> None:
    code, _, err = ended("raise UserError('wrong')", LOCAL_RANK="1", RANK="1", WORLD_SIZE="2")
    assert (code, err) == (2, b"ctm: wrong\n")


def test_figures_need_no_backend(tmp_path: Path) -> None:
    body = "import ctm_core.report.figures"
    code, _, err = ended(body + "; raise UserError('drawn')", MPLBACKEND="module://nowhere")
    assert (code, err) == (2, b"ctm: drawn\n")


def test_freed_memory_stays_for_the_next_step() -> None:
    """Sixteen blocks of 8 MB, which glibc would map and unmap one by one."""
    body = (
        "import resource; fill = lambda: [b'x' * (8 << 20) for _ in range(16)]; fill();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = faults();"
        "fill(); raise UserError(str(faults() - before))"
    )
    code, _, err = ended(body)
    assert code == 2 and int(err.removeprefix(b"ctm: ")) < 16 * (8 << 20) // 4096 // 10


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_spin_for_a_moment_unless_told_otherwise(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    code, _, err = ended("raise UserError(str(os.environ.get('GOMP_SPINCOUNT')))", **given)
    assert (code, err.decode()) == (2, f"ctm: {expected}\n")


def test_ctrl_c_twice_is_one_sentence() -> None:
    body = "print(1, flush=True); import atexit; atexit.register(time.sleep, 2); time.sleep(60)"
    process = start(body)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == b"\n"  # after the ^C that the terminal shows
    sentence = b"ctm: interrupted; run the same command again to continue\n"
    assert process.stderr.readline() == sentence
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"" and process.returncode == 75


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('CUDA out of memory. Tried')"])
def test_a_want_of_memory_is_one_sentence(error: str) -> None:
    code, _, err = ended(f"raise {error}")
    assert code == 2 and err.startswith(b"ctm: out of memory; ") and err.count(b"\n") == 1


def test_links_in_a_circle_are_one_sentence(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for words in (["convert", loop, "--output", "x"], ["table", loop], ["sample", loop]):
        command = [sys.executable, "-m", "ctm_core.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 2 and "link" in done.stderr, done.stderr
        assert done.stderr.startswith("ctm: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_home_folder_is_found_after_an_equals_sign(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ctm_core.cli", "plan", "--config=~/none.yaml"]
    given = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{tmp_path}/none.yaml" in done.stderr, done.stderr


def test_numpys_words_for_a_full_disk() -> None:
    error = OSError("600 requested and 0 written")
    error.filename = "x.npy"
    assert str(plain_sentence(error)).startswith("x.npy: the disk is full")
    assert plain_sentence(OSError(errno.EIO, "Input/output error")) is None
    assert plain_sentence(OSError(errno.EIO, "I/O error", "x")) == (
        "x: I/O error; check the path and its file system"
    )


def test_ctrl_c_while_the_command_loads_is_one_sentence() -> None:
    script = """
import sys

class Finder:
    def find_spec(self, name, *rest):
        if name == "ctm_core.cli.command":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from ctm_core.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    sentence = "\nctm: interrupted; run the same command again to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (75, "", sentence)


def test_without_a_terminal_or_a_disk_the_exit_code_stays() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ctm_core.cli", "table", "/nowhere.json"]
        assert subprocess.run(command, stdout=full, stderr=full).returncode == 2
