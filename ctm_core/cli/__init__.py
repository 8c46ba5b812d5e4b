"""The ``ctm`` command: one verb per kind of job, each a thin call into the library.

Exit codes: 0 success; 2 a user's mistake or a refused file (one sentence, no traceback);
3 training diverged; 75 interrupted and resumable.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console command; Ctrl-C while it loads is an interruption too."""
    try:
        from ctm_core.cli.command import run
    except KeyboardInterrupt:
        print("\nctm: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(75)
    run()
