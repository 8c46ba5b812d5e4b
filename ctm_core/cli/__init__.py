"""The ``ctm`` command: one verb per kind of job, each a thin call into the library.

Exit codes: 0 success; 2 a user's mistake or a refused file (one sentence, no traceback);
3 training diverged; 75 interrupted and resumable.
"""

from __future__ import annotations

import logging
import os
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
from ctm_core.runtime.launch import follow_parent
from ctm_core.runtime.untrusted import printable

__all__ = ["main"]


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


def main() -> None:
    """Entry point of the console command."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_Lines("ctm: %(message)s"))
    for noisy in ("matplotlib", "fontTools", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Spinning threads of one job would starve another job on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    follow_parent()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _end("interrupted; run the same command again to continue", Interrupted.exit_code)
    except click.ClickException as error:
        _end(error.format_message(), UserError.exit_code)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except CtmError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        sentence = plain_sentence(error)
        if sentence is None:
            raise
        _end(sentence, UserError.exit_code)


class _Lines(logging.Formatter):
    """Messages may quote a file: what would command the terminal is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return _legible(super().format(record))


def _legible(text: str) -> str:
    return "\n".join(printable(line, 10_000) for line in text.splitlines())


def _end(sentence: str, code: int) -> None:
    sentence = _legible(sentence)
    # Of several processes on a machine, the first reports for all.
    if sentence and os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            print(f"ctm: {sentence}", file=sys.stderr)
        except OSError:  # the log cannot take it, as on a full disk
            end_log()
            print(f"ctm: {sentence}", file=sys.stderr)
    sys.exit(code)
