"""The verbs of ``ctm`` together, and how a command ends: with its exit code and one sentence."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import sys
from pathlib import Path

import click

from ctm_core.cli import (
    asset_verbs,
    foreign_verbs,
    plan_verbs,
    report_verbs,
    sample_verbs,
    score_verbs,
    train_verbs,
)
from ctm_core.cli._log_file import end_log, log_to
from ctm_core.cli._options import FILE
from ctm_core.runtime.errors import CtmError, Interrupted, UserError, plain_sentence
from ctm_core.runtime.launch import follow_parent, is_secondary
from ctm_core.runtime.untrusted import printable, printable_lines

__all__ = ["cli", "run"]

AGAIN = "interrupted; run the same command again to continue"
#: glibc's names of what mallopt sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    }
)
@click.version_option(package_name="ctm_core", prog_name="ctm")
@click.option(
    "--log",
    type=FILE,
    envvar="CTM_LOG",
    show_envvar=True,
    help="Keep everything printed in this file; the terminal shows a copy, on stderr.",
)
def cli(log: Path | None) -> None:
    """Consistency Trajectory Models, from data set to table."""
    if log is not None:
        log_to(log)


for module in (
    train_verbs,
    sample_verbs,
    score_verbs,
    report_verbs,
    plan_verbs,
    asset_verbs,
    foreign_verbs,
):
    for verb in module.__all__:
        cli.add_command(getattr(module, verb))


class _Printable(logging.Formatter):
    """Escapes what names and texts of foreign files would do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def run() -> None:
    """Run the command, and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has a γ or a ×
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("ctm: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("matplotlib", "fontTools", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait spin for a moment: asleep at once they would wake too late for the next
        # layer, and those that spin for longer starve another job on the same cores.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _keep_freed_memory()
    os.environ["MPLBACKEND"] = "agg"  # figures are files; Jupyter's backend may not exist here
    try:
        follow_parent()
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _end(AGAIN, Interrupted.exit_code)
    except click.ClickException as error:
        _end(error.format_message(), UserError.exit_code)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except CtmError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(AGAIN, Interrupted.exit_code)
    except (OSError, ImportError, MemoryError, RuntimeError) as error:
        sentence = plain_sentence(error)
        if sentence is None:
            raise
        _end(sentence, UserError.exit_code)


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees; returned, it would be mapped page by page in the next."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _end(sentence: str, code: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C again: it is ending
    # Of several processes on a machine, the first reports for all.
    if sentence and not is_secondary():
        line = f"ctm: {printable(sentence, len(sentence))}"
        try:
            print(line, file=sys.stderr)
        except OSError:  # the log cannot take it, as on a full disk
            end_log()
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr)
    sys.exit(code)
